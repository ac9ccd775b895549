"""Targets a user can name, one entry each, and what the compiler has to know about them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.target import Target, codegen

from ..errors import UserError
from ..escaping import quoted, shortened
from ..graph.target import GraphTarget
from ..machine.cpu_features import REQUIRED_FEATURES, host_features
from ..machine.drivers import best_device
from ..schema import LONGEST_PREFILL_CHUNK
from .cuda import ARCHITECTURES

# Kernels by CPU features (LLVM's names), best first: ``integer_dot`` of ``tir_kernels.cpu.gemv`` and ``tile`` of
# ``tir_kernels.cpu.gemm``. Chosen by measurement on x86, by counting instructions on Arm.
CPU_KERNELS: list[tuple[set[str], str | None, tuple[int, int]]] = [
    ({"avx512vnni", "avx512bw", "avx512vl"}, "vnni", (6, 4)),
    ({"avx512bw", "avx512vl"}, "avx512", (6, 4)),
    ({"avx2", "avxvnni"}, "avxvnni", (6, 1)),
    ({"avx2"}, "avx2", (6, 1)),
    ({"avx"}, "ssse3", (6, 1)),
    ({"ssse3"}, "ssse3", (2, 1)),
    ({"neon", "i8mm"}, "usdot", (6, 1)),
    ({"neon", "dotprod"}, "sdot", (6, 1)),
    ({"neon"}, None, (6, 1)),
    (set(), None, (2, 1)),
]

NUMBER = re.compile("[0-9]{1,18}")
UNLISTED_CPUS = ("apple-m1", "apple-m2", "apple-m3")  # LLVM takes these names and does not list them


KIB = 1 << 10
SMALL_GPU = {"max_num_threads": 256, "max_threads_per_block": 256, "max_shared_memory_per_block": 16 * KIB}
LIMITS = {
    "max_num_threads": (256, 1 << 16),
    "max_threads_per_block": (256, 1 << 16),
    "max_shared_memory_per_block": (16 * KIB, 1 << 30),
    "thread_warp_size": (1, 1 << 10),
}
"""From what the kernels need to what no device exceeds."""
LARGE_GPU = {"max_num_threads": 1024, "max_threads_per_block": 1024, "thread_warp_size": 32}
MACOS, ANDROID = "arm64-apple-macos11.0", "aarch64-linux-android"


@dataclass(frozen=True, kw_only=True)
class CompileTarget(GraphTarget):
    """A resolved target.

    ``suffix`` is the library's file type. For CPUs, ``features`` are those that the code may use (LLVM's names), and
    ``integer_dot`` and ``gemm_tile`` are chosen by them (``CPU_KERNELS``). For CUDA, ``architectures`` are those of the machine
    code."""

    tvm: Target
    suffix: Literal[".so", ".dylib", ".tar"]
    features: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    @property
    def attributes(self) -> dict:
        """TVM's description of the target as JSON data."""
        return json.loads(str(self.tvm))

    @property
    def triple(self) -> str:
        """LLVM's name of the machine that loads the library: the CPU's own, or that of the GPU's host."""
        return self.attributes.get("host", self.attributes)["mtriple"]

    @property
    def converts_float16(self) -> bool:
        """Whether the device has instructions for it."""
        return self.device == "gpu" or not {"f16c", "neon"}.isdisjoint(self.features)


class NotAccepted(Exception):
    """Why TVM does not accept a target, in its words."""


def _accepted(attributes: dict, host: object = None) -> Target:
    """TVM's target, for a host that it is given as well. Raises NotAccepted, and UserError for a host that is no CPU."""
    try:
        target = Target(attributes, host=None if host is None else Target(host))
        described = json.loads(str(target))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise NotAccepted(str(error).partition(". ")[0]) from None
    if "mtriple" not in (given := described.get("host", described)):
        raise UserError(
            f"The target's host should be a CPU with an mtriple, through llvm, not {shortened(repr(given['kind']))}."
        )
    return target


