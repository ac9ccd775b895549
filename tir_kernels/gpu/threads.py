"""What the GPU kernels are written in: blocks of threads that share memory.

Only what every GPU API has: at most 256 threads and 16 KiB of shared memory a block, vectors of four elements (of float16 as
many as ``float16_lanes`` says), sums through shared memory instead of subgroups, whose size differs from device to device.
Barriers stand outside every branch, and in no loop but those of which all threads of a block do the same number of steps.
``gemm_tensor_core``, for one kind of GPU, takes more.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

from tvm.script.ir_builder import tirx as T

from ..builder import cast, constant, span

THREADS = 256
RADIX = 16  # partial sums that a thread adds between two barriers
FLOAT16_MAX = 65504.0


@contextmanager
def grid(*blocks, threads: int = THREADS) -> Iterator[list]:
    """Run the body in so many threads of each of a grid of blocks: the block's indices, and the thread's."""
    frames = [T.thread_binding(0, extent, thread=f"blockIdx.{axis}") for axis, extent in zip("xyz", blocks)]
    frames.append(T.thread_binding(0, threads, thread="threadIdx.x"))
    indices = [frame.__enter__() for frame in frames]
    yield indices
    for frame in reversed(frames):
        frame.__exit__(None, None, None)


def registers(shape: tuple[int, ...], dtype: str = "float32"):
    """A small array of each thread's own."""
    return T.alloc_buffer(shape, dtype, scope="local")


def shared(shape: tuple[int, ...], dtype: str = "float32"):
    """An array that the threads of a block have in common."""
    return T.alloc_buffer(shape, dtype, scope="shared")


def barrier() -> None:
    """Wait for all threads of the block; what they wrote to shared memory can be read afterwards."""
    T.evaluate(T.tvm_storage_sync("shared"))


def threads_for(extent: int) -> int:
    """Threads that share so much work: the next power of two, but no more than a block has."""
    return min(THREADS, 1 << (extent - 1).bit_length())


def vector_of(dtype: str, extent: int, float16_lanes: int = 4) -> int:
    """Elements of the widest vector that can be loaded at every multiple of itself in rows of ``extent``."""
    return math.gcd(extent, float16_lanes if dtype == "float16" else 4)


def lanes_of(vector, width: int) -> list:
    """The lanes of a vector, float32."""
    if width == 1:
        return [T.bind(cast(vector, "float32", 1))]
    vector = T.bind(vector)
    return [cast(T.Shuffle([vector], [i]), "float32", 1) for i in range(width)]


def narrow(value, dtype: str, width: int = 1):
    """Float32 lanes as ``dtype``; what lies beyond float16's range becomes its largest value."""
    if dtype == "float32":
        return value
    most, least = constant(FLOAT16_MAX, width), constant(-FLOAT16_MAX, width)
    return cast(T.max(T.min(value, most), least), "float16", width)


def each(extent: int, thread, threads: int, width: int, emit: Callable, unrolled: bool = True) -> None:
    """Run ``emit(i, first)`` for the vectors of ``width`` among ``extent`` elements that belong to a thread: its i-th begins
    at element ``first``."""
    steps = -(-extent // (threads * width))

    def step(i):
        first = (i * threads + thread) * width
        if extent % (threads * width) == 0:
            return emit(i, first)
        with T.If(first < extent), T.Then():
            emit(i, first)

    if steps == 1:
        return step(0)
    with T.unroll(0, steps) if unrolled else T.serial(0, steps) as i:
        step(i)


def totals(values: list, thread, lanes: int, scratch, add: Callable = operator.add) -> list:
    """The sums of each value over groups of ``lanes`` threads in a row, a power of two, in every thread; or what else ``add``
    makes of two values. ``scratch`` is shared, [values, threads] of their dtype."""
    stride = 1
    while stride < lanes:
        step = min(RADIX, lanes // stride)
        for j, value in enumerate(values):
            T.buffer_store(scratch, value, [j, thread])
        barrier()
        first = T.bind(thread // (stride * step) * (stride * step) + thread % stride)
        parts = [[scratch[j, first + stride * k] for k in range(step)] for j in range(len(values))]
        values = [T.bind(reduce(add, part)) for part in parts]
        barrier()
        stride *= step
    return values


def statistics(loads: list[Callable], extent: int, thread, lanes: int, width: int, epsilon: float, scratch) -> list:
    """(mean, 1 / sqrt(variance + epsilon)) of rows of ``extent`` elements, each spread over ``lanes`` threads; ``loads[j]``
    gives the vector of ``width`` of row j from an element on. ``scratch`` as for ``totals``."""
    steps = -(-extent // (lanes * width))
    kept = [registers((steps, width)) for _ in loads]
    sums = registers((len(loads),))
    place = thread % lanes

    def averages(terms: list[Callable]) -> list:
        """The mean of ``terms[j](i, first)``, a list of values, over row j."""
        for j, term in enumerate(terms):
            T.buffer_store(sums, T.float32(0.0), [j])

            def add(i, first):
                for value in term(i, first):
                    T.buffer_store(sums, sums[j] + value, [j])

            each(extent, place, lanes, width, add)
        found = totals([sums[j] for j in range(len(loads))], thread, lanes, scratch)
        return [T.bind(total * T.float32(1.0 / extent)) for total in found]

    def elements(j: int):
        def term(i, first):
            T.buffer_store(kept[j], loads[j](first), [i, span(0, width)])
            return [kept[j][i, k] for k in range(width)]

        return term

    def squares(j: int):
        def term(i, _):
            centered = [kept[j][i, k] - means[j] for k in range(width)]
            return [value * value for value in centered]

        return term

    rows = range(len(loads))
    means = averages([elements(j) for j in rows])
    variances = averages([squares(j) for j in rows])
    scales = [T.bind(T.float32(1.0) / T.sqrt(variance + T.float32(epsilon))) for variance in variances]
    return list(zip(means, scales))


def choose(index, starts: list[int], emit: Callable) -> None:
    """Run ``emit(i)`` for the i with starts[i] <= index < starts[i + 1], the same for a whole block."""

    def among(i: int):
        if i == len(starts) - 2:
            return emit(i)
        with T.If(index < starts[i + 1]):
            with T.Then():
                emit(i)
            with T.Else():
                among(i + 1)

    among(0)


def exp(x, width: int):
    """exp(x), which is the device's function."""
    return T.exp(x)
