"""Mistakes in shaders that the checks find, the module that holds shaders, and what the Vulkan code generator refuses."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from rwkv_mlc.compiler.spirv import module
from rwkv_mlc.compiler.spirv.emitter import Emitter
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.library_format import ImportedModule, KernelModule, read_modules, rewrite_modules
from support.gpu_devices import OnVulkan, compile_ours
from support.gpu_kernels import all_kernels, check_product
from support.kernel_build import build
from support.shaders import (
    OnDevice,
    compile_kernels,
    each_element,
    in_one_block,
    reversal,
    run_kernel,
    samples,
)
from support.vulkan_kernels import vulkan_device
from support.wkv_scans import Scan, check_ragged
from tir_kernels.builder import arg, prim_func


@pytest.fixture(scope="module")
def device() -> tvm_ffi.Device:
    return vulkan_device()


@pytest.fixture
def run(device) -> Callable:
    return partial(run_kernel, device)


# The hand-written kernels


def mutate(kernel: tirx.PrimFunc, buffer: str, change: Callable[[list], list]) -> tirx.PrimFunc:
    """The kernel with other indices in the loads from a buffer."""

    def mutated(load):
        if load.source.name != buffer:
            return load
        return tirx.BufferLoad(load.source, change(list(load.indices)))

    return changed(kernel, (tvm.ir.TensorLoad, mutated))


def changed(kernel: tirx.PrimFunc, *rules: tuple[type, Callable]) -> tirx.PrimFunc:
    """The kernel with nodes of some classes replaced, at least one of them."""
    result = kernel.with_body(tvm_ffi.structural_map(kernel.body, *rules, order="post"))
    assert not tvm_ffi.structural_equal(kernel, result)
    return result


MUTATIONS = {
    "transposed state": ("state", lambda i: [i[0], i[1], i[3], i[2]]),
    "wrong index": ("k", lambda i: [i[0], i[1], T.truncmod(i[2] + 1, T.int64(24))]),
    "wrong head": ("u", lambda i: [2 - i[0], i[1]]),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_wrong_scans_fail(device, mutation):
    scan = Scan(5, 3, 8)
    kernel = mutate(scan.kernel("prefill", "gpu"), *MUTATIONS[mutation])
    with pytest.raises(AssertionError):
        check_ragged(OnDevice(compile_kernels(kernel=kernel)["kernel"], device), scan, "prefill", False)


def last_thread_first(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel with its threads counted from the other end. Lavapipe runs the first ones first, between two barriers: the
    thread that is behind in one order is ahead in the other."""

    def reverse(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is None or str(loop.thread_binding.thread_tag) != "threadIdx.x":
            return loop
        thread = loop.loop_var
        other = (tirx.Var, lambda variable: loop.extent - 1 - thread if variable.same_as(thread) else variable)
        body = tvm_ffi.structural_map(loop.body, other, order="post")
        return tirx.For(thread, loop.min, loop.extent, loop.kind, body, loop.thread_binding)

    return changed(kernel, (tirx.For, reverse))


WITH_BARRIERS = [Scan(5, 3, 8), Scan(5, 1, 64), Scan(5, 3, 6)]  # four threads a column, and two


@pytest.mark.parametrize("scan", WITH_BARRIERS, ids=str)
@pytest.mark.parametrize(
    "missing, order", [(0, lambda kernel: kernel), (1, last_thread_first)], ids=["first", "second"]
)
def test_wkv5_without_one_of_its_barriers_fails(device, monkeypatch, scan, missing, order):
    """Threads run in the order that shows it; with both barriers the kernel is right in that order too."""
    kernel = order(scan.kernel("prefill", "gpu", True))
    check_ragged(OnDevice(compile_ours(kernel=kernel)["kernel"], device), scan, "prefill", True)
    emit, seen = Emitter._barrier, []

    def all_but_one(self, scope: str) -> None:
        if len(seen) != missing:
            emit(self, scope)
        seen.append(scope)

    monkeypatch.setattr(Emitter, "_barrier", all_but_one)
    wrong = OnDevice(compile_kernels(kernel=kernel)["kernel"], device)
    assert seen == ["shared", "shared"]
    with pytest.raises(AssertionError):
        check_ragged(wrong, scan, "prefill", True)


def test_a_missing_barrier_fails(run, monkeypatch):
    """It does as long as the device runs less than 256 threads in step. TVM would put a barrier back, so the code generator
    leaves it out."""
    monkeypatch.setattr(Emitter, "_barrier", lambda self, scope: None)
    x = samples("float32", 256).reshape(1, 256)
    assert (run(reversal(), x, np.zeros_like(x)) != x[:, ::-1]).any()


@pytest.mark.parametrize("kind", ["gemv", "gemm"])
def test_products_without_barriers_fail(device, monkeypatch, kind):
    monkeypatch.setattr(Emitter, "_barrier", lambda self, scope: None)
    with pytest.raises(AssertionError):
        check_product(OnVulkan(all_kernels(), device)[f"{kind}_several_q4"], "several", "q4", 3)


# The module


def test_module_bytes_survive_a_placeholder():
    """A library's modules with a placeholder among them become those with the kernels in its place."""
    data = module.serialize({"f": shader_without_tvm()})
    host = build({"host": each_element(lambda x: x, ["float32"], "float32")}, resolve_target("vulkan").tvm).mod
    host.import_module(module.placeholder(data))
    blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(host).numpy().tobytes()
    assert ImportedModule("vulkan", data) in read_modules(rewrite_modules(blob, module.payload))
    parsed = KernelModule.parse(data)
    assert parsed.names == ("f",) and parsed.serialize() == data
    assert parsed.code["f"] == struct.pack("<IQ", 1, 2) + b"\1\2\3\4\5\6\7\x08"


def shader_without_tvm() -> module.Shader:
    return module.Shader("f", bytes(range(1, 9)), ("handle", "int64"), ("blockIdx.x",), True)


def test_other_modules_pass_through():
    other = ImportedModule("opencl", b"abc")
    assert module.payload(other) is other


def test_register_twice():
    module.register()
    module.register()
    assert resolve_target("vulkan").tvm.kind.name == "vulkan"


# What cannot be emitted


def thread_extent_of_a_shape():
    n = T.int64()
    out = arg("out", (n,), "float32")
    with T.thread_binding(0, 1, thread="blockIdx.x"), T.thread_binding(0, n, thread="threadIdx.x") as i:
        T.buffer_store(out, T.float32(0), [i])


def too_large():
    out = arg("out", (2**20, 2**11), "float32")
    in_one_block(1, lambda i: T.buffer_store(out, T.float32(0), [i, i]))


def unknown_function():
    out = arg("out", (1,), "float32")
    in_one_block(1, lambda i: T.buffer_store(out, T.call_pure_extern("float32", "lgammaf", T.float32(3)), [i]))


def global_barrier():
    out = arg("out", (1,), "float32")

    def emit(i):
        T.buffer_store(out, T.float32(0), [i])
        T.evaluate(T.tvm_storage_sync("warp"))

    in_one_block(1, emit)


def dynamic_shared_memory():
    out = arg("out", (1,), "float32")

    def emit(i):
        held = T.alloc_buffer((4,), "float32", scope="shared.dyn")
        T.buffer_store(held, T.float32(1), [i])
        T.buffer_store(out, held[i], [i])

    in_one_block(1, emit)


def too_many_threads():
    out = arg("out", (512,), "float32")
    in_one_block(512, lambda i: T.buffer_store(out, T.float32(0), [i]))


def too_much_shared_memory():
    out = arg("out", (256,), "float32")

    def emit(i):
        many, few = (T.alloc_buffer((size,), "float32", scope="shared") for size in (8192, 256))
        with T.serial(0, 32) as j:
            T.buffer_store(many, T.float32(1), [j * 256 + i])
        T.buffer_store(few, T.float32(1), [i])
        T.evaluate(T.tvm_storage_sync("shared"))
        T.buffer_store(out, many[8191 - i] + few[255 - i], [i])

    in_one_block(256, emit)


def order_of_truth_values():
    x, out = arg("x", (2,), "bool"), arg("out", (1,), "bool")
    in_one_block(1, lambda i: T.buffer_store(out, x[i] < x[i + 1], [i]))


def half_an_argument():
    n = T.int16()
    out = arg("out", (1,), "int16")
    arg("x", (n,), "float32")
    in_one_block(1, lambda i: T.buffer_store(out, n, [i]))


UNSUPPORTED = {
    too_many_threads: "512 threads a block (the target's max_num_threads is 256)",
    too_much_shared_memory: "33792 bytes of shared memory a block (the target's max_shared_memory_per_block is 16384)",
    order_of_truth_values: "LT of bool",
    half_an_argument: "an argument of type int16",
    thread_extent_of_a_shape: "threadIdx.x of dynamic extent",
    too_large: "the buffer out of 8589934592 bytes (at most 2^32 - 1)",
    unknown_function: "the call call_pure_extern of lgammaf",
    global_barrier: "a barrier over warp memory",
    dynamic_shared_memory: "shared.dyn memory",
}


@pytest.mark.parametrize("emit", UNSUPPORTED, ids=lambda emit: emit.__name__)
def test_errors_name_the_kernel_and_the_construct(emit):
    with pytest.raises(ValueError) as raised:
        compile_kernels(strange=prim_func(emit))
    message = str(raised.value).splitlines()[-1]
    assert re.fullmatch(r"The Vulkan code generator cannot emit .* in the kernel strange_kernel\.", message)
    assert UNSUPPORTED[emit] in message
