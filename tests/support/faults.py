"""Deliberate bugs, as a porter would write them: an edit of one of our own source files while a library is built."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

from rwkv_mlc.graph.ops.kernels import KernelOps
from rwkv_mlc.schema import Family
from tir_kernels.cpu.halve import halve as halve_on_cpu
from tir_kernels.gpu.halve import halve as halve_on_gpu

GENERATIONS, TARGETS = ("4", "5.2", "6", "7"), ("llvm", "vulkan")


@dataclass(frozen=True)
class Edit:
    """``old``, which is in the module once, becomes ``new``. An edit that is not ``compiled`` is in how weights are made or
    laid out."""

    module: str
    old: str
    new: str
    compiled: bool = True


@dataclass(frozen=True)
class Fault:
    """``edits`` by target. ``first`` is the value that must be named first, ``role`` the one at fault: it, or among those that
    the tool says lie between; ``hint`` a part of what it must suggest. ``chunk`` is that of the prefill; a fault of
    ``integer_dot`` is there only where a CPU has such products. One of the ``family`` plain is in what fused kernels keep to
    themselves. It takes a model of so many ``layers`` to see it."""

    name: str
    generation: str
    scheme: str
    edits: dict[str, Edit]
    first: str
    role: str
    hint: str | None = None
    chunk: int = 512
    integer_dot: bool = False
    family: Family = "fused"
    layers: int = 2

    def __str__(self) -> str:
        return f"{self.generation}-{self.name.replace(' ', '-')}"

    @property
    def decodes(self) -> bool:
        """Whether it takes single tokens to find it."""
        return self.first.startswith("decode")


def _models(generation: str) -> str:
    return f"rwkv_mlc.models.rwkv{generation[0]}"


def everywhere(*edit) -> dict[str, Edit]:
    """One edit for every target."""
    return dict.fromkeys(TARGETS, Edit(*edit))


def on_each(kernel: str, old: str, new: str) -> dict[str, Edit]:
    """The same edit of a kernel's CPU and GPU form."""
    return {target: Edit(f"tir_kernels.{device}.{kernel}", old, new) for target, device in zip(TARGETS, ("cpu", "gpu"))}


def _inside(name: str, generation: str, edit: Edit, first: str) -> Fault:
    """A fault that only a plain library shows at the very value."""
    role = first.partition("/")[2]
    return Fault(name, generation, "q0f32", {"llvm": edit}, first=first, role=role, family="plain")


LN0 = 'ops.layer_norm(x, weights.norm("model.blocks.0.pre_ln"))'
CHANNEL_MIXING = "x = self.channel_mixing(config, ops, block, x)"
ROW_BLOCKS = "    return _in_blocks(array, rows).transpose(0, 2, 1)"
"""The last line of ``quantization.layouts._row_blocks``, in which both fields and scales of a matrix are laid out for CPUs."""


ONE_GROUP = {
    "llvm": Edit(
        "tir_kernels.cpu.group_norm",
        "span(start + j, width)], group_size, width",
        "span(j, width)], channels, width",
    ),
    "vulkan": Edit(
        "tir_kernels.gpu.group_norm",
        "span(start + c, width)]], group_size, thread",
        "span(c, width)]], channels, thread",
    ),
}
"""The group norm over all heads."""
TRANSPOSED_AFTER_PREFILL = (
    "        with T.parallel(0, batch * heads) as bh:",
    """\
            if phase == "prefill":
                with T.serial(0, size) as i, T.serial(0, i) as j:
                    one, other = T.bind(state[slot, h, i, j]), T.bind(state[slot, h, j, i])
                    T.buffer_store(state, other, [slot, h, i, j])
                    T.buffer_store(state, one, [slot, h, j, i])

        with T.parallel(0, batch * heads) as bh:""",
)
"""At the end of a CPU's kernel of a matrix-valued state. A GPU's of 6 and 7 shares a head out among blocks, which could not."""


