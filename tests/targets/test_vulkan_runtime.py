"""TVM's runtime for Vulkan: memory, streams and kernels, on whatever device the machine has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi

from rwkv_mlc.engine import vulkan
from rwkv_mlc.engine.tvm_runtime import duplicate, empty, lend, tensor, to_numpy
from rwkv_mlc.errors import UserError
from support.vulkan_kernels import Kernel, load, module_bytes, pointers, vulkan_device

ROOT = Path(__file__).parents[2]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint32", "int16", "int8", "uint8", "bool"]
STAGED = (4 << 20) + 3  # more than one piece of staging memory
INVOCATION = "uint i = gl_GlobalInvocationID.x;"

# t1 = t1 * n0 + t0
ACCUMULATE = Kernel(
    ("handle", "handle", "float32", "int64"),
    INVOCATION + "if (i < uint(pods.n1)) t1.data[i] = t1.data[i] * pods.n0 + t0.data[i];",
)
FILL = Kernel(("handle",), "t0.data[0] = 1;", threads=1)
SCALARS = ("int32", "int64", "float32", "uint32", "float64", "int32", "int64", "float32")
SUM = " + ".join(f"double(pods.n{i}) * {i + 1}.0LF" for i in range(len(SCALARS)))
MANY = ("int64", "float32") * 10  # 160 bytes
SUM_OF_MANY = " + ".join(f"double(pods.n{i}) * {i + 1}.0LF" for i in range(len(MANY)))


call = tvm_ffi.get_global_func
create_stream, free_stream = call("runtime.Device_StreamCreate"), call("runtime.Device_StreamFree")
set_stream, synchronize = call("runtime.Device_SetStream"), call("runtime.Device_StreamSync")


@pytest.fixture(scope="module")
def device() -> tvm_ffi.Device:
    return vulkan_device()


@pytest.fixture(scope="module")
def accumulate(device):
    return load(module_bytes({"accumulate": ACCUMULATE}))["accumulate"]


def random_array(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (0, 4), (STAGED,)])
def test_round_trips(device, dtype, shape):
    array = random_array(shape, dtype)
    uploaded = tensor(array, device)
    np.testing.assert_array_equal(to_numpy(uploaded), array)
    np.testing.assert_array_equal(to_numpy(duplicate(uploaded)), array)


@pytest.mark.parametrize("nbytes", [1, 7, 4096, STAGED])
@pytest.mark.parametrize("start", [0, 1, 5, 1000])
def test_copies_with_offsets(device, start, nbytes):
    view, copy = call("runtime.TVMTensorCreateView"), call("runtime.TVMTensorCopyFromTo")
    expected, patch = random_array((STAGED + 2000,), "uint8"), random_array((nbytes,), "uint8") + 100
    whole = tensor(expected, device)
    part = view(whole, tvm_ffi.Shape((nbytes,)), tvm_ffi.dtype("uint8"), start)
    copy(tvm_ffi.from_dlpack(patch), part)
    expected[start : start + nbytes] = patch
    np.testing.assert_array_equal(to_numpy(part), patch)
    other = empty(expected.shape, "uint8", device)
    copy(whole, other)
    copy(part, view(other, tvm_ffi.Shape((nbytes,)), tvm_ffi.dtype("uint8"), start + 7))
    np.testing.assert_array_equal(to_numpy(whole), expected)
    expected[start + 7 : start + 7 + nbytes] = patch
    np.testing.assert_array_equal(to_numpy(other), expected)


def test_commands_see_what_came_before(device, accumulate):
    """Kernels, copies and uploads into tensors that waiting kernels read follow each other for many batches."""
    size, rounds = 1000, 300
    total, expected = tensor(np.zeros(size, "float32"), device), np.zeros(size, "float32")
    given, copied = empty((size,), "float32", device), empty((size,), "float32", device)
    copy = call("runtime.TVMTensorCopyFromTo")
    for step in range(rounds):
        array = np.full(size, step % 17, "float32")
        copy(tvm_ffi.from_dlpack(array), given)
        copy(given, copied)
        array[:] = -1  # what was lent is free again
        accumulate(*pointers(copied, total), 0.5, size, 16)
        expected = expected * np.float32(0.5) + np.float32(step % 17)
    np.testing.assert_array_equal(to_numpy(total), expected)


def test_tensors_freed_while_kernels_wait_for_them(device, accumulate):
    size, expected = 4096, 0
    total = tensor(np.zeros(size, "float32"), device)
    for step in range(200):
        given = lend(np.full(size, step, "float32"), device)
        accumulate(*pointers(given, total), 1.0, size, 64)
        expected += step
        del given
        lend(np.full(size, -1, "float32"), device)  # may take the place of what was freed
    np.testing.assert_array_equal(to_numpy(total), np.full(size, expected, "float32"))


def test_ten_thousand_tensors(device, accumulate):
    """They are alive at once, more than a driver allows allocations, and are made again and again."""

    def fill(count: int, size: int) -> None:
        tensors = [tensor(np.full(size, i, "float32"), device) for i in range(count)]
        for i in range(0, count, count // 50):
            np.testing.assert_array_equal(to_numpy(tensors[i]), np.full(size, i, "float32"))

    fill(10_000, 20)
    total = tensor(np.zeros(256, "float32"), device)
    before = resident()
    for step in range(10_000):
        held = tensor(np.full((256, 1 + step % 40), step, "float32"), device)
        if step % 10 == 0:
            accumulate(*pointers(held, total), 0.0, 256, 4)
    synchronize(device, 0)
    fill(10_000, 20)
    assert resident() - before < 32 << 20
    np.testing.assert_array_equal(to_numpy(total), np.full(256, 9990, "float32"))


def resident() -> int:
    """Bytes of memory of this process."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads Linux's account of a process's memory")
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("own_streams", [False, True])
def test_threads(device, accumulate, own_streams):
    size, rounds, results = 512, 100, {}

    def work(number: int) -> None:
        stream = create_stream(device) if own_streams else 0
        set_stream(device, stream)
        total = tensor(np.zeros(size, "float32"), device)
        for step in range(rounds):
            given = lend(np.full(size, number * step, "float32"), device)
            accumulate(*pointers(given, total), 1.0, size, 8)
        results[number] = to_numpy(total)
        set_stream(device, 0)
        if own_streams:
            free_stream(device, stream)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_array_equal(results[number], np.full(size, number * rounds * (rounds - 1) / 2, "float32"))


