"""wkv of all generations at several sizes, and how a kernel is held to its twin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from support import kernel_twins as twins
from support.kernel_build import call, error
from tir_kernels.cpu.wkv4 import wkv4
from tir_kernels.cpu.wkv5 import wkv5
from tir_kernels.cpu.wkv6 import wkv6
from tir_kernels.cpu.wkv7 import wkv7
from tir_kernels.gpu.wkv4 import wkv4 as wkv4_on_gpu
from tir_kernels.gpu.wkv5 import wkv5 as wkv5_on_gpu
from tir_kernels.gpu.wkv6 import wkv6 as wkv6_on_gpu
from tir_kernels.gpu.wkv7 import wkv7 as wkv7_on_gpu

FACTORIES = {
    "cpu": {4: wkv4, 5: wkv5, 6: wkv6, 7: wkv7},
    "gpu": {4: wkv4_on_gpu, 5: wkv5_on_gpu, 6: wkv6_on_gpu, 7: wkv7_on_gpu},
}


@dataclass(frozen=True)
class Scan:
    """A generation at one size; ``heads`` x ``size`` channels, and heads mean nothing to generation 4."""

    generation: int
    heads: int
    size: int

    def __str__(self) -> str:
        return f"wkv{self.generation}_{self.heads}x{self.size}"

    @property
    def channels(self) -> int:
        return self.heads * self.size

    def axes(self, device: str) -> str:
        """The kinds of the axes (b, t, h, i, k) of the kernels' blocks, as far as they have them: T is a reduction, in stages
        and their steps where it runs in stages."""
        if device == "gpu" and self.generation > 5:
            return "SRRS"
        return {4: "SRS", 7: "SRSS"}.get(self.generation, "SRSSR")

    def time(self, device: str) -> range:
        """Which of the axes are of T."""
        return range(1, 3 if device == "gpu" and self.generation > 5 else 2)

    def kernel(self, phase="prefill", device="cpu", in_place=False, **options: bool) -> tirx.PrimFunc:
        sizes = (self.channels,) if self.generation == 4 else (self.heads, self.size)
        return FACTORIES[device][self.generation](*sizes, phase, in_place, **options)

    def tokens(self, rng, rows: int) -> list[np.ndarray]:
        """r, k, v, and w in generation 6; r, w, k, v, a, v_first, nu in generation 7; [T, C] each."""
        r, k, v = rng.normal([[[0.2]], [[-0.3]], [[0.4]]], 1.0, (3, rows, self.channels)).astype(np.float32)
        if self.generation in (4, 5):
            return [twins.sigmoid(r) if self.generation == 4 else r, k, v]
        w = rng.uniform(0.55, 0.999, r.shape).astype(np.float32)
        if self.generation == 6:
            return [r, k, v, w]
        first, (a, nu) = rng.normal(size=r.shape), rng.uniform(0.05, 0.95, (2, *r.shape))
        return [r, w, k, v, *(x.astype(np.float32) for x in (a, first, nu))]

    def constants(self, rng) -> list[np.ndarray]:
        """w, u; u in generation 6; k_k, k_a, r_k in generation 7."""
        heads = (self.heads, self.size)
        if self.generation == 4:
            given = [-np.exp(rng.uniform(-5, 1, self.channels)), rng.normal(0.5, 1, self.channels)]
        elif self.generation == 7:
            given = [rng.uniform(0.5, 1.2, heads), rng.uniform(0.2, 1.2, heads), rng.normal(0.1, 0.3, heads)]
        else:
            decay = [rng.uniform(0.3, 0.999, heads)] if self.generation == 5 else []
            given = [*decay, rng.normal(0.5, 1, heads)]
        return [x.astype(np.float32) for x in given]

    def states(self, rng, count: int) -> list[np.ndarray]:
        if self.generation == 4:
            b, p = rng.uniform(0.5, 3, (count, self.channels)), rng.normal(0, 2, (count, self.channels))
            states = [b * rng.normal(0.3, 1, b.shape), b, p]
        else:
            states = [rng.normal(0.3, 1, (count, self.heads, self.size, self.size))]
        return [state.astype(np.float32) for state in states]

    def fresh_states(self, count: int) -> list[np.ndarray]:
        if self.generation == 4:
            return [np.full((count, self.channels), start, np.float32) for start in (0, 0, -1e30)]
        return [np.zeros((count, self.heads, self.size, self.size), np.float32)]

    def expected(self, tokens, constants, states, lengths) -> tuple[np.ndarray, list[np.ndarray]]:
        """The twin in float64, sequence by sequence: outputs [T, C], two side by side in generation 7, and each state
        [B, ...]."""
        tokens, constants, states = ([x.astype(np.float64) for x in group] for group in (tokens, constants, states))
        twin = {4: twins.wkv4, 5: twins.wkv5, 6: twins.wkv6, 7: twins.wkv7}[self.generation]
        ends = np.cumsum(lengths)
        results = [
            twin(*(x[end - length : end] for x in tokens), *constants, *(state[b] for state in states))
            for b, (length, end) in enumerate(zip(lengths, ends))
        ]
        outs, after = zip(*results)
        if self.generation == 7:
            outs = [np.concatenate(pair, 1) for pair in outs]
        return np.concatenate(outs), [np.stack(state) for state in zip(*after)]

    def run(self, function, tokens, constants, states, ends=None, slots=None) -> tuple[np.ndarray, list[np.ndarray]]:
        """Call a kernel, in place if there are slots: outputs as ``expected`` and the states."""
        inputs = [x[None] for x in tokens] + constants
        integers = [np.array(x, np.int32) for x in (ends, slots) if x is not None]
        outs = [np.full_like(inputs[0], np.nan) for _ in range(2 if self.generation == 7 else 1)]
        outputs = [np.full_like(state, np.nan) for state in states]
        if slots is not None:
            outputs = []
            written = [*range(-len(outs), 0), *range(len(inputs), len(inputs) + len(states))]
        else:
            written = range(-len(outs) - len(states), 0)
        results = call(function, *inputs, *states, *integers, *outs, *outputs, written=written)
        return np.concatenate([out[0] for out in results[: len(outs)]], 1), results[len(outs) :]


SCANS = [
    *(Scan(4, 6, 16), Scan(4, 1, 24), Scan(4, 1, 50)),
    *(Scan(5, 2, 64), Scan(5, 3, 8), Scan(5, 3, 12), Scan(5, 2, 5), Scan(5, 1, 64)),
]
CPU_SCANS = [*SCANS, Scan(6, 2, 64), Scan(6, 3, 12), Scan(6, 2, 5), Scan(7, 2, 64), Scan(7, 3, 12), Scan(7, 2, 5)]
GPU_SCANS = [
    *(*SCANS, Scan(6, 2, 64), Scan(6, 1, 128), Scan(6, 3, 12)),
    *(Scan(7, 2, 64), Scan(7, 1, 128), Scan(7, 3, 16)),
]
FORMS = [(phase, in_place) for phase in ("prefill", "decode") for in_place in (False, True)]
LENGTHS = [5, 1, 17, 2]
SLOTS, POOL = [4, 0, 6, 2], 7


def name(scan: Scan, phase: str, in_place: bool) -> str:
    return f"{scan}_{phase}{'_in_place' if in_place else ''}"


def check_ragged(function, scan: Scan, phase: str, in_place: bool) -> None:
    """Several sequences in one call; in place, their slots are permuted in a larger pool."""
    rng = np.random.default_rng(scan.channels)
    lengths = LENGTHS if phase == "prefill" else [1] * len(LENGTHS)
    tokens, constants = scan.tokens(rng, sum(lengths)), scan.constants(rng)
    pool = scan.states(rng, POOL if in_place else len(lengths))
    slots = SLOTS if in_place else range(len(lengths))
    ends = np.cumsum(lengths) if phase == "prefill" else None
    out, states = scan.run(function, tokens, constants, pool, ends, slots if in_place else None)
    expected_out, expected_states = scan.expected(tokens, constants, [x[slots] for x in pool], lengths)
    assert error(out, expected_out) < 2e-6
    untouched = np.delete(np.arange(len(pool[0])), slots)
    for before, state, expected in zip(pool, states, expected_states):
        assert error(state[slots], expected) < 2e-6
        assert before[untouched].tobytes() == state[untouched].tobytes()


def check_forms_agree(functional, in_place, scan: Scan, phase: str) -> None:
    """The form without slots gives bit for bit what the form that updates a pool does."""
    rng = np.random.default_rng(7)
    lengths = LENGTHS if phase == "prefill" else [1] * len(LENGTHS)
    tokens, constants, pool = scan.tokens(rng, sum(lengths)), scan.constants(rng), scan.states(rng, POOL)
    ends = np.cumsum(lengths) if phase == "prefill" else None
    expected, updated = scan.run(in_place, tokens, constants, pool, ends, SLOTS)
    out, states = scan.run(functional, tokens, constants, [state[SLOTS] for state in pool], ends)
    assert out.tobytes() == expected.tobytes()
    assert all(state.tobytes() == pooled[SLOTS].tobytes() for state, pooled in zip(states, updated))