def _llvm(options: dict) -> CompileTarget:
    """CPUs through LLVM: this machine's, unless ``mcpu`` or ``mtriple`` says otherwise."""
    for key, kind in (("mcpu", str), ("mtriple", str), ("mattr", list)):
        if not isinstance(options.get(key, kind()), kind):
            raise UserError(f"The target's {key} should be a {kind.__name__}, not {shortened(repr(options[key]))}.")
    attributes = {"kind": "llvm", "mtriple": codegen.llvm_get_system_triple(), **options}
    triple, mattr = attributes["mtriple"], options.get("mattr", [])
    _check_name("architecture", triple.partition("-")[0], [*codegen.llvm_get_targets(), "arm64"])
    if options.keys() & {"mcpu", "mtriple"}:
        cpus = codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": triple}))
        _check_name("CPU", attributes.get("mcpu", "generic"), [*cpus, *UNLISTED_CPUS, "generic"])
    else:
        attributes["mcpu"] = codegen.llvm_get_system_cpu()
        attributes["mattr"] = [*_host_differences(attributes), *mattr]
    target = _accepted(attributes)
    available = _cpu_features(target)
    for name in mattr:
        if not name.startswith("-") and name[1:] not in available:
            raise UserError(f"The target's mattr has {quoted(name)}; expected +feature or -feature, in LLVM's names.")
    integer_dot, gemm_tile = next((dot, tile) for features, dot, tile in CPU_KERNELS if features <= available)
    return CompileTarget(
        name="llvm",
        tvm=target,
        device="cpu",
        suffix=_suffix(triple),
        features=tuple(name for name in REQUIRED_FEATURES if name in available),
        integer_dot=integer_dot,
        gemm_tile=gemm_tile,
    )


def _check_name(what: str, name: str, known: Iterable[str]) -> None:
    known = [str(one) for one in known]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"LLVM knows no {what} {quoted(name)}{f'; did you mean {near[0]}?' if near else '; check its name.'}"
        )


def _cpu_features(target: Target) -> set[str]:
    """Raises NotAccepted for options whose values LLVM does not know."""
    try:
        return {str(name) for name in codegen.llvm_get_cpu_features(target)}
    except tvm.error.InternalError as error:
        raise NotAccepted(str(error).strip().rstrip(".")) from None


def _host_differences(attributes: dict) -> list[str]:
    """LLVM features to switch on and off, so that code for the CPU of this name runs on this very machine: a virtual
    machine may hide features that its CPU has, and a system that is older than the CPU does not know them all."""
    named = _cpu_features(Target({key: attributes[key] for key in ("kind", "mtriple", "mcpu")}))
    detected = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    reported = host_features()
    unreported = set() if reported is None else set(REQUIRED_FEATURES) - reported
    present = {str(name) for name, has in detected.items() if has} - unreported
    absent = {str(name) for name, has in detected.items() if not has} | unreported
    return [f"+{name}" for name in sorted(present - named)] + [f"-{name}" for name in sorted(absent & named)]


def _suffix(triple: str) -> Literal[".so", ".dylib", ".tar"]:
    """The file type of a library for a machine: object files for Android where there is no NDK to link them with."""
    if "android" in triple and not os.environ.get("ANDROID_NDK"):
        return ".tar"
    return ".dylib" if "apple" in triple else ".so"


def _gpu(
    options: dict, *, name: str, kind: str, limits: dict, float16_lanes: int, triple: str | None = None
) -> CompileTarget:
    """A GPU of TVM's ``kind``, for a host of any CPU: this machine's architecture, unless ``triple`` or the options' own
    ``host`` says otherwise."""
    if "mcpu" in options:
        raise UserError(f"The target {name} is no CPU; leave --mcpu out.")
    for key, (least, most) in LIMITS.items():
        value = options.get(key, least)
        if type(value) is not int or not least <= value <= most:
            found = quoted(value)
            raise UserError(f"The target's {key} should be an integer from {least} to {most}, not {found}.")
    host = options.pop("host", None) or {"kind": "llvm", "mtriple": triple or codegen.llvm_get_system_triple()}
    target = _accepted({"kind": kind, **limits, **options}, host)
    suffix = _suffix(json.loads(str(target))["host"]["mtriple"])
    return CompileTarget(name=name, tvm=target, device="gpu", suffix=suffix, float16_lanes=float16_lanes)