def _in_every_generation(generation: str) -> list[Fault]:
    block, layouts = "rwkv_mlc.models.block", "rwkv_mlc.quantization.layouts"
    return [
        Fault(
            "ln0 twice at decode",
            generation,
            "q0f32",
            everywhere(
                block,
                f"return {LN0}",
                f'x = {LN0}\n        if ops.phase == "decode":\n            x = {LN0}\n        return x',
            ),
            first="decode.0/blocks.0.ln0",
            role="blocks.0.ln0",
            hint="ln0 may be applied twice",
        ),
        Fault(
            "rescale of the activations only",
            generation,
            "q0f32",
            everywhere(
                block,
                CHANNEL_MIXING,
                f"{CHANNEL_MIXING}\n            from support.faults import halved\n            x = halved(ops, x)",
            ),
            first="prefill/blocks.0.ffn.residual",
            role="blocks.0.ffn.residual",
            hint="factor of 2^-1: a rescale",
        ),
        Fault(
            "mixes of key and value swapped",
            generation,
            "q4f16_1",
            everywhere(
                _models(generation),
                'w.vector(f"time_mix_{target}")',
                'w.vector("time_mix_" + {"key": "value", "value": "key"}.get(target, target))',
            ),
            first="prefill/blocks.0.att.mixed_key",
            role="blocks.0.att.mixed_key",
            hint="it is what blocks.0.att.mixed_value should be",
        ),
        Fault(
            "stale token shift at a chunk border",
            generation,
            "q0f32",
            {
                "llvm": Edit(
                    "tir_kernels.cpu.norm_shift_mix",
                    "slot = T.bind(T.cast(last_slots[t]",
                    "slot = T.bind(T.cast(first_slots[t]",
                ),
                "vulkan": Edit(
                    "tir_kernels.gpu.norm_shift_mix",
                    "T.buffer_store(out_state, last_row, [slot, at])",
                    "T.buffer_store(out_state, current[lanes], [slot, at])",
                ),
            },
            first="prefill/blocks.0.att.mixed_key",
            role="blocks.0.att.mixed_key",
            hint="after a chunk border (token 6)",
            chunk=6,
        ),
        Fault(
            "nibbles in the wrong order",
            generation,
            "q4f16_1",
            {
                "llvm": Edit(
                    layouts,
                    ROW_BLOCKS,
                    '    if array.dtype == "uint32":\n'
                    "        array = (array & 0x0F0F0F0F) << 4 | array >> 4 & 0x0F0F0F0F\n"
                    f"{ROW_BLOCKS}",
                    compiled=False,
                ),
                "vulkan": Edit(
                    "tir_kernels.gpu.product", "bit = index * form.bits", "index ^= 1\n    bit = index * form.bits"
                ),
            },
            first="prefill/blocks.0.att.key",
            role="blocks.0.att.key",
            hint="the nibbles of each byte in the wrong order",
        ),
        Fault(
            "scales of the neighboring group",
            generation,
            "q4f16_1",
            {
                "llvm": Edit(
                    layouts,
                    ROW_BLOCKS,
                    f'    array = np.roll(array, -1, 1) if array.dtype == "float16" else array\n{ROW_BLOCKS}',
                    compiled=False,
                ),
                "vulkan": Edit(
                    "tir_kernels.gpu.gemm",
                    "q_scale[last_or(n), chunk * depth // form.group]",
                    "q_scale[last_or(n), (chunk * depth // form.group + 1) % form.groups(columns)]",
                ),
            },
            first="prefill/blocks.0.att.key",
            role="blocks.0.att.key",
            hint="the scales of the next group",
        ),
        Fault(
            "integer sums in 16 bits",
            generation,
            "q4f16_1",
            {
                "llvm": Edit(
                    "tir_kernels.cpu.quantize_activation",
                    "low = cast(T.shift_left(sums[1], splat(T.int32(BASE_BITS), LANES)) + sums[0],",
                    "low = cast(T.cast(T.shift_left(sums[1], splat(T.int32(BASE_BITS), LANES)) + sums[0], 'int16x16'),",
                )
            },
            first="prefill/logits",
            role="logits",
            integer_dot=True,
        ),
        Fault(
            "sums in float16",
            generation,
            "q0f32",
            {
                "vulkan": Edit(
                    "tir_kernels.gpu.gemm",
                    "acc[m, n] + left[m] * right[n]",
                    'T.cast(T.cast(acc[m, n] + left[m] * right[n], "float16"), "float32")',
                )
            },
            first="prefill/blocks.0.att.key",
            role="blocks.0.att.key",
        ),
    ]


