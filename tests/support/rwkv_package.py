"""What the ``rwkv`` package computes, in a process of its own: it knows RWKV-7 or the generations before, as a switch says that
it reads when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SWITCHES = {"7": {"RWKV_V7_ON": "1"}, "7a": {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": "1"}}
DECAY = {name: 0.606531 / np.exp(-0.5) for name in SWITCHES}
"""By which the package multiplies the exponent of the decay: it has six digits of exp(-1/2)."""

PROGRAM = """
import sys, numpy as np, torch
from rwkv.model import RWKV
out, count, precision, *rest = sys.argv[1:]
if precision == "float64":
    torch.storage._storage_type_to_dtype_map()  # remembers the types by their names
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
paths, tokens, found = rest[:int(count)], [int(token) for token in rest[int(count):]], []
for path in paths:
    model = RWKV(model=path, strategy="cpu fp32")
    logits, states = model.forward(tokens, None, full_output=True)
    single, state = [], None
    for token in tokens:
        row, state = model.forward([token], state)
        single.append(row.numpy().copy())
    assert str(logits.dtype) == "torch." + precision
    found += [logits.numpy(), np.stack(single), *(s.numpy() for s in (*states, *state))]
np.savez(out, *found)
"""


@dataclass(frozen=True)
class PackageRun:
    """Logits [T, V] of the tokens at once and one by one, and the states after both."""

    logits: np.ndarray
    single: np.ndarray
    states: list[np.ndarray]
    single_states: list[np.ndarray]


def run_package(
    generation: str,
    models: Sequence[dict[str, np.ndarray]],
    tokens: Sequence[int],
    folder: Path,
    precision: str = "float32",
) -> list[PackageRun]:
    """What the package makes of ``tokens`` with each of the models' tensors, all of one generation and number of layers; in
    float64, which RWKV-7's compiled functions do not take, with torch told that its single precision is double. Skips the
    test where the package is not installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("rwkv")
    for i, tensors in enumerate(models):
        torch.save({n: torch.from_numpy(a.astype(precision)) for n, a in tensors.items()}, folder / f"{i}.pth")
    paths = [str(folder / str(i)) for i in range(len(models))]
    arguments = [str(folder / "out.npz"), str(len(models)), precision, *paths, *map(str, tokens)]
    environment = {**os.environ, "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", **SWITCHES.get(generation, {})}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    arrays = list(np.load(folder / "out.npz").values())
    each = len(arrays) // len(models)
    runs = [arrays[start : start + each] for start in range(0, len(arrays), each)]
    half = 2 + (each - 2) // 2
    return [PackageRun(run[0], run[1], run[2:half], run[half:]) for run in runs]
