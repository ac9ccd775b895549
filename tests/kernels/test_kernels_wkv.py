"""wkv of both generations against its twin in float64: CPU form, GPU form, and what a schedule may do to them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
import tvm_ffi
from support import kernel_twins as twins
from support.kernel_build import HOST_TARGET, build, call, error
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.script import tirx as T

from rwkv_mlc.compiler.kernel_source import kernels_as_source
from tir_kernels.wkv4 import wkv4
from tir_kernels.wkv5 import wkv5


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

    def kernel(self, phase="prefill", device="cpu", in_place=False) -> tirx.PrimFunc:
        if self.generation == 4:
            return wkv4(self.channels, phase, device, in_place)
        return wkv5(self.heads, self.size, phase, device, in_place)

    def tokens(self, rng, rows: int) -> list[np.ndarray]:
        """r, k, v [T, C]."""
        r, k, v = rng.normal([[[0.2]], [[-0.3]], [[0.4]]], 1.0, (3, rows, self.channels)).astype(np.float32)
        return [twins.sigmoid(r) if self.generation == 4 else r, k, v]

    def constants(self, rng) -> list[np.ndarray]:
        """w, u."""
        if self.generation == 4:
            w, u = -np.exp(rng.uniform(-5, 1, self.channels)), rng.normal(0.5, 1, self.channels)
        else:
            w, u = rng.uniform(0.3, 0.999, (self.heads, self.size)), rng.normal(0.5, 1, (self.heads, self.size))
        return [w.astype(np.float32), u.astype(np.float32)]

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
        """The twin in float64, sequence by sequence: out [T, C] and each state [B, ...]."""
        tokens, constants, states = ([x.astype(np.float64) for x in group] for group in (tokens, constants, states))
        twin = twins.wkv4 if self.generation == 4 else twins.wkv5
        ends = np.cumsum(lengths)
        results = [
            twin(*(x[end - length : end] for x in tokens), *constants, *(state[b] for state in states))
            for b, (length, end) in enumerate(zip(lengths, ends))
        ]
        outs, after = zip(*results)
        return np.concatenate(outs), [np.stack(state) for state in zip(*after)]

    def run(self, function, tokens, constants, states, ends=None, slots=None) -> tuple[np.ndarray, list[np.ndarray]]:
        """Call a kernel, in place if there are slots: out [T, C] and the states."""
        inputs = [x[None] for x in tokens] + constants
        integers = [np.array(x, np.int32) for x in (ends, slots) if x is not None]
        out, outputs = np.full_like(inputs[0], np.nan), [np.full_like(state, np.nan) for state in states]
        if slots is not None:
            outputs = []
            written = [-1, *range(len(inputs), len(inputs) + len(states))]
        else:
            written = range(-1 - len(states), 0)
        out, *after = call(function, *inputs, *states, *integers, out, *outputs, written=written)
        return out[0], after


SCANS = [Scan(4, 6, 16), Scan(4, 1, 24), Scan(4, 1, 50), Scan(5, 2, 64), Scan(5, 3, 8), Scan(5, 3, 12), Scan(5, 2, 5)]
FORMS = [(phase, in_place) for phase in ("prefill", "decode") for in_place in (False, True)]
LENGTHS = [5, 1, 17, 2]
SLOTS, POOL = [4, 0, 6, 2], 7

every_scan = pytest.mark.parametrize("scan", SCANS, ids=str)
both_generations = pytest.mark.parametrize("scan", [Scan(4, 3, 8), Scan(5, 3, 8)], ids=str)
every_form = pytest.mark.parametrize("phase, in_place", FORMS)


def name(scan: Scan, phase: str, in_place: bool) -> str:
    return f"{scan}_{phase}{'_in_place' if in_place else ''}"


@pytest.fixture(scope="module")
def cpu(build_kernels):
    kernels = {name(scan, *form): scan.kernel(form[0], "cpu", form[1]) for scan in SCANS for form in FORMS}
    return build_kernels(kernels)


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


@every_scan
@every_form
def test_ragged_batch(cpu, scan, phase, in_place):
    check_ragged(cpu[name(scan, phase, in_place)], scan, phase, in_place)


@every_scan
def test_prefill_is_decoding_one_by_one(cpu, scan):
    rng = np.random.default_rng(1)
    tokens, constants, start = scan.tokens(rng, 13), scan.constants(rng), scan.fresh_states(1)
    whole, after = scan.run(cpu[name(scan, "prefill", False)], tokens, constants, start, [13])
    states, rows = start, []
    for t in range(13):
        one = [x[t : t + 1] for x in tokens]
        out, states = scan.run(cpu[name(scan, "decode", False)], one, constants, states)
        rows.append(out)
    assert error(np.concatenate(rows), whole) < 1e-6
    for state, expected in zip(states, after):
        assert error(state, expected) < 1e-6


@every_scan
def test_prefill_in_two_calls(cpu, scan):
    rng = np.random.default_rng(2)
    tokens, constants, start = scan.tokens(rng, 11), scan.constants(rng), scan.states(rng, 1)
    function = cpu[name(scan, "prefill", False)]
    whole, after = scan.run(function, tokens, constants, start, [11])
    first, states = scan.run(function, [x[:4] for x in tokens], constants, start, [4])
    second, states = scan.run(function, [x[4:] for x in tokens], constants, states, [7])
    assert np.array_equal(np.concatenate([first, second]), whole)
    for state, expected in zip(states, after):
        assert np.array_equal(state, expected)


@every_scan
def test_long_sequence(cpu, scan):
    rng = np.random.default_rng(3)
    tokens, constants, start = scan.tokens(rng, 300), scan.constants(rng), scan.fresh_states(1)
    out, states = scan.run(cpu[name(scan, "prefill", False)], tokens, constants, start, [300])
    expected_out, expected_states = scan.expected(tokens, constants, start, [300])
    assert error(out, expected_out) < 5e-6
    for state, expected in zip(states, expected_states):
        assert error(state, expected) < 5e-6


def test_wkv4_starts_with_the_first_value(cpu):
    """Nothing came before: the average over one value is that value."""
    scan, rng = SCANS[1], np.random.default_rng(4)
    r, k, v = scan.tokens(rng, 1)
    out, (a, b, p) = scan.run(cpu[name(scan, "decode", False)], [r, k, v], scan.constants(rng), scan.fresh_states(1))
    np.testing.assert_allclose(out, r * v, rtol=1e-6)
    assert np.array_equal(a, v) and np.array_equal(b, np.ones_like(b)) and np.array_equal(p, k)


def test_wkv4_keys_beyond_the_range_of_exp(cpu):
    scan, rng = SCANS[2], np.random.default_rng(5)
    (r, k, v), constants, start = scan.tokens(rng, 40), scan.constants(rng), scan.fresh_states(1)
    k = k * np.float32(200)
    assert k.max() > 300 and k.min() < -300
    out, states = scan.run(cpu[name(scan, "prefill", False)], [r, k, v], constants, start, [40])
    expected_out, expected_states = scan.expected([r, k, v], constants, start, [40])
    assert error(out, expected_out) < 1e-5
    for state, expected in zip(states, expected_states):
        assert np.isfinite(state).all() and error(state, expected) < 1e-5


def declare(function: tirx.PrimFunc, axes: str) -> tirx.PrimFunc:
    """The same kernel with other iteration types on its wkv blocks' axes, of which there must be some."""
    assert wkv_blocks(function)[0]
    kinds = {"S": tirx.IterVar.DataPar, "R": tirx.IterVar.CommReduce}

    def change(block: SBlock) -> SBlock:
        if not block.name_hint.startswith("wkv"):
            return block
        variables = [tirx.IterVar(v.dom, v.var, kinds[kind], v.thread_tag) for v, kind in zip(block.iter_vars, axes)]
        return SBlock(variables, block.reads, block.writes, block.name_hint, block.body)

    return function.with_body(tvm_ffi.structural_map(function.body, (SBlock, change), order="post"))


