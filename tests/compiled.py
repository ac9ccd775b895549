"""Checkpoints compiled for this machine, each library once a test run, beside the weights that it computes with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from rwkv_mlc import reference
from rwkv_mlc.compiler.graph import build_module
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import CompileTarget, resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.runner import Runner, State
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import Scheme, get_scheme
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor


def in_memory(tensors: dict[str, np.ndarray]) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, str(a.dtype), lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint("synthetic", "memory", "synthetic", lazy)


def compile_library(config: RWKVConfig, scheme: Scheme, target: CompileTarget, folder: Path) -> Path:
    """The library in ``folder``, compiled where no process of this test run has done so yet."""
    key = repr((config, scheme, target)).encode()
    path = folder / f"{config.model_type}-{scheme.name}-{hashlib.sha256(key).hexdigest()[:12]}.so"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            export_library(compile_module(build_module(config, scheme, target), target), target, path)
    return path


@dataclass(frozen=True)
class Model:
    """``parameters`` are the dequantised ones, float64: what the library should compute with."""

    config: RWKVConfig
    parameters: dict[str, np.ndarray]
    runner: Runner

    @classmethod
    def of(cls, checkpoint: Checkpoint, scheme_name: str, folder: Path, mcpu: str | None = None) -> Model:
        scheme, (config, parameters, tensors) = get_scheme(scheme_name), resolve(checkpoint)
        stored, dequantized = {}, {}
        for parameter in parameters:
            arrays = scheme.quantize(parameter, parameter.convert(tensors[parameter.source].read()))
            dequantized[parameter.name] = scheme.dequantize(parameter, arrays).astype(np.float64)
            stored |= arrays
        library = compile_library(config, scheme, resolve_target("llvm", mcpu), folder)
        return cls(config, dequantized, Runner(library, stored))

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


def conditioning(model: Model, tokens: list[int], relative: float = 1e-6) -> float:
    """How much the logits, as parts of their largest magnitude, change for a relative change of 1 in every weight of
    every matrix, independently (float64). Rounding errors of the products are multiplied by it."""
    rng = np.random.default_rng(0)
    matrices = {p for p, array in model.parameters.items() if array.ndim == 2 and p.endswith(".weight")}
    moved = {
        name: array * (1 + relative * rng.normal(size=array.shape)) if name in matrices else array
        for name, array in model.parameters.items()
    }
    expected = model.reference(tokens)
    change = reference.forward(model.config, moved, tokens)[0] - expected
    return float(np.abs(change).max() / np.abs(expected).max() / relative)
