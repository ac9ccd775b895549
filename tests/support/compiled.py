"""Checkpoints compiled, each library once a test run, beside the weights that it computes with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tvm
from filelock import FileLock

from rwkv_mlc import reference
from rwkv_mlc.compiler import pipeline
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import CompileTarget, resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.runner import Runner, State
from rwkv_mlc.graph.ops.kernels import KernelOps
from rwkv_mlc.interfaces import native
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import ModelOptions, resolve
from rwkv_mlc.quantization.schemes import Scheme, get_scheme
from rwkv_mlc.schema import Family
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor
from support.vulkan_kernels import vulkan_device

QUICK = "llvm -opt-level=0"
"""This machine's CPU, where the subject is not what LLVM makes of the kernels: its work is more than half of a build."""


def resolve_quickly(name: str) -> CompileTarget:
    """A GPU's target whose host code is not optimized: it only starts kernels. A CPU's as it is."""
    kind, target = name.partition(" ")[0], resolve_target(name)
    if target.device == "cpu":
        return target
    host = {"kind": "llvm", "mtriple": target.triple, "opt-level": 0}
    architecture = {"arch": "sm_80"} if kind == "cuda" else {}
    return resolve_target(json.dumps({"kind": kind, "host": host, **architecture}))


def in_memory(tensors: dict[str, np.ndarray]) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, str(a.dtype), lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint("synthetic", "memory", "synthetic", lazy)


@contextmanager
def only(functions: Collection[str]) -> Iterator[None]:
    """Modules built meanwhile have these functions of the model and none that chooses tokens or measures the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "FUNCTIONS", {name: native.FUNCTIONS[name] for name in functions})
        patch.setattr(KernelOps, "add_function", lambda *_: None)
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Modules compiled meanwhile have kernels that do not look at the shapes and types of their arguments, as all others do
    on every call. A ``Runner`` has checked what it gives them, and their checks are a fifth to a third of LLVM's and of a
    build's work."""

    def without_checks(plain: bool = False) -> tvm.transform.PassContext:
        usual = lowering(plain)
        config = {**usual.config, "tirx.disable_assert": True}
        return tvm.transform.PassContext(config=config, disabled_pass=usual.disabled_pass)

    lowering = pipeline.lowering
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "lowering", without_checks)
        yield


def compile_library(
    config: RWKVConfig,
    scheme: Scheme,
    target: CompileTarget,
    folder: Path,
    functions: Collection[str] = native.FUNCTIONS,
    family: Family = "fused",
) -> Path:
    """The library in ``folder`` with the ``functions`` of the model that a test calls, compiled where no process of this test
    run has done so yet."""
    key = repr((config, scheme, target, sorted(functions), family)).encode()
    path = folder / f"rwkv{config.generation}-{scheme.name}-{hashlib.sha256(key).hexdigest()[:12]}.so"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with only(functions):
                module = build_module(config, scheme, target, family=family)
            with unchecked():
                executable = compile_module(module, target)
            export_library(executable, target, path)
    return path


def runner_for(target: str) -> Callable[[Path, dict[str, np.ndarray]], Runner]:
    """What runs a library for ``llvm`` or ``vulkan`` on a device of this machine; skips the test where there is none."""
    match target.partition(" ")[0]:
        case "llvm":
            return Runner
        case "vulkan":
            return partial(Runner, device=vulkan_device())
    raise ValueError(f"no device for {target}")


@dataclass(frozen=True)
class Model:
    """``parameters`` are the dequantized ones, float64: what the library should compute with."""

    config: RWKVConfig
    parameters: dict[str, np.ndarray]
    runner: Runner

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        scheme_name: str,
        folder: Path,
        target: str = "llvm",
        runner: Callable[[Path, dict[str, np.ndarray]], Runner] = Runner,
        options: ModelOptions = ModelOptions(),
        functions: Collection[str] = native.FUNCTIONS,
        family: Family = "fused",
    ) -> Model:
        scheme, (config, parameters, tensors) = get_scheme(scheme_name), resolve(checkpoint, options)
        stored, dequantized = {}, {}
        for parameter in parameters:
            arrays = scheme.quantize(parameter, parameter.convert(tensors[parameter.source].read()))
            dequantized[parameter.name] = scheme.dequantize(parameter, arrays).astype(np.float64)
            stored |= arrays
        library = compile_library(config, scheme, resolve_quickly(target), folder, functions, family)
        return cls(config, dequantized, runner(library, stored))

    def reference(self, tokens: list[int]) -> np.ndarray:
        """Float64 logits [T, V]."""
        return reference.forward(self.config, self.parameters, tokens)[0]

    def score(self, tokens: list[int], state: State | None = None, chunk: int | None = None) -> np.ndarray:
        """Logits [T, V] of the kernels for many tokens, ``chunk`` tokens a call."""
        state, chunk = state or self.runner.new_state(), chunk or len(tokens)
        pieces = [tokens[start : start + chunk] for start in range(0, len(tokens), chunk)]
        return np.concatenate([self.runner.run("score", [piece], state) for piece in pieces])

    def decode(self, tokens: list[int], state: State | None = None) -> np.ndarray:
        """Logits [T, V] of the kernels for single tokens."""
        state = state or self.runner.new_state()
        return np.concatenate([self.runner.run("decode", [[token]], state) for token in tokens])


def conditioning(model: Model, tokens: list[int], draws: int = 3) -> float:
    """How many times more the logits change, as parts of the largest of them, than the weights of all matrices, each
    changed at random by a small part of itself (float64; the largest of some draws). Rounding errors in the products
    are enlarged like that."""
    rng, relative = np.random.default_rng(0), 1e-6
    matrices = [name for name, array in model.parameters.items() if array.ndim == 2 and name.endswith(".weight")]
    expected, largest = model.reference(tokens), 0.0
    for _ in range(draws):
        noise = {name: rng.normal(size=model.parameters[name].shape) for name in matrices}
        moved = {name: model.parameters[name] * (1 + relative * noise[name]) for name in matrices}
        logits, _ = reference.forward(model.config, model.parameters | moved, tokens)
        largest = max(largest, np.abs(logits - expected).max())
    return float(largest / np.abs(expected).max() / relative)