def _cuda(options: dict) -> CompileTarget:
    """Machine code for ``arch`` where it is given, for all of ``ARCHITECTURES`` otherwise: the code generator then keeps
    to what the oldest can do."""
    arch = options.get("arch")
    if arch is not None and not re.fullmatch("sm_[0-9]+", str(arch)):
        raise UserError(f"The target's arch should be like {ARCHITECTURES[0]}, not {quoted(arch)}.")
    limits = {**LARGE_GPU, "max_shared_memory_per_block": 48 * KIB, "arch": ARCHITECTURES[0]}
    target = _gpu(options, name="cuda", kind="cuda", limits=limits, float16_lanes=8)
    architectures = (arch,) if arch else ARCHITECTURES
    return dataclasses.replace(
        target,
        architectures=architectures,
        tensor_cores=True,
        launch_graphs=True,
        prefill_chunk=LONGEST_PREFILL_CHUNK,
    )


def _vulkan(options: dict) -> CompileTarget:
    from .spirv.module import register

    register()
    return _gpu(options, name="vulkan", kind="vulkan", limits={**SMALL_GPU, "thread_warp_size": 1}, float16_lanes=4)


def _android_cpu(options: dict) -> CompileTarget:
    """64-bit Arm, with what every core of it has; newer ones by ``mcpu`` or ``mattr``."""
    return dataclasses.replace(_llvm({"mtriple": ANDROID, **options}), name="android-cpu")


_metal_limits = {**LARGE_GPU, "max_shared_memory_per_block": 32 * KIB}
_opencl_limits = {**SMALL_GPU, "thread_warp_size": 1}

TARGETS: dict[str, Callable[[dict], CompileTarget]] = {
    "llvm": _llvm,
    "cuda": _cuda,
    "metal": functools.partial(_gpu, name="metal", kind="metal", limits=_metal_limits, float16_lanes=4, triple=MACOS),
    "vulkan": _vulkan,
    "opencl": functools.partial(_gpu, name="opencl", kind="opencl", limits=_opencl_limits, float16_lanes=8),
    "android": functools.partial(
        _gpu, name="android", kind="opencl", limits=_opencl_limits, float16_lanes=8, triple=ANDROID
    ),
    "android-cpu": _android_cpu,
}
OTHER_NAMES = {"cpu": "llvm"}
"""What targets are called elsewhere, by what resembles none of their names."""


def resolve_target(text: str, mcpu: str | None = None) -> CompileTarget:
    """The target a user named: ``auto``, a name of ``TARGETS`` with TVM options, or JSON; ``mcpu`` goes before an
    ``mcpu`` of the text, and makes ``auto`` a CPU. Raises UserError."""
    kind, options = _parse(text)
    if kind == "auto":
        device = "cpu" if mcpu else best_device()
        kind = "llvm" if device == "cpu" else device
    if kind not in TARGETS:
        name = kind.lower()
        near = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, TARGETS, 1)
        hint = f"did you mean {near[0]}? Valid" if near else "valid"
        raise UserError(f"Unknown target {quoted(kind)}; {hint} are auto, {', '.join(TARGETS)}.")
    if mcpu:
        options["mcpu"] = mcpu
    try:
        json.dumps(options, ensure_ascii=False).encode()  # TVM takes no halves of characters
        return TARGETS[kind](options)
    except UnicodeEncodeError as error:
        raise UserError(f"The target {quoted(text)} is no text ({error.reason}).") from None
    except NotAccepted as reason:
        raise UserError(f"TVM does not accept the target {quoted(text)} ({shortened(str(reason), 300)}).") from None


def _parse(text: str) -> tuple[str, dict]:
    """``llvm``, ``llvm -mcpu=NAME -mattr=+x,-y -opt-level=3`` or a TVM target as JSON."""
    if text.lstrip().startswith("{"):
        try:
            attributes = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise UserError(f"--target {quoted(text)} is not valid JSON ({error}).") from None
        return str(attributes.pop("kind", "")), attributes
    kind, *words = text.split() or [""]
    options = {}
    for word in words:
        key, separator, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not separator:
            raise UserError(f"--target {quoted(text)}: expected -key=value after the name, found {quoted(word)}.")
        options[key] = value.split(",") if key == "mattr" else int(value) if NUMBER.fullmatch(value) else value
    return kind, options
