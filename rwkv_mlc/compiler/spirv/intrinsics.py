"""Rules for mathematical functions on Vulkan, for which TVM has none of its own.

They rewrite a call into instructions of GLSL.std.450 and arithmetic. They are exact where GLSL is, except that

- ``tanh`` clamps its argument to +-10, where it is 1 in float32: drivers divide sinh by cosh, which overflow;
- ``pow`` with a small integer as exponent multiplies, because GLSL wants a positive base;
- ``erf`` is formula 7.1.26 of Abramowitz and Stegun, absolute error 1.5e-7, computed in float32.
"""

from __future__ import annotations

from functools import lru_cache, reduce

from tvm import tirx
from tvm.tirx.op import register_intrin_lowering

from .words import Glsl

GLSL_CALL = "tirx.call_spirv_pure_glsl450"

DIRECT = {
    "tirx.exp": Glsl.Exp,
    "tirx.exp2": Glsl.Exp2,
    "tirx.log": Glsl.Log,
    "prim.log2": Glsl.Log2,
    "tirx.sqrt": Glsl.Sqrt,
    "tirx.rsqrt": Glsl.InverseSqrt,
    "tirx.sin": Glsl.Sin,
    "tirx.cos": Glsl.Cos,
    "tirx.fabs": Glsl.FAbs,
    "tirx.floor": Glsl.Floor,
    "prim.ceil": Glsl.Ceil,
    "tirx.trunc": Glsl.Trunc,
    "tirx.nearbyint": Glsl.RoundEven,
    "tirx.fma": Glsl.Fma,
}
MAX_POWER = 8


@lru_cache(None)
def register_intrinsics() -> None:
    """Tell TVM about the rules. Repeated calls do nothing."""
    for name, instruction in DIRECT.items():
        register_intrin_lowering(name, target="vulkan", f=lambda call, i=instruction: glsl(i, *call.args))
    rules = {"tanh": tanh, "sigmoid": sigmoid, "pow": power, "round": round_half_away, "erf": erf}
    for name, rule in rules.items():
        register_intrin_lowering(f"tirx.{name}", target="vulkan", f=lambda call, rule=rule: rule(*call.args))


def glsl(instruction: Glsl, *args: tirx.Expr) -> tirx.Expr:
    return tirx.call_intrin(args[0].ty.dtype, GLSL_CALL, tirx.const(int(instruction), "uint32"), *args)


def _constant(value: float, like: tirx.Expr) -> tirx.Expr:
    dtype = like.ty.dtype
    constant = tirx.const(value, dtype.with_lanes(1))
    return constant if dtype.lanes == 1 else tirx.Broadcast(constant, dtype.lanes)


def tanh(x: tirx.Expr) -> tirx.Expr:
    return glsl(Glsl.Tanh, glsl(Glsl.FClamp, x, _constant(-10.0, x), _constant(10.0, x)))


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    one = _constant(1.0, x)
    return one / (one + glsl(Glsl.Exp, _constant(0.0, x) - x))


def power(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
    scalar = y.value if isinstance(y, tirx.Broadcast) else y
    exponent = float(scalar) if isinstance(scalar, tirx.FloatImm) else 0.0
    if exponent.is_integer() and 1 <= exponent <= MAX_POWER:
        return reduce(lambda a, b: a * b, [x] * int(exponent))
    return glsl(Glsl.Pow, x, y)


def round_half_away(x: tirx.Expr) -> tirx.Expr:
    whole = glsl(Glsl.Trunc, x)
    fraction = glsl(Glsl.FAbs, x - whole)
    half_up = glsl(Glsl.Floor, fraction + fraction)
    return whole + half_up * glsl(Glsl.FSign, x)


def erf(x: tirx.Expr) -> tirx.Expr:
    dtype = x.ty.dtype
    wide = x.astype("float32" if dtype.lanes == 1 else f"float32x{dtype.lanes}")
    size = glsl(Glsl.FAbs, wide)
    t = _constant(1.0, wide) / (_constant(1.0, wide) + _constant(0.3275911, wide) * size)
    series = _constant(1.061405429, wide)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + _constant(coefficient, wide)
    result = _constant(1.0, wide) - series * t * glsl(Glsl.Exp, _constant(0.0, wide) - size * size)
    return (result * glsl(Glsl.FSign, wide)).astype(dtype)