def test_a_stream_waits_for_another(device, accumulate):
    streams, size, expected = [create_stream(device), create_stream(device)], 1024, 0
    given = [tensor(np.full(size, value, "float32"), device) for value in (1, 2)]
    total = tensor(np.zeros(size, "float32"), device)
    for step in range(100):
        here, there = step % 2, 1 - step % 2
        set_stream(device, streams[here])
        accumulate(*pointers(given[here], total), 0.5, size, 16)
        expected = np.float32(0.5) * expected + np.float32(here + 1)
        call("runtime.Device_StreamSyncFromTo")(device, streams[here], streams[there])
    set_stream(device, 0)
    synchronize(device, streams[1])
    np.testing.assert_array_equal(to_numpy(total), np.full(size, expected, "float32"))
    for stream in streams:
        free_stream(device, stream)
    with pytest.raises(ValueError, match="is no stream of"):
        free_stream(device, streams[0])


@pytest.mark.parametrize("uniform", [False, True])
def test_numbers_of_every_type(device, uniform):
    kernel = Kernel(("handle", *SCALARS), f"t0.data[0] = {SUM};", "double", threads=1, uniform=uniform)
    module, result = load(module_bytes({"kernel": kernel})), empty((1,), "float64", device)
    values = [-3, -(2**40), 0.25, 2**32 - 1, 1e-9, 2**31 - 1, 2**50, -1.5]
    for shift in range(100):  # more than one batch, each with numbers of its own
        values[0] = shift
        module["kernel"](*pointers(result), *values, 1)
        if shift % 33 == 0:
            assert to_numpy(result)[0] == sum(value * (i + 1) for i, value in enumerate(values))
    assert to_numpy(result)[0] == sum(value * (i + 1) for i, value in enumerate(values))


def test_more_numbers_than_push_constants_hold(device):
    kernel = Kernel(("handle", "handle", *MANY), f"t1.data[0] = {SUM_OF_MANY} + t0.data[0];", "double", 1, uniform=True)
    function, offset = load(module_bytes({"kernel": kernel}))["kernel"], tensor(np.array([0.5]), device)
    results = [empty((1,), "float64", device) for _ in range(500)]  # more than a batch's uniform buffer
    for step, result in enumerate(results):
        numbers = [step + i if kind == "int64" else float(step + i) for i, kind in enumerate(MANY)]
        function(*pointers(offset, result), *numbers, 1)
    for step, result in enumerate(results):
        assert to_numpy(result)[0] == sum((step + i) * (i + 1) for i in range(len(MANY))) + 0.5


@pytest.mark.parametrize("element, dtype", [("float16_t", "float16"), ("int8_t", "int8"), ("int64_t", "int64")])
def test_elements_that_need_features(device, element, dtype):
    kernel = Kernel(("handle", "int32"), INVOCATION + f"if (i < pods.n0) t0.data[i] *= {element}(3);", element)
    array = random_array((77,), dtype) // 3
    held = tensor(array, device)
    load(module_bytes({"kernel": kernel}))["kernel"](*pointers(held), len(array), 2)
    np.testing.assert_array_equal(to_numpy(held), array * 3)


