"""The Vulkan code generator: every construct emitted, validated by spirv-val and run on a Vulkan device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import te, tirx, topi
from tvm.s_tir import dlight
from tvm.script.ir_builder import tirx as T

from rwkv_mlc.compiler.spirv import narrowing
from rwkv_mlc.compiler.spirv.arithmetic import BINARY
from rwkv_mlc.compiler.spirv.words import Capability
from rwkv_mlc.compiler.targets import resolve_target
from support.shaders import (
    BLOCK,
    capabilities,
    each_element,
    in_one_block,
    opcodes,
    reversal,
    run_kernel,
    samples,
    shader_of,
    uses_int64,
)
from support.vulkan_kernels import vulkan_device
from tir_kernels.builder import arg, prim_func
from tir_kernels.gpu.threads import barrier, registers, shared

FLOATS = ["float16", "float32"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]
DTYPES = [*FLOATS, *INTEGERS]


@pytest.fixture(scope="module")
def device() -> tvm_ffi.Device:
    return vulkan_device()


@pytest.fixture
def run(device) -> Callable:
    return partial(run_kernel, device)


# Intrinsics

erf = np.vectorize(math.erf)


def half_away(x):
    return np.trunc(x) + np.sign(x) * (np.abs(x - np.trunc(x)) >= 0.5)


# name: (kernel's function, NumPy's, lowest argument, highest argument)
UNARY = {
    "exp": (T.exp, np.exp, -20, 5),
    "exp2": (T.exp2, np.exp2, -20, 9),
    "log": (T.log, np.log, 0.01, 100),
    "log2": (T.log2, np.log2, 0.01, 100),
    "sqrt": (T.sqrt, np.sqrt, 0, 100),
    "rsqrt": (T.rsqrt, lambda x: 1 / np.sqrt(x), 0.01, 100),
    "sin": (T.sin, np.sin, -3, 3),
    "cos": (T.cos, np.cos, -3, 3),
    "tanh": (T.tanh, np.tanh, -100, 100),
    "tanh_small": (T.tanh, np.tanh, -1, 1),
    "sigmoid": (T.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -100, 100),
    "fabs": (T.fabs, np.abs, -10, 10),
    "floor": (T.floor, np.floor, -10, 10),
    "ceil": (T.ceil, np.ceil, -10, 10),
    "trunc": (T.trunc, np.trunc, -10, 10),
    "round": (T.round, half_away, -10, 10),
    "nearbyint": (T.nearbyint, np.rint, -10, 10),
    "erf": (T.erf, erf, -4, 4),
    "negative": (lambda x: -x, np.negative, -10, 10),
}
BINARY_FUNCTIONS = {
    "max": (T.max, np.maximum),
    "min": (T.min, np.minimum),
    "pow": (T.pow, np.power),
    "add": (lambda x, y: x + y, np.add),
    "sub": (lambda x, y: x - y, np.subtract),
    "mul": (lambda x, y: x * y, np.multiply),
    "div": (lambda x, y: x / y, np.divide),
}
TOLERANCE = {"float16": 4e-3, "float32": 3e-6}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_intrinsics(run, name, dtype):
    function, expected, low, high = UNARY[name]
    x = samples(dtype, low=low, high=high)
    if name in ("round", "nearbyint", "floor", "ceil", "trunc"):
        x = np.concatenate([x, np.array([-2.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5], dtype)])
        x = np.append(x, np.nextafter(np.array(0.5, dtype), np.array(0, dtype)))
    with np.errstate(over="ignore"):
        wanted = expected(x.astype(np.float64))
    result = run(each_element(function, [dtype], dtype), x, np.zeros_like(x)).astype(np.float64)
    np.testing.assert_allclose(result, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY_FUNCTIONS)
def test_binary_intrinsics(run, name, dtype):
    function, expected = BINARY_FUNCTIONS[name]
    x, y = samples(dtype, low=0.1, high=4), samples(dtype, low=-3, high=3)[::-1].copy()
    wanted = expected(x.astype(np.float64), y.astype(np.float64))
    result = run(each_element(function, [dtype] * 2, dtype), x, y, np.zeros_like(x)).astype(np.float64)
    np.testing.assert_allclose(result, wanted, rtol=4 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_whole_powers_of_negative_numbers(run, exponent):
    x = samples("float32", low=-3, high=3)
    kernel = each_element(lambda x: T.pow(x, T.float32(exponent)), ["float32"], "float32")
    np.testing.assert_allclose(run(kernel, x, np.zeros_like(x)), x**exponent, rtol=1e-6)


def test_fma_and_nan(run):
    x = np.array([1, np.nan, 3, -4], np.float32)
    kernel = each_element(
        lambda x: T.Select(T.isnan(x), T.float32(7), T.fma(x, x, T.float32(1))), ["float32"], "float32"
    )
    assert run(kernel, x, np.zeros_like(x)).tolist() == [2, 7, 10, 17]


# Types


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_arithmetic(run, dtype):
    x, y = samples(dtype, low=-100, high=100), samples(dtype, 151, low=1, high=7)[:150]

    def compute(x, y):
        quotient = T.truncmod(x, y) + T.Div(x, y)
        return (x * y - quotient) + T.max(x, y) - T.min(x, y) + ((x & y) | (x ^ y)) + (x >> y) + (x << y) + ~x

    wide_x, wide_y = x.astype(np.int64), y.astype(np.int64)
    quotient = np.trunc(wide_x / wide_y).astype(np.int64)
    expected = wide_x * wide_y - (np.fmod(wide_x, wide_y) + quotient) + np.maximum(wide_x, wide_y)
    expected += -np.minimum(wide_x, wide_y) + ((wide_x & wide_y) | (wide_x ^ wide_y)) + (wide_x >> wide_y)
    expected += (wide_x << wide_y) + ~wide_x
    result = run(each_element(compute, [dtype] * 2, dtype), x, y, np.zeros_like(x))
    assert result.tolist() == expected.astype(dtype).tolist()


@pytest.mark.parametrize("source", DTYPES)
def test_casts(run, source):
    """Every type is cast to all others."""
    x = samples(source, low=-100, high=100)
    for target in DTYPES:
        values = np.abs(x) if np.dtype(source).kind == "f" and np.dtype(target).kind == "u" else x
        kernel = each_element(lambda x: tirx.Cast(target, x), [source], target)
        assert run(kernel, values, np.zeros(len(x), target)).tolist() == values.astype(target).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_truth_values(run, dtype):
    x, y = samples(dtype, low=0, high=4), samples(dtype, 151, low=0, high=4)[:150]

    def compute(x, y, z):
        return T.Or(T.And(x < y, T.Not(z)), T.And(T.Or(x == y, x != tirx.const(1, dtype)), x >= y)) == z

    z = samples("int8", 152, low=0, high=2)[:150].astype(bool)
    expected = (((x < y) & ~z) | (((x == y) | (x != 1)) & (x >= y))) == z
    result = run(each_element(compute, [dtype] * 2 + ["bool"], "bool"), x, y, z, np.zeros(150, bool))
    assert result.tolist() == expected.tolist()


BORDERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 5, 2**63 - 1]
BORDERS = np.array([*BORDERS, *(-x for x in BORDERS), -(2**63)], np.int64)


def test_int64_comparisons_in_divergent_branches(run):
    """The high or the low 32 bits decide, and threads of one group take different branches."""
    x, y = (np.ascontiguousarray(a.reshape(-1)) for a in np.meshgrid(BORDERS, BORDERS))

    def compute(x, y):
        bit = [
            T.Select(f, T.int32(1 << i), T.int32(0))
            for i, f in enumerate((x < y, x <= y, x > y, x >= y, x == y, x != y))
        ]
        apart = T.if_then_else(x < T.int64(0), T.if_then_else(y > x, bit[0] + bit[1], bit[2]), bit[3] + bit[4])
        return apart + bit[5] * 2 + T.cast(T.max(x, y) == x, "int32") * 128 + T.cast(T.min(x, y) == x, "int32") * 256

    bits = [(f << i) for i, f in enumerate((x < y, x <= y, x > y, x >= y, x == y, x != y))]
    expected = np.where(x < 0, np.where(y > x, bits[0] + bits[1], bits[2]), bits[3] + bits[4])
    expected = expected + bits[5] * 2 + (np.maximum(x, y) == x) * 128 + (np.minimum(x, y) == x) * 256
    result = run(each_element(compute, ["int64"] * 2, "int32"), x, y, np.zeros(len(x), np.int32))
    assert result.tolist() == expected.tolist()


def test_int64_comparisons_around_barriers(run):
    """A tree of sums by threads whose numbers come from memory, so that nothing says that they fit in 32 bits."""

    @prim_func
    def kernel():
        ids, x, out = arg("ids", (256,), "int64"), arg("x", (256,), "float32"), arg("out", (1,), "float32")
        with T.thread_binding(0, 1, thread="blockIdx.x"), T.thread_binding(0, 256, thread="threadIdx.x") as thread:
            held = T.alloc_buffer((256,), "float32", scope="shared")
            i = T.bind(ids[thread])
            T.buffer_store(held, x[i], [i])
            for stride in (128, 64, 32, 16, 8, 4, 2, 1):
                T.evaluate(T.tvm_storage_sync("shared"))
                with T.If(i < T.int64(stride)), T.Then():
                    T.buffer_store(held, held[i] + held[i + stride], [i])
            with T.If(i == T.int64(0)), T.Then():
                T.buffer_store(out, held[0], [0])

    x = samples("float32", 256)
    (total,) = run(kernel, np.arange(256), x, np.zeros(1, np.float32))
    np.testing.assert_allclose(total, x.sum(dtype=np.float64), rtol=1e-5)


def test_int64_arithmetic_beyond_32_bits(run):
    x = np.concatenate([BORDERS, samples("int64", low=-(2**40), high=2**40)])

    def compute(x):
        return (x * T.int64(3) + T.int64(2**35)) ^ (T.Div(x, T.int64(7)) << T.int64(2)) ^ (x >> T.int64(33)) ^ x

    with np.errstate(over="ignore"):
        quotient = np.array([abs(int(v)) // 7 * (1 if v >= 0 else -1) for v in x], np.int64)
        expected = (x * 3 + 2**35) ^ (quotient << 2) ^ (x >> 33) ^ x
    assert run(each_element(compute, ["int64"], "int64"), x, np.zeros_like(x)).tolist() == expected.tolist()


def test_grids_of_more_blocks_than_32_bits_count(run):
    """A shape says how many blocks there are: one for each row, which has no elements."""

    @prim_func
    def kernel():
        n, m = T.int64(), T.int64()
        x, out = arg("x", (n, m), "float32"), arg("out", (1,), "float32")
        with T.thread_binding(0, n, thread="blockIdx.x") as block, T.thread_binding(0, 1, thread="threadIdx.x"):
            T.buffer_store(out, T.if_then_else(m > 0, x[block, 0], T.float32(7)), [0])

    out = np.zeros(1, np.float32)
    assert run(kernel, np.zeros((3, 0), np.float32), out).tolist() == [7]
    with pytest.raises(
        ValueError, match=f"the kernel kernel_kernel: it launches .* blocks along x and not {2**32 + 3}"
    ):
        run(kernel, np.zeros((2**32 + 3, 0), np.float32), out)


# Vectors


@pytest.mark.parametrize("lanes", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint32", "int8"])
def test_vectors(run, dtype, lanes):
    """Where all vectors are aligned, memory is loaded four lanes at a time."""

    @prim_func
    def kernel():
        x, out = arg("x", (BLOCK * lanes,), dtype), arg("out", (BLOCK * lanes,), dtype)

        def emit(i):
            at = T.ramp(i * lanes, 1, lanes)
            T.buffer_store(out, x[at] * T.broadcast(tirx.const(3, dtype), lanes) + x[at], [at])

        in_one_block(BLOCK, emit)

    x = samples(dtype, BLOCK * lanes, low=0, high=30)
    assert run(kernel, x, np.zeros_like(x)).tolist() == (x * x.dtype.type(3) + x).tolist()
    width = min(lanes, 4)
    assert any(op == 23 and operands[2] == width for op, operands in opcodes(shader_of(kernel)))  # OpTypeVector


def test_vectors_and_scalars_of_one_buffer(run):
    """Such a buffer is accessed lane by lane, without a vector type."""

    @prim_func
    def kernel():
        x, out = arg("x", (4 * BLOCK + 1,), "float32"), arg("out", (4 * BLOCK,), "float32")

        def emit(i):
            at = T.ramp(i * 4, 1, 4)
            T.buffer_store(
                out, x[at] + T.broadcast(x[4 * BLOCK], 4) + x[T.ramp(i, 0, 4)] * x[T.ramp(i * 4, 2, 4) // 2], [at]
            )

        in_one_block(BLOCK, emit)

    x = samples("float32", 4 * BLOCK + 1)
    i = np.arange(4 * BLOCK)
    expected = x[i] + x[-1] + x[i // 4] * x[(i // 4 * 4 + i % 4 * 2) // 2]
    np.testing.assert_allclose(run(kernel, x, np.zeros(4 * BLOCK, np.float32)), expected, rtol=1e-6)


@pytest.mark.parametrize("source, target", [*itertools.product(["uint32", "float16", "uint8", "int64"], repeat=2)])
def test_reinterpret(run, source, target):
    """16 bytes of one type are read as another."""
    lanes = [16 // np.dtype(dtype).itemsize for dtype in (source, target)]

    @prim_func
    def kernel():
        x, out = arg("x", (BLOCK * lanes[0],), source), arg("out", (BLOCK * lanes[1],), target)

        def emit(i):
            value = T.reinterpret(x[T.ramp(i * lanes[0], 1, lanes[0])], dtype=f"{target}x{lanes[1]}")
            T.buffer_store(out, value, [T.ramp(i * lanes[1], 1, lanes[1])])

        in_one_block(BLOCK, emit)

    x = np.random.default_rng(0).integers(0, 0x3C, 16 * BLOCK, np.uint8).view(source)
    assert run(kernel, x, np.zeros(BLOCK * lanes[1], target)).tobytes() == x.tobytes()


def test_shuffles(run):
    @prim_func
    def kernel():
        x, out = arg("x", (4 * BLOCK,), "float32"), arg("out", (4 * BLOCK,), "float32")

        def emit(i):
            at = T.ramp(i * 4, 1, 4)
            v = T.bind(x[at])
            sums = T.vectorlow("float32x2", v) + T.vectorhigh("float32x2", v)
            T.buffer_store(out, T.Shuffle([v, sums], [3, 0, 4, 5]), [at])

        in_one_block(BLOCK, emit)

    x = samples("float32", 4 * BLOCK)
    v = x.reshape(-1, 4)
    expected = np.stack([v[:, 3], v[:, 0], v[:, 0] + v[:, 2], v[:, 1] + v[:, 3]], 1)
    np.testing.assert_array_equal(run(kernel, x, np.zeros_like(x)).reshape(-1, 4), expected)


# Devices without arithmetic of float16


def through_an_array(x):
    held = registers((4,), "float16")
    T.buffer_store(held, x, [T.ramp(0, 1, 4)])
    return T.Shuffle([held[i] for i in (1, 0, 3, 2)], [0, 1, 2, 3])


def doubled(x):
    return tirx.Cast("float16x4", tirx.Cast("float32x4", x) * T.broadcast(T.float32(2), 4))


STORED = {  # what a kernel does with four float16 at a time, and what NumPy does
    "copy": (lambda x: x, lambda x: x),
    "conversion": (doubled, lambda x: x * 2),
    "array": (through_an_array, lambda x: x.reshape(-1, 2)[:, ::-1].reshape(-1)),
    "constant": (
        lambda x: T.Shuffle([x, T.broadcast(T.float16(1 / 3), 4)], [0, 4, 2, 5]),
        lambda x: np.where(np.arange(len(x)) % 2, np.float16(1 / 3), x),
    ),
    "integers": (
        lambda x: tirx.Cast("float16x4", tirx.Cast("int32x4", x)),
        np.trunc,
    ),
    "selection": (
        lambda x: T.Select(x < T.broadcast(T.float16(0.1), 4), T.broadcast(T.float16(0.1), 4), x),
        lambda x: np.maximum(x, np.float16(0.1)),
    ),
}


def on_four_float16(compute: Callable) -> tirx.PrimFunc:
    @prim_func
    def kernel():
        x, out = arg("x", (4 * BLOCK,), "float16"), arg("out", (4 * BLOCK,), "float16")

        def emit(i):
            at = T.ramp(i * 4, 1, 4)
            T.buffer_store(out, compute(T.bind(x[at])), [at])

        in_one_block(BLOCK, emit)

    return kernel


@pytest.mark.parametrize("name", STORED)
def test_float16_that_is_only_stored(run, name):
    compute, expected = STORED[name]
    kernel, x = on_four_float16(compute), samples("float16", 4 * BLOCK, low=-3, high=3)
    assert capabilities(shader_of(kernel)) == {Capability.Shader, Capability.StorageBuffer16BitAccess}
    np.testing.assert_array_equal(run(kernel, x, np.zeros_like(x)), expected(x))


def test_single_float16_in_branches(run):
    kernel = each_element(lambda x, y: T.if_then_else(x < y, x, y), ["float16"] * 2, "float16")
    assert Capability.Float16 not in capabilities(shader_of(kernel))
    x, y = samples("float16"), samples("float16", 151)[:150]
    np.testing.assert_array_equal(run(kernel, x, y, np.zeros_like(x)), np.minimum(x, y))


COMPUTING = {
    "sum": lambda x: x + x,
    "largest": lambda x: T.max(x, T.broadcast(T.float16(0), 4)),
    "bits": lambda x: T.reinterpret(T.reinterpret(x, dtype="uint32x2"), dtype="float16x4"),
}


@pytest.mark.parametrize("name", COMPUTING)
def test_float16_in_arithmetic(name):
    assert Capability.Float16 in capabilities(shader_of(on_four_float16(COMPUTING[name])))


def test_float16_in_shared_memory(run):
    """Float16 is as small there as in a buffer, which takes a device that computes with it."""

    @prim_func
    def kernel():
        x, out = arg("x", (BLOCK,), "float16"), arg("out", (BLOCK,), "float16")

        def emit(i):
            held = T.alloc_buffer((BLOCK,), "float16", scope="shared")
            T.buffer_store(held, x[i], [i])
            T.evaluate(T.tvm_storage_sync("shared"))
            T.buffer_store(out, held[BLOCK - 1 - i], [i])

        in_one_block(BLOCK, emit)

    assert Capability.Float16 in capabilities(shader_of(kernel))
    x = samples("float16", BLOCK)
    np.testing.assert_array_equal(run(kernel, x, np.zeros_like(x)), x[::-1])


# Control flow


def test_while(run):
    """Threads count the steps of a Collatz sequence, each as many as its own takes."""

    @prim_func
    def kernel():
        x, out = arg("x", (BLOCK,), "int32"), arg("out", (BLOCK,), "int32")

        def emit(i):
            state = registers((2,), "int32")
            T.buffer_store(state, x[i], [0])
            T.buffer_store(state, T.int32(0), [1])
            with T.While(state[0] > 1):
                with T.If(state[0] % 2 == 0):
                    with T.Then():
                        T.buffer_store(state, state[0] // 2, [0])
                    with T.Else():
                        T.buffer_store(state, 3 * state[0] + 1, [0])
                T.buffer_store(state, state[1] + 1, [1])
            T.buffer_store(out, state[1], [i])

        in_one_block(BLOCK, emit)

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    x = np.arange(1, BLOCK + 1, dtype=np.int32)
    assert run(kernel, x, np.zeros_like(x)).tolist() == [steps(int(n)) for n in x]


@pytest.mark.parametrize("counter", ["int32", "int64"])
def test_nested_loops_of_different_lengths(run, counter):
    @prim_func
    def kernel():
        ends, out = arg("ends", (BLOCK + 1,), "int64"), arg("out", (BLOCK,), "int64")

        def emit(i):
            total = registers((1,), "int64")
            T.buffer_store(total, T.int64(0), [0])
            with T.serial(T.cast(ends[i], counter), T.cast(ends[i + 1], counter)) as j, T.serial(0, j + 1) as k:
                with T.If(T.truncmod(j + k, tirx.const(3, counter)) != 0), T.Then():
                    T.buffer_store(total, total[0] + T.cast(j * k + 1, "int64"), [0])
            T.buffer_store(out, total[0], [i])

        in_one_block(BLOCK, emit)

    ends = np.cumsum(np.r_[0, samples("int64", BLOCK, low=0, high=4)])
    expected = [sum(j * k + 1 for j in range(a, b) for k in range(j + 1) if (j + k) % 3) for a, b in pairwise(ends)]
    assert run(kernel, ends, np.zeros(BLOCK, np.int64)).tolist() == expected


def test_if_then_else_does_not_load_what_it_does_not_take(run):
    """The load past the end is in a block of its own."""

    @prim_func
    def kernel():
        n = T.int64()
        x, out = arg("x", (n,), "float32"), arg("out", (BLOCK,), "float32")
        in_one_block(
            BLOCK, lambda i: T.buffer_store(out, T.if_then_else(T.cast(i, "int64") < n, x[i], T.float32(-1)), [i])
        )

    x = samples("float32", 10)
    assert run(kernel, x, np.zeros(BLOCK, np.float32)).tolist() == [*x.tolist(), *[-1] * (BLOCK - 10)]
    instructions = opcodes(shader_of(kernel))
    (variable,) = [operands[0] for op, operands in instructions if op == 71 and operands[1:] == (33, 1)]  # its binding
    pointers = [operands[1] for op, operands in instructions if op == 66 and operands[2] == variable]
    (load,) = [at for at, (op, operands) in enumerate(instructions) if op == 61 and operands[2] in pointers]
    assert 248 in [op for op, _ in instructions[load - 3 : load]]  # OpLabel
    assert instructions[load + 1][0] == 249  # OpBranch


# Memory


def test_shared_memory(run):
    x = samples("float32", 3 * 256).reshape(3, 256)
    np.testing.assert_array_equal(run(reversal(), x, np.zeros_like(x)), x[:, ::-1])


def test_arrays_of_a_thread(run):
    """Indices are known only at run time; bool has arrays, too."""

    @prim_func
    def kernel():
        x, out = arg("x", (BLOCK, 8), "int32"), arg("out", (BLOCK, 8), "int32")

        def emit(i):
            histogram, seen = registers((8,), "int32"), registers((8,), "bool")
            with T.serial(0, 8) as j:
                T.buffer_store(histogram, T.int32(0), [j])
                T.buffer_store(seen, T.bool(False), [j])
            with T.serial(0, 8) as j:
                T.buffer_store(histogram, histogram[x[i, j]] + 1, [x[i, j]])
                T.buffer_store(seen, T.bool(True), [x[i, j]])
            with T.serial(0, 8) as j:
                T.buffer_store(out, T.Select(seen[j], histogram[j], T.int32(-1)), [i, j])

        in_one_block(BLOCK, emit)

    x = samples("int32", 8 * BLOCK, low=0, high=8).reshape(BLOCK, 8)
    counts = np.stack([np.bincount(row, minlength=8) for row in x])
    assert run(kernel, x, np.zeros_like(x)).tolist() == np.where(counts, counts, -1).tolist()


def test_arrays_of_vectors(run):
    """What TVM makes of arrays that are accessed by vectors alone, shared ones and a thread's own."""

    @prim_func
    def kernel():
        x, out = arg("x", (4 * BLOCK,), "float32"), arg("out", (4 * BLOCK,), "float32")

        def emit(i):
            own, held = registers((8,)), shared((4 * BLOCK,))
            T.buffer_store(own, x[T.ramp(4 * i, 1, 4)], [T.ramp(4, 1, 4)])
            T.buffer_store(held, own[T.ramp(4, 1, 4)], [T.ramp(4 * i, 1, 4)])
            barrier()
            T.buffer_store(out, held[T.ramp(4 * (BLOCK - 1 - i), 1, 4)], [T.ramp(4 * i, 1, 4)])

        in_one_block(BLOCK, emit)

    x = samples("float32", 4 * BLOCK)
    assert np.array_equal(run(kernel, x, np.zeros_like(x)).reshape(BLOCK, 4), x.reshape(BLOCK, 4)[::-1])