def _of_6() -> list[Fault]:
    model = "rwkv_mlc.models.rwkv6"
    return [
        Fault(
            "five mixes in another order",
            "6",
            "q0f32",
            everywhere(
                model,
                'mixes = {target: w.vector(f"time_maa_{target}") for target in TARGETS}',
                'order = ("receptance", "key", "value", "gate", "decay")\n'
                '        mixes = dict(zip(order, (w.vector(f"time_maa_{target}") for target in TARGETS)))',
            ),
            first="prefill/blocks.0.att.mixed_decay",
            role="blocks.0.att.mixed_decay",
            hint="it is what blocks.0.att.mixed_gate should be",
        ),
        Fault(
            "mixes of a token without their tanh",
            "6",
            "q0f32",
            everywhere(model, 'w.matrix("time_maa_w1"), "tanh")', 'w.matrix("time_maa_w1"), None)'),
            first="prefill/blocks.0.att.mixed_decay",
            role="blocks.0.att.time_maa_w1_tanh",
        ),
        Fault(
            "mixes of a token alone",
            "6",
            "q0f32",
            {
                "llvm": Edit("tir_kernels.cpu.expand_mix", "change * (start + y)", "change * y"),
                "vulkan": Edit("tir_kernels.gpu.expand_mix", "(mixes[j][0, 0, channel] + mine)", "mine"),
            },
            first="prefill/blocks.0.att.mixed_decay",
            role="blocks.0.att.mixed_decay",
        ),
        Fault(
            "decay without its tanh",
            "6",
            "q0f32",
            everywhere(model, 'w.matrix("time_decay_w1"), "tanh")', 'w.matrix("time_decay_w1"), None)'),
            first="prefill/blocks.0.att.decay",
            role="blocks.0.att.time_decay_w1_tanh",
        ),
        Fault(
            "decay without its second exp",
            "6",
            "q0f32",
            everywhere(
                "tir_kernels.activations",
                "return exp(constant(0.0, width) - exp(x, width), width)",
                "return exp(x, width)",
            ),
            first="prefill/blocks.0.att.decay",
            role="blocks.0.att.decay",
            hint="exp(-exp(w)) became exp(w)",
        ),
        Fault(
            "bonus added after the update",
            "6",
            "q0f32",
            {
                "llvm": Edit(
                    "tir_kernels.cpu.wkv6",
                    "(s + splat(u[vh, vk], width) * kv)",
                    "(s * splat(w[0, at, vh * size + vk], width) + kv + splat(u[vh, vk], width) * kv)",
                ),
                "vulkan": Edit(
                    "tir_kernels.gpu.wkv6",
                    "(s[j] + bonus[j] * kv[j])",
                    "(s[j] * decay[j] + kv[j] + bonus[j] * kv[j])",
                ),
            },
            first="prefill/blocks.0.att.wkv",
            role="blocks.0.att.wkv",
            hint="the state is read after its update",
        ),
    ]