def test_grids(device):
    body = "atomicAdd(t0.data[gl_WorkGroupID.x + 3 * gl_WorkGroupID.y + 6 * gl_WorkGroupID.z], 1);"
    tags = ("blockIdx.z", "threadIdx.x", "blockIdx.x", "blockIdx.y")
    function = load(module_bytes({"k": Kernel(("handle",), body, "int", threads=5, grid=tags)}))["k"]
    counts = tensor(np.zeros(24, "int32"), device)
    function(*pointers(counts), 4, 5, 3, 2)
    function(*pointers(counts), 4, 5, 3, 0)  # nothing to do
    np.testing.assert_array_equal(to_numpy(counts), np.full(24, 5, "int32"))


def test_kernels_by_name(device):
    module = load(module_bytes({"accumulate": ACCUMULATE, "other": ACCUMULATE}))
    assert module.kind == "vulkan" and module["other"] is not None
    with pytest.raises(AttributeError, match="missing"):
        module["missing"]


def test_modules_that_are_damaged(device):
    data = module_bytes({"accumulate": ACCUMULATE})
    for length in range(0, len(data), 7):
        with pytest.raises(ValueError, match="damaged: they end too early"):
            load(data[:length])
    shader = ACCUMULATE.shader("accumulate")
    with pytest.raises(ValueError, match="cannot be launched with blockIdx.w"):
        load(module_bytes({"k": Kernel(("handle",), "", grid=("blockIdx.w",))}, {"k": shader}))
    with pytest.raises(ValueError, match="the kernel k takes a tensor after a number"):
        load(module_bytes({"k": Kernel(("int32", "handle"), "")}, {"k": shader}))
    with pytest.raises(RuntimeError, match="cannot run the kernel accumulate: its SPIR-V is damaged"):
        module, given = (
            load(module_bytes({"accumulate": ACCUMULATE}, {"accumulate": shader[:20] + bytes(40)})),
            tensor(np.ones(1), device),
        )
        module["accumulate"](*pointers(given, given), 1.0, 1, 1)


def test_calls_that_do_not_fit(device, accumulate):
    given = tensor(np.zeros(4, "float32"), device)
    held = pointers(given, given)
    with pytest.raises(TypeError, match="the kernel accumulate takes 5 arguments, not 4"):
        accumulate(*held, 1.0, 4)
    with pytest.raises(ValueError, match="argument 1 of the kernel accumulate is not on"):
        accumulate(held[0], None, 1.0, 4, 1)
    accumulate(*held, 1.0, 4, 1)


@pytest.mark.parametrize("axis", "xyz")
def test_grids_beyond_the_device(device, axis):
    """Some extents have low 32 bits that are small."""
    limits = call("device_api.vulkan.get_target_property")
    most = int(limits(device, f"max_grid_size_{axis}"))
    function = load(module_bytes({"k": Kernel(("handle",), "t0.data[0] = 1;", grid=(f"blockIdx.{axis}",))}))["k"]
    out = tensor(np.zeros(1, "float32"), device)
    for extent in (most + 1, 2**32 + 1, 2**40, 2**63 - 1, -1):
        with pytest.raises(ValueError, match=f"the kernel k: it launches {most} blocks along {axis} and not {extent}"):
            function(*pointers(out), extent)
    assert to_numpy(out)[0] == 0
    function(*pointers(out), 3)
    assert to_numpy(out)[0] == 1


def with_rows(shader: bytes, rows: int) -> bytes:
    """More rows of threads in a block than glslang lets a shader have."""
    words = np.frombuffer(shader, np.uint32).copy()
    (at,) = np.flatnonzero((words[:-5] == 6 << 16 | 16) & (words[2:-3] == 17))  # OpExecutionMode LocalSize
    words[at + 4] = rows
    return words.tobytes()


