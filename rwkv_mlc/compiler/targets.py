"""Targets a user can name, one entry each, and what the compiler has to know about them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm.target import Target

from ..cpu_features import REQUIRED_FEATURES
from ..errors import UserError


@dataclass(frozen=True)
class CompileTarget:
    """A resolved target.

    ``name`` is the suffix of the library's file name, ``family`` the class of ``rwkv_mlc.ops`` that writes its graph,
    ``suffix`` the library's file type. ``features`` are the CPU features that the code may use (LLVM's names);
    ``integer_dot`` and ``gemm_tile`` choose kernels of ``tir_kernels.gemv`` and ``tir_kernels.gemm``."""

    name: str
    tvm: Target
    family: str
    suffix: str
    features: tuple[str, ...]
    integer_dot: str | None
    gemm_tile: tuple[int, int]

    @property
    def attributes(self) -> dict:
        """TVM's description of the target as JSON data."""
        return json.loads(str(self.tvm))


@dataclass(frozen=True)
class TargetEntry:
    """What ``--target NAME`` means; ``resolve(options)`` gets TVM target attributes that override the defaults."""

    description: str
    resolve: Callable[[dict], CompileTarget]


def _llvm(options: dict) -> CompileTarget:
    triple = options.get("mtriple") or tvm.get_global_func("target.llvm_get_system_triple")()
    attributes = {"kind": "llvm", "mtriple": triple, **options}
    if "mcpu" not in options and "mtriple" not in options:
        attributes["mcpu"] = tvm.get_global_func("target.llvm_get_system_cpu")()
    cpu = attributes.get("mcpu", "generic")
    if not tvm.get_global_func("target.llvm_is_valid_cpu")(cpu, triple):
        raise UserError(f"LLVM knows no CPU {cpu!r} for {triple}; leave --mcpu out to build for this machine.")
    target = Target(attributes)
    with target:
        available = {str(name) for name in tvm.get_global_func("target.llvm_get_cpu_features")(target)}
    features = tuple(name for name in REQUIRED_FEATURES if name in available)
    wide = {"avx512f", "avx512bw", "avx512vl"} <= available
    return CompileTarget(
        name="llvm",
        tvm=target,
        family="cpu",
        suffix=".so",
        features=features,
        integer_dot=("vnni" if "avx512vnni" in available else "avx512") if wide else None,
        gemm_tile=(6, 4) if wide else (4, 1),
    )


TARGETS: dict[str, TargetEntry] = {
    "llvm": TargetEntry("CPUs through LLVM; this machine's unless --mcpu or -mtriple says otherwise", _llvm),
}


def _parse(text: str) -> tuple[str, dict]:
    """``llvm``, ``llvm -mcpu=NAME -mtriple=NAME`` or a TVM target as JSON."""
    if text.lstrip().startswith("{"):
        try:
            attributes = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--target {text!r} is not valid JSON ({error}).") from None
        return attributes.pop("kind", ""), attributes
    kind, *words = text.split()
    options = {}
    for word in words:
        key, separator, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not separator:
            raise UserError(f"--target {text!r}: expected -key=value after the name, found {word!r}.")
        options[key] = value.split(",") if key == "mattr" else value
    return kind, options


def resolve_target(text: str, mcpu: str | None = None) -> CompileTarget:
    """The target a user named: ``auto``, a name of ``TARGETS`` with TVM options, or JSON. Raises UserError."""
    if not text.strip():
        raise UserError(f"--target is empty; valid targets are {', '.join(TARGETS)}.")
    kind, options = _parse(text)
    kind = "llvm" if kind == "auto" else kind
    if kind not in TARGETS:
        near = difflib.get_close_matches(kind, TARGETS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"Unknown target {kind!r}; valid targets are auto, {', '.join(TARGETS)}.{hint}")
    if mcpu:
        options["mcpu"] = mcpu
    try:
        return TARGETS[kind].resolve(options)
    except (ValueError, TypeError, AttributeError, KeyError, tvm.error.TVMError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"TVM does not accept the target {text!r}: {reason}") from None