def _of_7() -> list[Fault]:
    model, activations, wkv = "rwkv_mlc.models.rwkv7", "tir_kernels.activations", "blocks.0.att.wkv"

    def in_wkv(name: str, cpu: tuple[str, str], gpu: tuple[str, str], first: str = wkv, hint: str | None = None):
        edits = {"llvm": Edit("tir_kernels.cpu.wkv7", *cpu), "vulkan": Edit("tir_kernels.gpu.wkv7", *gpu)}
        return Fault(name, "7", "q0f32", edits, f"prefill/{first}", first, hint)

    def in_model(name: str, old: str, new: str, first: str, hint: str | None = None, **more):
        role = first.partition("/")[2]
        return Fault(name, "7", "q0f32", everywhere(model, old, new), first, more.pop("role", role), hint, **more)

    def in_decay(name: str, new: str, hint: str):
        edits = everywhere(activations, "constant(-math.exp(-0.5), width)", new)
        return Fault(name, "7", "q0f32", edits, "prefill/blocks.0.att.decay", "blocks.0.att.decay", hint)

    return [
        in_model(
            "six mixes in another order",
            'mixes = {target: w.vector(f"time_mix_{target}") for target in MIXES}',
            'order = ("receptance", "decay", "key", "value", "rate", "gate")\n'
            '        mixes = dict(zip(MIXES, (w.vector(f"time_mix_{target}") for target in order)))',
            "prefill/blocks.0.att.mixed_key",
            "it is what blocks.0.att.mixed_decay should be",
        ),
        in_decay("decay without exp(-1/2)", "constant(-1.0, width)", "lacks its factor exp(-1/2)"),
        in_decay("decay with a growing state", "constant(math.exp(-0.5), width)", "lost the minus sign"),
        Fault(
            "biases added after the activation",
            "7",
            "q0f32",
            {
                "llvm": Edit(
                    "tir_kernels.cpu.expand",
                    "y = ACTIVATIONS[product.activation](y if start is None else y + start, LANES, exp)",
                    "y = ACTIVATIONS[product.activation](y, LANES, exp)\n"
                    "                y = y if start is None else y + start",
                ),
                "vulkan": Edit(
                    "tir_kernels.gpu.expand",
                    """\
                    y = mine if bias is None else T.bind(mine + bias[0, 0, row])
                    y = ACTIVATIONS[product.activation](y, 1, exp)
""",
                    """\
                    y = ACTIVATIONS[product.activation](mine, 1, exp)
                    y = y if bias is None else y + bias[0, 0, row]
""",
                ),
            },
            first="prefill/blocks.0.att.decay",
            role="blocks.0.att.decay",
        ),
        in_wkv(
            "removed with the wrong sign",
            ("- removed * rate[j, lanes]", "+ removed * rate[j, lanes]"),
            ("- gone * removal[j]", "+ gone * removal[j]"),
            hint="agrees for the first token only",
        ),
        in_wkv(
            "rate not applied to the removal key",
            ("kk * of_head(a, j)", "kk"),
            ("(again, unit * a)", "(again, unit)"),
            hint="agrees for the first token only",
        ),
        in_wkv(
            "state read before its update",
            ("read + new * of_row(r, j)", "read + s[j] * of_row(r, j)"),
            (
                """\
                    for j in range(keys):
                        T.buffer_store(s, s[j] * decay[j] - gone * removal[j] + value * addition[j], [j])
                    T.buffer_store(read, total([s[j] * asked[j] for j in range(keys)]), [token, row, part])
""",
                """\
                    T.buffer_store(read, total([s[j] * asked[j] for j in range(keys)]), [token, row, part])
                    for j in range(keys):
                        T.buffer_store(s, s[j] * decay[j] - gone * removal[j] + value * addition[j], [j])
""",
            ),
            hint="the state is read before its update",
        ),
        in_wkv(
            "bonus of the key as it was",
            ("of_head(r, j) * new * r_k[h, own]", "of_head(r, j) * given * r_k[h, own]"),
            (
                """added, a, r * r_k[h, keys])

                    each(size, lane, lanes, wide, vector)

                def add_up() -> None:
                    for i in range(2):
                        T.buffer_store(acc, T.float32(0.0), [i])

                    def add(_, removes, adds, _a, reads) -> None:
                        for i, products in enumerate((removes * removes, reads * adds)):""",
                """added, a, r * r_k[h, keys] * k)

                    each(size, lane, lanes, wide, vector)

                def add_up() -> None:
                    for i in range(2):
                        T.buffer_store(acc, T.float32(0.0), [i])

                    def add(_, removes, adds, _a, reads) -> None:
                        for i, products in enumerate((removes * removes, reads)):""",
            ),
            first="blocks.0.att.bonus",
        ),
        Fault(
            "state transposed after prefill",
            "7",
            "q0f32",
            {"llvm": Edit("tir_kernels.cpu.wkv7", *TRANSPOSED_AFTER_PREFILL)},
            first="prefill/blocks.0.state.att_kv",
            role="blocks.0.state.att_kv",
            hint="after a transpose of the last two axes",
        ),
        in_model(
            "first layer's values left out of decoding",
            "[first, *share]",
            '[v if ops.phase == "decode" else first, *share]',
            "decode.0/blocks.1.att.wkv",
            "it agrees in prefill and not in decode",
        ),
        in_model(
            "values of the layer before for the first's",
            "first = value if first is None else first",
            "first = value",
            "prefill/blocks.2.att.wkv",
            "the values of blocks.1 take the place of the first layer's",
            layers=3,
        ),
        Fault(
            "group norm over all heads",
            "7",
            "q0f32",
            ONE_GROUP,
            first="prefill/blocks.0.att.gated",
            role="blocks.0.att.ln_x",
            hint="all heads together as one group",
        ),
        in_model(
            "bonus left out",
            "config.group_norm_epsilon, gate, bonus)",
            "config.group_norm_epsilon, gate)",
            "prefill/blocks.0.att.gated",
            "the bonus is not added",
        ),
        Fault(
            "table row of the next token",
            "7a",
            "q0f32",
            {
                "llvm": Edit(
                    "tir_kernels.cpu.token_matrix", 'T.cast(tokens[t], "int64")', 'T.cast(tokens[t] + 1, "int64")'
                ),
                "vulkan": Edit("tir_kernels.gpu.token_matrix", "T.min(tokens[t],", "T.min(tokens[t] + 1,"),
            },
            first="prefill/blocks.0.ffn.s_emb",
            role="blocks.0.ffn.s_emb",
        ),
        Fault(
            "scale without s0",
            "7a",
            "q0f32",
            everywhere(model, 'w.matrix("s2"), w.vector("s0"), None)', 'w.matrix("s2"), None, None)'),
            first="prefill/blocks.0.ffn.scaled",
            role="blocks.0.ffn.scale",
            hint="s0 is not added",
        ),
    ]