def test_kernels_beyond_the_device(device):
    limit = int(call("device_api.vulkan.get_target_property")(device, "max_num_threads"))
    wide = load(module_bytes({"wide": Kernel(("handle",), "t0.data[0] = 1;", threads=limit, rows=2)}))["wide"]
    given = empty((1,), "float32", device)
    held = pointers(given)
    with pytest.raises(RuntimeError, match=f"kernel wide: it runs {limit} threads in a block and not {2 * limit}"):
        wide(*held, 1)
    longest = int(call("device_api.vulkan.get_target_property")(device, "max_block_size_y"))
    tall = load(module_bytes({"tall": FILL}, {"tall": with_rows(FILL.shader("tall"), longest + 1)}))["tall"]
    with pytest.raises(RuntimeError, match=f"tall: it runs {longest} threads along y and not {longest + 1}"):
        tall(*held, 1)
    numbers = Kernel(("handle", *["int64"] * 9000), "t0.data[0] = pods.n0;", "int64_t", uniform=True)
    with pytest.raises(RuntimeError, match="kernel many: it takes .* bytes of numbers and not 72000"):
        load(module_bytes({"many": numbers}))["many"](*held, *range(9000), 1)


def test_shared_memory_beyond_the_device(device):
    """A kernel with all that the device has runs; one with more does not."""
    floats = int(call("device_api.vulkan.get_target_property")(device, "max_shared_memory_per_block")) // 4
    body = f"{INVOCATION} held[{floats} - 64 + i] = float(i); barrier(); t0.data[i] = held[{floats} - 1 - i];"
    kernels = {
        "fits": Kernel(("handle",), body, shared=floats),
        "over": Kernel(("handle",), body, shared=floats + 1),
    }
    module, out = load(module_bytes(kernels)), empty((64,), "float32", device)
    with pytest.raises(
        RuntimeError, match=f"over: it has {4 * floats} bytes of shared memory and not {4 * floats + 4}"
    ):
        module["over"](*pointers(out), 1)
    module["fits"](*pointers(out), 1)
    np.testing.assert_array_equal(to_numpy(out), np.arange(64)[::-1])


def test_memory_that_is_not_there(device):
    with pytest.raises(RuntimeError, match="has no memory left for|vkCreateBuffer"):
        empty((1 << 46,), "uint8", device)
    np.testing.assert_array_equal(to_numpy(tensor(np.ones(3), device)), np.ones(3))


def test_devices_that_are_not_there(device):
    missing = tvm_ffi.device("vulkan", 99)
    with pytest.raises(ValueError, match="there is no Vulkan device 99: this machine has"):
        empty((1,), "float32", missing)


def test_tvm_describes_the_device(device):
    name = 'str(tvm.target.Target.from_device(tvm.runtime.device("vulkan", 0)).kind)'
    code = f"from rwkv_mlc.engine.devices import open_device; open_device('vulkan'); import tvm; print({name})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "vulkan", result.stderr


def test_validation(device):
    """The other tests run under Khronos' layer, which reports what the specification forbids, and hazards between
    commands."""
    if not any(Path("/usr/share/vulkan/explicit_layer.d").glob("*validation*")):
        pytest.skip("needs Debian's vulkan-validationlayers")
    layers = {
        "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation",
        "VK_LAYER_ENABLES": "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
    }
    chosen = "not validation and not build and not not_there and not ten_thousand"
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-k", chosen, __file__]
    result = subprocess.run(command, env=os.environ | layers, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "Validation" not in result.stdout + result.stderr, result.stdout


def test_processes_that_build_at_once(tmp_path):
    if shutil.which(os.environ.get("CXX", "c++")) is None or not Path("/usr/include/vulkan/vulkan.h").exists():
        pytest.skip("needs a C++ compiler and Debian's libvulkan-dev")
    code = (
        "from rwkv_mlc.engine import vulkan\n"
        "vulkan.FLAGS = ('-std=c++17', '-O0', '-fPIC')\n"  # faster to build
        "vulkan.load(); print(vulkan.build())"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    libraries = {process.communicate()[0].strip() for process in processes}
    (library,) = libraries
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(path.name for path in Path(library).parent.iterdir()) == [
        "libtvm_runtime_vulkan.so",
        "libtvm_runtime_vulkan.so.sha256",
        "lock",
    ]


MISSING = {
    "no compiler": (None, "needs a C.. compiler, .* install g.. or clang"),
    "no headers": (
        "a.cc:1:10: fatal error: vulkan/vulkan.h: No such file",
        "needs its headers, .* install libvulkan-dev",
    ),
    "no loader": ("ld: cannot find -lvulkan: No such file", "install libvulkan-dev"),
    "old compiler": ("note: x\na.cc:5:1: error: no span", r"cannot be built \(a.cc:5:1: error: no span\)"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_building_needs(missing, tmp_path, monkeypatch):
    says, message = MISSING[missing]
    if says:
        compiler = tmp_path / "c++"
        compiler.write_text(f"#!/bin/sh\nprintf '%s\\n' '{says}' >&2\nexit 1\n", encoding="utf-8")
        compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message) as error:
        vulkan.build()
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] in ([], ["lock"])


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written to .*set XDG_CACHE_HOME"):
        vulkan.build()