def wkv_blocks(function: tirx.PrimFunc) -> tuple[list[SBlockRealize], list[tirx.For]]:
    """The blocks of the recurrence and all loops of a kernel."""
    blocks, loops = [], []
    tvm_ffi.structural_walk(function.body, [(SBlockRealize, blocks.append), (tirx.For, loops.append)])
    return [block for block in blocks if block.block.name_hint.startswith("wkv")], loops


def time_loop(function: tirx.PrimFunc, block: SBlockRealize) -> tirx.For:
    (loop,) = [loop for loop in wkv_blocks(function)[1] if loop.loop_var.same_as(block.iter_values[1])]
    return loop


def schedule_time(function: tirx.PrimFunc, primitive: str) -> tirx.PrimFunc:
    """The kernel with ``primitive`` applied to the loop over t of each of its wkv blocks."""
    schedule = Schedule(tvm.IRModule({"main": function}))
    for block in wkv_blocks(function)[0]:
        loops = schedule.get_loops(schedule.get_sblock(block.block.name_hint))
        (loop,) = [x for x in loops if schedule.get(x).loop_var.same_as(block.iter_values[1])]
        arguments = ["threadIdx.x"] if primitive == "bind" else []
        getattr(schedule, primitive)(loop, *arguments)
    return schedule.mod["main"]