FAULTS = [
    *_in_every_generation("4"),
    Fault(
        "numerator and denominator swapped in the state",
        "4",
        "q0f32",
        on_each(
            "wkv4",
            "for i, target in enumerate(out_state):",
            "for i, target in ((1, out_state[0]), (0, out_state[1]), (2, out_state[2])):",
        ),
        first="prefill/blocks.0.state.att_a",
        role="blocks.0.state.att_a",
        hint="it is what blocks.0.state.att_b should be",
    ),
    Fault(
        "decay without its exp",
        "4",
        "q0f32",
        everywhere("rwkv_mlc.models.rwkv4", "lambda w: -np.exp(w)", "lambda w: w", False),
        first="prefill/blocks.0.att.gated",
        role="blocks.0.att.wkv",
        hint="agrees for the first two tokens only: the decay",
    ),
    Fault(
        "state read after its decay",
        "4",
        "q0f32",
        {
            "llvm": Edit("tir_kernels.cpu.wkv4", "b_, p), current", "b_, T.bind(p + w[channel])), current"),
            "vulkan": Edit("tir_kernels.gpu.wkv4", "b_, p), current", "b_, T.bind(p + w[vc])), current"),
        },
        first="prefill/blocks.0.att.gated",
        role="blocks.0.att.wkv",
        hint="agrees for the first token only",
    ),
    *_in_every_generation("5.2"),
    Fault(
        "state transposed after prefill",
        "5.2",
        "q0f32",
        {
            "llvm": Edit("tir_kernels.cpu.wkv5", *TRANSPOSED_AFTER_PREFILL),
            "vulkan": Edit(
                "tir_kernels.gpu.wkv5",
                "[slot, h, key_of(j), i])\n\n",
                '[slot, h, *((i, key_of(j)) if phase == "prefill" else (key_of(j), i))])\n\n',
            ),
        },
        first="prefill/blocks.0.state.att_kv",
        role="blocks.0.state.att_kv",
        hint="after a transpose of the last two axes",
    ),
    Fault(
        "group norm over all heads",
        "5.2",
        "q0f32",
        ONE_GROUP,
        first="prefill/blocks.0.att.gated",
        role="blocks.0.att.ln_x",
        hint="all heads together as one group",
    ),
    Fault(
        "epsilon of 1e-5 for 64e-5",
        "5.2",
        "q0f32",
        {
            "llvm": Edit("tir_kernels.cpu.group_norm", "group_size, width, epsilon)", "group_size, width, 1e-5)"),
            "vulkan": Edit(
                "tir_kernels.gpu.group_norm", "lanes, width, epsilon, scratch", "lanes, width, 1e-5, scratch"
            ),
        },
        first="prefill/blocks.0.att.gated",
        role="blocks.0.att.ln_x",
        hint="an epsilon of 1e-05 instead of 0.00064",
    ),
    Fault(
        "decay without its second exp",
        "5.2",
        "q0f32",
        everywhere("rwkv_mlc.models.rwkv5", "np.exp(-np.exp(by_channel(w)))", "-np.exp(by_channel(w))", False),
        first="prefill/blocks.0.att.wkv",
        role="blocks.0.att.wkv",
        hint="agrees for the first two tokens only: the decay",
    ),
    Fault(
        "bonus added after the update",
        "5.2",
        "q0f32",
        {
            "llvm": Edit(
                "tir_kernels.cpu.wkv5",
                "(s + splat(u[vh, vk], width) * kv)",
                "(s * splat(w[vh, vk], width) + kv + splat(u[vh, vk], width) * kv)",
            ),
            "vulkan": Edit("tir_kernels.gpu.wkv5", "* kv), [0])", "* kv + kv), [0])"),
        },
        first="prefill/blocks.0.att.wkv",
        role="blocks.0.att.wkv",
        hint="the state is read after its update",
    ),
    *_of_6(),
    *_of_7(),
    _inside(
        "ln1 without its bias",
        "4",
        Edit(
            "rwkv_mlc.models.block",
            'norm(f"{block}.ln1", f"{source}.ln1", c) +',
            "[Parameter(p.name, p.source, p.shape, p.role, p.part, p.drawn, lambda w: w * (w > 0.5)) for p in "
            'norm(f"{block}.ln1", f"{source}.ln1", c)] +',
            False,
        ),
        "prefill/blocks.0.ln1",
    ),
    _inside(
        "value of channel mixing halved",
        "5.2",
        Edit(
            "rwkv_mlc.models.block", '"channel_mixing_value", halvings,', '"channel_mixing_value", halvings + 1,', False
        ),
        "prefill/blocks.0.ffn.value",
    ),
    _inside(
        "output of time mixing halved",
        "5.2",
        Edit("rwkv_mlc.models.rwkv5", '"time_mixing_output", halvings)', '"time_mixing_output", halvings + 1)', False),
        "prefill/blocks.0.att.output",
    ),
]


