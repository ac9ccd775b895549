"""The stand-in for a CUDA device itself (``cuda_device``): threads, warps, memory, errors and graphs are as on a GPU."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from tvm.script import tirx as T

from rwkv_mlc.engine.tvm_runtime import tensor, to_numpy
from support.cuda_device import CudaOnCpu, on_cpu
from support.cuda_program import ON_DEVICE, TO_DEVICE, TO_HOST, CudaError, Program

SOURCE = """
#include <cuda.h>
#include <cuda_fp16.h>
// rwkv_mlc: device functions
#error what the device has of its own is left out
// rwkv_mlc: end of device functions

extern "C" __global__ void __launch_bounds__(1024) indices(int* out) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

extern "C" __global__ void __launch_bounds__(256) reversed(float* x, int barrier) {
  __shared__ alignas(64) float row[256];
  row[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (barrier) __syncthreads();
  x[blockIdx.x * blockDim.x + threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) from_first(float* x) {
  __shared__ float first[1];
  if (threadIdx.x == 0) first[0] = 1;
  x[threadIdx.x] = first[0];
}

extern "C" __global__ void __launch_bounds__(256) divided(float* x, int way) {
  if (way == 0 && threadIdx.x < 40) __syncthreads();
  if (way == 1) { if (threadIdx.x < 64) { __syncthreads(); } else {
    __syncthreads(); } }
  x[threadIdx.x] = 1;
}

extern "C" __global__ void __launch_bounds__(64) garbage(float* local, float* shared_) {
  __shared__ float array[64];
  float own[4];
  local[threadIdx.x] = own[threadIdx.x % 4];
  shared_[threadIdx.x] = array[63 - threadIdx.x];
  __syncthreads();
  array[threadIdx.x] = 0;
}

extern "C" __global__ void __launch_bounds__(64) beyond(float* x, int64_t index) {
  if (threadIdx.x == 5) x[index] = 1;
}

extern "C" __global__ void __launch_bounds__(64) undefined(float* x, int kind, int number) {
  float own[4] = {0, 0, 0, 0};
  if (kind == 0) *(float4*)(x + number) = *(float4*)own;
  if (kind == 1) x[0] = own[number];
  if (kind == 2) x[0] = 1 << number;
  if (kind == 3) x[0] = number + 0x7FFFFFF0;
}

extern "C" __global__ void __launch_bounds__(64) too_much(float* x) {
  __shared__ float array[12289];
  array[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = array[63 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) scale(float* x, float factor) { x[threadIdx.x] *= factor; }

// As TVM writes a kernel of one thread.
extern "C" __global__ void unbound(float* x) {
  __shared__ float array[2];
  array[0] = x[blockIdx.x * blockDim.x + threadIdx.x];
  array[1] = blockDim.x;
  x[blockIdx.x * blockDim.x + threadIdx.x] = array[0] + 1000 * array[1];
}

// [64, 16] by [32, 16] transposed, where two warps share what they have copied.
extern "C" __global__ void __launch_bounds__(64) product(half* a, half* b, float* out, int mistake) {
  __shared__ alignas(16) half left[64][16];
  __shared__ alignas(16) half right[32][16];
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int i = 0; i < 2; ++i) async_copy(&left[thread][8 * i], a + thread * 16 + 8 * i, thread != 63);
  async_commit();
  async_copy(&right[thread / 2][thread % 2 * 8], b + thread * 8, true);
  async_commit();
  async_wait(mistake == 1);
  if (mistake != 2) __syncthreads();
  for (int m = 0; m < 2; ++m)
    for (int n = 0; n < 4; ++n) {
      unsigned fragments[8];
      float sums[4] = {0, 0, 0, 100};
      load_matrices(fragments, &left[warp * 32 + m * 16 + lane % 16][lane / 16 * 8]);
      load_matrices(fragments + 4, &right[n * 8 + lane % 8][lane / 8 % 2 * 8]);
      multiply_matrices(sums, fragments, fragments + 4);
      for (int i = 0; i < 4; ++i) {
        int row = warp * 32 + m * 16 + lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
        out[row * 32 + column] = sums[i];
      }
    }
}
"""


@pytest.fixture(scope="module")
def program(cuda_device: CudaOnCpu) -> Program:
    return Program(cuda_device, SOURCE)


def test_every_thread_of_every_block_runs(program):
    for grid, block in [((3, 2, 4), (5, 4, 2)), ((2,), (1024,)), ((1,), (1,))]:
        out = np.full(np.prod(grid) * np.prod(block), -1, np.int32)
        (out,) = program.run("indices", grid, block, out)
        blocks, threads = np.divmod(np.arange(out.size), np.prod(block))
        assert np.array_equal(out, 1000 * blocks + threads)


def test_a_kernel_without_bounds(program, cuda_device):
    """As one of its own, with its own shared memory, and with the launch that it is given: CUDA bounds a block to 1024."""
    for threads in (1, 2, 1024):
        x = np.arange(3 * threads, dtype=np.float32)
        assert np.array_equal(program.run("unbound", [3], [threads], x)[0], x + 1000 * threads)
    with pytest.raises(CudaError, match=r"a block of \(1025, 1, 1\)"):
        program.run("unbound", [1], [1025], np.zeros(1025, np.float32))


@pytest.mark.parametrize(
    "source", ["", SOURCE.replace('extern "C" __global__ void unbound', "static __global__ void unbound")]
)
def test_kernels_that_nobody_would_know_are_refused(source):
    with pytest.raises(ValueError, match="kernels, of which"):
        on_cpu(source)


def test_a_kernel_of_one_thread_from_tvm(cuda_device, tmp_path):
    """Which TVM bounds to nothing: as channels of a prime number may have it."""

    @T.prim_func
    def alone(x: T.Buffer((97,), "float32"), y: T.Buffer((97,), "float32")):
        for block in T.thread_binding(97, "blockIdx.x"):
            for thread in T.thread_binding(1, "threadIdx.x"):
                y[block + thread] = x[block + thread] + T.float32(1)

    sources: list[str] = []
    built = cuda_device.build({"alone": alone}, tmp_path, lambda source: sources.append(source) or source)["alone"]
    assert "__launch_bounds__" not in sources[0] and "__global__" in sources[0]
    x = np.arange(97, dtype=np.float32)
    y = tensor(np.zeros_like(x), built.device)
    built(tensor(x, built.device), y)
    assert np.array_equal(to_numpy(y), x + 1)


def test_barriers(program):
    x = np.arange(1024, dtype=np.float32)
    for threads in (256, 200):
        (found,) = program.run("reversed", [4], [threads], x, 1)
        expected = np.concatenate([*x[: 4 * threads].reshape(4, threads)[:, ::-1], x[4 * threads :]])
        assert np.array_equal(found, expected)
    (without,) = program.run("reversed", [4], [256], x, 0)
    assert not np.array_equal(without, x.reshape(4, 256)[:, ::-1].ravel())


def test_threads_go_forwards_and_backwards(program, cuda_device):
    """So that a kernel cannot rely on either order."""
    cuda_device.schedule(0)
    forwards, backwards = (program.run("from_first", [1], [64], np.zeros(64, np.float32))[0] for _ in range(2))
    assert np.all(forwards == 1) and np.isnan(backwards[1:]).all()


@pytest.mark.parametrize(
    "way, what", [(0, "a warp is divided: thread 32 waits .*, thread 40 has"), (1, "not all threads reach a barrier: ")]
)
def test_barriers_that_not_all_threads_reach(program, cuda_device, way, what):
    with pytest.raises(CudaError, match=f"cudaErrorLaunchFailure: divided, .*: {what}"):
        cuda_device.schedule(0)
        program.run("divided", [1], [256], np.zeros(256, np.float32), way)


def test_memory_begins_as_garbage(program):
    for own, shared in [program.run("garbage", [1], [64], *np.zeros((2, 64), np.float32)) for _ in range(2)]:
        assert np.isnan(shared).all() and (~np.isfinite(own) | (np.abs(own) > 1e30)).all()
    memory = program.made("cudaMalloc", ctypes.c_size_t(4000))
    assert np.isnan(program.download(memory, np.zeros(1000, np.float32))).all()
    program.call("cudaFree", memory)


def test_what_lies_outside_of_allocations(program):
    x = np.zeros(64, np.float32)
    for index in (64, 1 << 27, -(1 << 27)):
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress: beyond, .* thread 5: illegal address"):
            program.run("beyond", [1], [64], x, index)
    for index, size in ((-70, 64), (62, 62)):
        with pytest.raises(CudaError, match="cudaErrorInvalidValue: .* damaged"):
            program.run("beyond", [1], [64], x[:size], index)
    memory = program.upload(x)
    program.call("cudaFree", memory)
    for pointer in (memory, ctypes.c_void_p(x.ctypes.data)):
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress: beyond: argument 0"):
            program.launch("beyond", [1], [64], pointer, 0)
    with pytest.raises(CudaError, match="cudaErrorInvalidValue: a copy of 256 bytes"):
        program.copy(x.ctypes.data, memory, x.nbytes, TO_HOST)
    with pytest.raises(CudaError, match="cudaErrorInvalidValue"):
        program.call("cudaFree", memory)


@pytest.mark.parametrize("kind, defined, number", [(0, 4, 2), (1, 3, 4), (2, 31, 32), (3, 15, 16)])
def test_what_is_undefined(program, kind, defined, number):
    """Vectors that are not aligned, indices beyond an array, shifts by too much, overflows."""
    program.run("undefined", [1], [1], np.zeros(64, np.float32), kind, defined)
    with pytest.raises(CudaError, match="cudaErrorIllegalInstruction: undefined, "):
        program.run("undefined", [1], [1], np.zeros(64, np.float32), kind, number)


@pytest.mark.parametrize(
    "grid, block, error",
    [
        ((0,), (64,), "cudaErrorInvalidValue"),
        ((1, 65536), (64,), "cudaErrorInvalidValue"),
        ((1, 1, 65536), (64,), "cudaErrorInvalidValue"),
        ((1,), (1025,), "cudaErrorInvalidValue"),
        ((1,), (65,), "cudaErrorLaunchOutOfResources"),
    ],
)
def test_launches_that_no_gpu_takes(program, grid, block, error):
    with pytest.raises(CudaError, match=error):
        program.run("scale", grid, block, np.zeros(64, np.float32), 2.0)


def test_shared_memory_ends(program):
    with pytest.raises(CudaError, match="too_much: 49156 bytes of shared memory"):
        program.run("too_much", [1], [64], np.zeros(64, np.float32))


def test_the_devices_memory_ends(program, cuda_device):
    before = cuda_device.counters.allocated_bytes
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation"):
        program.made("cudaMalloc", ctypes.c_size_t(1 << 40))
    assert cuda_device.counters.allocated_bytes == before


def test_tensor_cores(program, cuda_device):
    """Whatever the order of the threads, and whether copies are early or late."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 16)).astype(np.float16) for n in (64, 32))
    expected = a.astype(np.float64) @ b.astype(np.float64).T
    expected[63] = 0
    expected.reshape(4, 16, 32)[:, 8:, 1::2] += 100  # what the last of each thread's sums begins with
    for schedule in range(4):
        cuda_device.schedule(schedule)
        *_, out = program.run("product", [1], [64], a, b, np.zeros((64, 32), np.float32), 0)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mistake", [1, 2])
def test_copies_that_nobody_waits_for(program, cuda_device, mistake):
    a, b, out = np.ones((64, 16), np.float16), np.ones((32, 16), np.float16), np.zeros((64, 32), np.float32)
    cuda_device.schedule(0)
    *_, found = program.run("product", [1], [64], a, b, out, mistake)
    assert np.isnan(found).any()


def test_graphs_repeat_their_launches(program, cuda_device):
    x, stream, before = np.ones(64, np.float32), program.made("cudaStreamCreate"), cuda_device.counters.live_graphs
    memory, other = program.upload(x), program.upload(x)
    program.call("cudaStreamBeginCapture", stream, 0)
    program.launch("scale", [1], [64], memory, 3.0, stream=stream)
    program.copy(other, memory, x.nbytes, ON_DEVICE, stream)
    program.launch("scale", [1], [64], memory, 2.0, stream=stream)
    graph = program.end_capture(stream)
    assert np.array_equal(program.download(memory, x), x)
    repeated = program.made("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0))
    program.call("cudaGraphDestroy", graph)
    for times in (1, 2, 3):
        program.call("cudaGraphLaunch", repeated, None)
        assert np.array_equal(program.download(memory, x), x * 6**times)
        assert np.array_equal(program.download(other, x), x * 6**times / 2)
    program.call("cudaGraphExecDestroy", repeated)
    program.call("cudaStreamDestroy", stream)
    assert cuda_device.counters.live_graphs == before


def forbidden(program: Program, memory: ctypes.c_void_p, stream: ctypes.c_void_p) -> dict:
    """What no stream may do while one captures, and the error that it gives."""
    unsupported, implicit, host = "cudaErrorStreamCaptureUnsupported", "cudaErrorStreamCaptureImplicit", np.zeros(1)
    return {
        "allocate": (unsupported, lambda: program.made("cudaMalloc", ctypes.c_size_t(4))),
        "free": (unsupported, lambda: program.call("cudaFree", memory)),
        "synchronize": (unsupported, lambda: program.call("cudaStreamSynchronize", stream)),
        "upload": (unsupported, lambda: program.copy(memory, host.ctypes.data, 8, TO_DEVICE, stream)),
        "download": (unsupported, lambda: program.copy(host.ctypes.data, memory, 8, TO_HOST, stream)),
        "launch elsewhere": (implicit, lambda: program.launch("scale", [1], [64], memory, 1.0)),
    }


@pytest.mark.parametrize("what", forbidden(None, None, None))
def test_what_is_forbidden_during_a_capture(program, what):
    memory, stream = program.upload(np.ones(64, np.float32)), program.made("cudaStreamCreate")
    program.call("cudaStreamBeginCapture", stream, 0)
    error, action = forbidden(program, memory, stream)[what]
    with pytest.raises(CudaError, match=error):
        action()
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureInvalidated"):
        program.launch("scale", [1], [64], memory, 1.0, stream=stream)
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureInvalidated"):
        program.end_capture(stream)
    program.call("cudaStreamDestroy", stream)
    program.call("cudaFree", memory)