every_device = pytest.mark.parametrize("device", ["cpu", "gpu"])
every_primitive = pytest.mark.parametrize("primitive", ["parallel", "vectorize", "bind"])


@both_generations
@every_device
@every_form
def test_time_is_a_reduction(scan, device, phase, in_place):
    function = scan.kernel(phase, device, in_place)
    axes = {tirx.IterVar.DataPar: "S", tirx.IterVar.CommReduce: "R"}
    blocks, _ = wkv_blocks(function)
    assert blocks
    for block in blocks:
        declared = "".join(axes[variable.iter_type] for variable in block.block.iter_vars)
        assert declared == ("SRS" if scan.generation == 4 else "SRSSR")
        assert time_loop(function, block).kind == tirx.ForKind.SERIAL


@both_generations
@every_device
@every_primitive
def test_schedules_over_time_are_refused(scan, device, primitive):
    """And t's declaration is what refuses: alone it suffices, and without any reduction nothing is refused."""
    function = scan.kernel("prefill", device)
    with pytest.raises(ScheduleError):
        schedule_time(function, primitive)
    time_alone, spatial = ("SRS", "SSS") if scan.generation == 4 else ("SRSSS", "SSSSS")
    with pytest.raises(ScheduleError):
        schedule_time(declare(function, time_alone), primitive)
    assert schedule_time(declare(function, spatial), primitive)


def spatial_time() -> tirx.PrimFunc:
    """wkv of RWKV-5 for 8 tokens and 2 heads of 4, with t declared spatial: right as it stands."""

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        r: T.Buffer((1, 8, 8)),
        k: T.Buffer((1, 8, 8)),
        v: T.Buffer((1, 8, 8)),
        w: T.Buffer((2, 4)),
        u: T.Buffer((2, 4)),
        state: T.Buffer((1, 2, 4, 4)),
        slots: T.Buffer((1,), "int32"),
        out: T.Buffer((1, 8, 8)),
    ):
        for t, h, i in T.grid(8, 2, 4):
            out[0, t, h * 4 + i] = T.float32(0)
        for b, t, h, i, key in T.grid(1, 8, 2, 4, 4):
            with T.sblock("wkv"):
                vb, vt, vh, vi, vk = T.axis.remap("SSSSS", [b, t, h, i, key])
                T.reads()
                T.writes()
                kv: T.let = k[0, vt, vh * 4 + vk] * v[0, vt, vh * 4 + vi]
                read: T.let = r[0, vt, vh * 4 + vk] * (state[vb, vh, vk, vi] + u[vh, vk] * kv)
                out[0, vt, vh * 4 + vi] = out[0, vt, vh * 4 + vi] + read
                state[vb, vh, vk, vi] = state[vb, vh, vk, vi] * w[vh, vk] + kv

    return kernel


def test_spatial_time_is_silently_wrong():
    """What the reduction axis prevents: the schedule accepts the loop over t, and the values are wrong."""
    scan, rng = Scan(5, 2, 4), np.random.default_rng(6)
    tokens, constants, start = scan.tokens(rng, 8), scan.constants(rng), scan.states(rng, 1)
    expected_out, (expected_state,) = scan.expected(tokens, constants, start, [8])
    assert schedule_time(spatial_time(), "parallel") and schedule_time(spatial_time(), "bind")
    built = build({"serial": spatial_time(), "vectors": schedule_time(spatial_time(), "vectorize")})

    out, (state,) = scan.run(built["serial"], tokens, constants, start, slots=[0])
    assert error(out, expected_out) < 2e-6 and error(state, expected_state) < 2e-6
    out, (state,) = scan.run(built["vectors"], tokens, constants, start, slots=[0])
    assert error(out, expected_out) > 0.1 and error(state, expected_state) > 0.1
    with pytest.raises(ScheduleError):
        schedule_time(declare(spatial_time(), "SRSSS"), "vectorize")