@pytest.mark.parametrize("count", [3, 16, 17, 24])
def test_scalar_arguments(run, count):
    """Up to 16 come as push constants, more in a uniform buffer."""

    @prim_func
    def kernel():
        extents = [T.int64() for _ in range(count)]
        arg("x", tuple(extents), "int8")
        out = arg("out", (count,), "int64")

        def emit(_):
            for i, extent in enumerate(extents):
                T.buffer_store(out, extent * (i + 1), [i])

        in_one_block(1, emit)

    shape = [1 + i % 2 if i < 8 else 1 for i in range(count)]
    expected = [extent * (i + 1) for i, extent in enumerate(shape)]
    assert run(kernel, np.zeros(shape, np.int8), np.zeros(count, np.int64)).tolist() == expected
    storages = {operands[2] for op, operands in opcodes(shader_of(kernel)) if op == 59}  # OpVariable
    assert ((2 in storages), (9 in storages)) == (count > 16, count <= 16)  # Uniform, PushConstant


@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 65), (33, 3)])
def test_dynamic_shapes(run, rows, columns):
    """Blocks of two dimensions transpose a matrix."""

    @prim_func
    def kernel():
        n, m = T.int64(), T.int64()
        x, out = arg("x", (n, m), "float16"), arg("out", (m, n), "float16")
        with T.thread_binding(0, (m + 7) // 8, thread="blockIdx.y") as by:
            with T.thread_binding(0, (n + 7) // 8, thread="blockIdx.x") as bx:
                with (
                    T.thread_binding(0, 8, thread="threadIdx.y") as ty,
                    T.thread_binding(0, 8, thread="threadIdx.x") as tx,
                ):
                    i, j = bx * 8 + tx, by * 8 + ty
                    with T.If(T.And(i < n, j < m)), T.Then():
                        T.buffer_store(out, x[i, j], [j, i])

    x = samples("float16", rows * columns).reshape(rows, columns)
    np.testing.assert_array_equal(run(kernel, x, np.zeros((columns, rows), np.float16)), x.T)


# Narrowing


def evaluate(name: str, x: int, y: int, dtype: np.dtype) -> int | None:
    """TIR's result, wrapped to the dtype; None where TIR leaves it open."""
    if name in ("Div", "Mod"):
        if y == 0:
            return None
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        value = quotient if name == "Div" else x - quotient * y
    elif name in ("LShift", "RShift"):
        if not 0 <= y < 8 * dtype.itemsize:
            return None
        value = x << y if name == "LShift" else x >> y
    else:
        value = {
            "Add": x + y,
            "Sub": x - y,
            "Mul": x * y,
            "BitwiseAnd": x & y,
            "BitwiseOr": x | y,
            "BitwiseXor": x ^ y,
        }[name]
    bits = 8 * dtype.itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype.kind == "i" and value >> (bits - 1) else value


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", [name for name in BINARY if name not in ("And", "Or")])
def test_no_value_leaves_its_interval(name, dtype):
    """Every operand of 8 bits is tried, in random intervals."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(0)
    low, high = narrowing.dtype_range(dtype)
    for _ in range(60):
        spans = [sorted(int(v) for v in rng.integers(low, high + 1, 2)) for _ in range(2)]
        if rng.random() < 0.5:
            spans[1] = sorted(int(v) for v in rng.integers(0, 9, 2))
        a, b = ((first, min(last, first + 12)) for first, last in spans)
        found = narrowing.interval_of(BINARY[name][dtype.kind], a, b, dtype)
        for x, y in itertools.product(range(a[0], a[1] + 1), range(b[0], b[1] + 1)):
            value = evaluate(name, x, y, dtype)
            assert value is None or found[0] <= value <= found[1], (name, a, b, x, y)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("name", [name for name in BINARY if name not in ("And", "Or")])
def test_no_value_of_64_bits_leaves_its_interval(name, dtype):
    """Operands are tried at the ends of int64, too, which mean infinity to TVM's analyzer."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(0)
    low, high = narrowing.dtype_range(dtype)
    ends = {0, 1, 5, 63, 64, 2**31, 2**32, 2**62, 2**63, 2**64 - 1} | {-1, -64, -(2**31), -(2**63)}
    values = sorted(value + i for value in ends for i in (-1, 0, 1) if low <= value + i <= high)
    for _ in range(500):
        a, b = (tuple(sorted(rng.choice(len(values), 2))) for _ in range(2))
        if rng.random() < 0.5:
            b = tuple(sorted(values.index(int(v)) for v in rng.choice([0, 1, 2, 5, 62, 63], 2)))
        found = narrowing.interval_of(
            BINARY[name][dtype.kind], (values[a[0]], values[a[1]]), (values[b[0]], values[b[1]]), dtype
        )
        for x, y in itertools.product(values[a[0] : a[1] + 1], values[b[0] : b[1] + 1]):
            value = evaluate(name, x, y, dtype)
            assert value is None or found[0] <= value <= found[1], (name, a, b, x, y)


def test_intervals_are_narrow_enough():
    """What indices are made of fits in 32 bits, with every operator."""
    int64 = np.dtype("int64")

    def interval(name: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return narrowing.interval_of(BINARY[name]["i"], a, b, int64)

    assert interval("Add", (0, 2**30), (-5, 7)) == (-5, 2**30 + 7)
    assert interval("Sub", (0, 9), (0, 127)) == (-127, 9)
    assert interval("Mul", (-3, 2**20), (128, 128)) == (-384, 2**27)
    assert interval("Div", (-9, 2**40), (2**10, 2**11)) == (0, 2**30)
    assert interval("Mod", narrowing.dtype_range(int64), (64, 64)) == (-63, 63)
    assert interval("LShift", (-7, 5), (1, 3)) == (-56, 40)
    assert interval("RShift", (-1, 2**40), (10, 40)) == (-1, 2**30)
    assert interval("BitwiseAnd", narrowing.dtype_range(int64), (0, 255)) == (0, 255)
    assert interval("BitwiseOr", (0, 100), (0, 5)) == (0, 127)
    assert interval("BitwiseXor", (-3, 100), (0, 5)) == (-128, 127)


def test_extents_are_solved_for_their_argument():
    n, m, k = tirx.Var("n", "int64"), tirx.Var("m", "int64"), tirx.Var("k", "int32")
    for extent, element_bytes, largest in [
        (n, 1, 2**32 - 1),
        (n, 4, 2**30 - 1),
        (n * 128, 2, 2**24 - 1),
        (n * 3 * 5 + 7, 4, (2**30 - 1 - 7) // 15),
        ((n + 1) * 64, 4, 2**24 - 2),
    ]:
        assert narrowing.largest_argument(extent, element_bytes) == (n, largest)
    for extent in (n * m, n * n, k, k * 4, 8 - n):
        assert narrowing.largest_argument(extent, 4) is None


def test_static_and_bounded_shapes_need_no_int64():
    def neighbors(n):
        @prim_func
        def kernel():
            x, out = arg("x", (n, 128), "float32"), arg("out", (n, 128), "float32")
            with T.thread_binding(0, n, thread="blockIdx.x") as block:
                with T.thread_binding(0, 128, thread="threadIdx.x") as thread:
                    other = T.max(block * 128 + thread - 128, T.int64(0))
                    T.buffer_store(out, x[T.Div(other, T.int64(128)), T.truncmod(other, T.int64(128))], [block, thread])

        return kernel

    assert not uses_int64(shader_of(neighbors(T.int64(1000))))
    assert not uses_int64(shader_of(neighbors(T.int64(2**23 - 1))))


def test_buffers_bound_the_arguments_that_say_their_extent(run):
    """n elements of float32 are less than 2^30, of int8 less than 2^32: comparing with n takes 32 bits, or more."""
    kernels = {dtype: each_element(lambda x: x, [dtype], dtype) for dtype in ("float32", "int8")}
    assert not uses_int64(shader_of(kernels["float32"])) and uses_int64(shader_of(kernels["int8"]))
    for dtype, kernel in kernels.items():
        x = samples(dtype, 1000)
        assert run(kernel, x, np.zeros_like(x)).tolist() == x.tolist()


def test_indices_of_bytes_stay_wide_unless_the_buffer_is_small():
    def index_widths(extent: int | None) -> set[int]:
        instructions = opcodes(shader_of(each_element(lambda x: x, ["uint8"], "uint8", extent)))
        types = {operands[0]: operands[1] for op, operands in instructions if op == 21}
        results = {operands[1]: operands[0] for op, operands in instructions if op in (43, 124, 128, 114, 113, 132)}
        return {types[results[operands[4]]] for op, operands in instructions if op == 66}

    assert index_widths(None) == {64} and index_widths(1000) == {32}


def test_division_that_may_exceed_32_bits_is_not_narrowed(run):
    """The dividend does not fit: the quotient is one of 64-bit numbers, though it fits again."""

    def compute(x):
        return T.cast(T.Div(T.cast(x, "int64") * T.int64(2**20) + T.int64(5), T.int64(2**18 + 1)), "int32")

    kernel = each_element(compute, ["int32"], "int32", 100)
    x = samples("int32", 100, low=0, high=2**20)
    expected = (x.astype(np.int64) * 2**20 + 5) // (2**18 + 1)
    assert run(kernel, x, np.zeros_like(x)).tolist() == expected.tolist()
    assert uses_int64(shader_of(kernel))


@pytest.mark.parametrize("narrowed", [True, False])
def test_a_scheduled_reduction(run, monkeypatch, narrowed):
    """TVM's own schedule of a softmax has trees of sums. Without any interval all its comparisons are of 64 bits:
    lavapipe of Mesa 22.3 computes these wrongly here unless the high and the low 32 bits are compared apart."""
    if not narrowed:
        monkeypatch.setattr(narrowing, "fits", lambda interval: False)
    x = te.placeholder((te.var("n", "int64"), tirx.IntImm("int64", 300)), "float32", "x")
    softmax = te.create_prim_func([x, topi.nn.softmax(x, -1)]).with_attr("global_symbol", "main")
    with resolve_target("vulkan").tvm:
        scheduled = dlight.ApplyDefaultSchedule(dlight.gpu.GeneralReduction())(tvm.IRModule({"main": softmax}))
    rows = samples("float32", 7 * 300, low=-5, high=5).reshape(7, 300)
    expected = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    np.testing.assert_allclose(run(scheduled["main"], rows, np.zeros_like(rows)), expected, rtol=1e-5, atol=1e-7)