def halved(ops: KernelOps, x):
    """x / 2 under the name of x."""
    kernel = {"cpu": halve_on_cpu, "gpu": halve_on_gpu}[ops.target.device](ops.config.hidden_size)
    return ops.call(kernel, [x], [x.ty.shape], [ops.names[x]])[0]


@contextmanager
def injected(edit: Edit) -> Iterator[None]:
    """While the body runs, the edited functions do what the edit says: in place, wherever they were imported to."""
    originals = _changed(edit)
    saved = [(function, function.__code__) for function, _ in originals]
    forget_kernels()
    try:
        for function, code in originals:
            function.__code__ = code
        yield
    finally:
        for function, code in saved:
            function.__code__ = code
        forget_kernels()


def _changed(edit: Edit) -> list[tuple[FunctionType, object]]:
    """The module's functions with the code that they have after the edit."""
    module = importlib.import_module(edit.module)
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(edit.old) == 1, f"{edit.module} has {edit.old!r} {source.count(edit.old)} times"
    edited = ModuleType(module.__name__)
    edited.__package__ = module.__package__
    exec(compile(source.replace(edit.old, edit.new), module.__file__, "exec"), vars(edited))
    functions = _functions(module)
    return [(functions[name], function.__code__) for name, function in _functions(edited).items() if name in functions]


def _functions(module: ModuleType) -> dict[str, FunctionType]:
    """Those that the module and its classes define, without their caches."""
    found = {name: inspect.unwrap(value) for name, value in vars(module).items() if callable(value)}
    own = {name: value for name, value in found.items() if getattr(value, "__module__", None) == module.__name__}
    for name, kind in list(own.items()):
        if inspect.isclass(kind):
            own |= {f"{name}.{method}": value for method, value in vars(kind).items()}
    return {name: value for name, value in own.items() if inspect.isfunction(value)}


def forget_kernels() -> None:
    """Empty the caches of all kernel factories."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tir_kernels"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