GPU_SCANS = [Scan(4, 1, 50), Scan(5, 3, 8), Scan(5, 1, 64), Scan(5, 2, 5)]
every_gpu_scan = pytest.mark.parametrize("scan", GPU_SCANS, ids=str)


def gpu_kernels() -> dict[str, tirx.PrimFunc]:
    return {name(scan, *form): scan.kernel(form[0], "gpu", form[1]) for scan in GPU_SCANS for form in FORMS}


@pytest.fixture(scope="module")
def threads_as_loops():
    """The GPU forms without barriers, with blocks as parallel and threads as serial loops."""
    kinds = {"blockIdx.x": tirx.ForKind.PARALLEL, "threadIdx.x": tirx.ForKind.SERIAL}

    def change(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is None:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, kinds[loop.thread_binding.thread_tag], loop.body)

    def serial(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
        return kernel.with_body(tvm_ffi.structural_map(kernel.body, (tirx.For, change), order="post"))

    return build({label: serial(kernel) for label, kernel in gpu_kernels().items() if label.startswith("wkv4")})


@every_form
def test_gpu_form_on_a_cpu(threads_as_loops, phase, in_place):
    scan = GPU_SCANS[0]
    check_ragged(threads_as_loops[name(scan, phase, in_place)], scan, phase, in_place)


GPU_TARGETS = {
    "cuda": {"kind": "cuda", "arch": "sm_80"},
    "opencl": {"kind": "opencl", "max_num_threads": 256},
    "metal": {"kind": "metal", "max_num_threads": 256},
    "webgpu": {"kind": "webgpu", "max_num_threads": 256},
}


def device_source(target: str) -> str:
    with kernels_as_source():
        built = build(gpu_kernels(), tvm.target.Target(GPU_TARGETS[target], host=HOST_TARGET))
    (device,) = built.mod.imports
    assert device.kind == target
    return device.inspect_source()


@pytest.mark.parametrize("target", GPU_TARGETS)
def test_gpu_code_is_generated(target):
    source = device_source(target)
    for label in gpu_kernels():
        assert f"{label}_kernel" in source


@pytest.fixture(scope="module")
def opencl():
    """(pyopencl, a queue of its first device, the GPU forms as OpenCL C)."""
    cl = pytest.importorskip("pyopencl", reason="OpenCL C runs where pyopencl and an OpenCL platform are installed")
    try:
        context = cl.Context(cl.get_platforms()[0].get_devices()[:1])
    except (cl.Error, IndexError):
        pytest.skip("no OpenCL platform")
    return cl, cl.CommandQueue(context), device_source("opencl")


@every_gpu_scan
def test_opencl_code_on_this_machine(opencl, scan):
    """One work item for each channel of each sequence, or several that share its keys: none runs along the tokens."""
    cl, queue, source = opencl
    program = cl.Program(queue.context, source).build()
    for phase, in_place in FORMS:
        kernel = scan.kernel(phase, "gpu", in_place)
        entry = f"{name(scan, phase, in_place)}_kernel"
        order = re.findall(r"(\w+)_ptr[,)]", re.search(rf"{entry}(\(.*?\));", source)[1])
        names = [parameter.name for parameter in kernel.params]
        bound = [loop for loop in wkv_blocks(kernel)[1] if loop.thread_binding is not None]
        (threads,) = [int(loop.extent) for loop in bound if loop.thread_binding.thread_tag == "threadIdx.x"]

        def run(*tensors: tvm.runtime.Tensor) -> None:
            arrays = dict(zip(names, [tensor.numpy() for tensor in tensors]))
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
            buffers = {key: cl.Buffer(queue.context, flags, hostbuf=array) for key, array in arrays.items()}
            batch = len(arrays["slots"] if in_place else arrays[names[5]])
            work, sharing = getattr(program, entry), threads // scan.size if scan.generation == 5 else 1
            work(
                queue, (batch * scan.channels * sharing,), (threads,), *(buffers[key] for key in order), np.int64(batch)
            )
            for key, tensor in zip(names, tensors):
                cl.enqueue_copy(queue, arrays[key], buffers[key])
                tensor.copyfrom(arrays[key])

        check_ragged(run, scan, phase, in_place)
