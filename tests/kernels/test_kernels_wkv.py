"""wkv of all generations against its twin in float64: CPU form, GPU form, and what a schedule may do to them."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.script import tirx as T

from rwkv_mlc.compiler.kernel_source import kernels_as_source
from support.kernel_build import HOST_TARGET, build, error
from support.opencl_device import launch
from support.wkv_scans import CPU_SCANS, FACTORIES, FORMS, GPU_SCANS, SCANS, Scan, check_forms_agree, check_ragged, name
from tir_kernels.gpu.heads import part_of_head

every_scan = pytest.mark.parametrize("scan", SCANS, ids=str)
every_cpu_scan = pytest.mark.parametrize("scan", CPU_SCANS, ids=str)
every_gpu_scan = pytest.mark.parametrize("scan", GPU_SCANS, ids=str)
every_generation = pytest.mark.parametrize(
    "scan, device",
    [(Scan(generation, 3, 8), device) for device in FACTORIES for generation in FACTORIES[device]],
    ids=str,
)
every_form = pytest.mark.parametrize("phase, in_place", FORMS)


@pytest.fixture(scope="module")
def cpu(build_kernels):
    kernels = {name(scan, *form): scan.kernel(form[0], "cpu", form[1]) for scan in CPU_SCANS for form in FORMS}
    return build_kernels(kernels)


@every_cpu_scan
@every_form
def test_ragged_batch(cpu, scan, phase, in_place):
    check_ragged(cpu[name(scan, phase, in_place)], scan, phase, in_place)


@every_cpu_scan
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_both_forms_agree(cpu, scan, phase):
    check_forms_agree(cpu[name(scan, phase, False)], cpu[name(scan, phase, True)], scan, phase)


@every_cpu_scan
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


@every_cpu_scan
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


@every_cpu_scan
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


def test_wkv7_of_a_key_of_zeros(cpu):
    """Its direction is none: nothing is removed, and nothing is divided by zero."""
    scan, rng = Scan(7, 3, 12), np.random.default_rng(8)
    tokens, constants, start = scan.tokens(rng, 3), scan.constants(rng), scan.states(rng, 1)
    tokens[2][1] = 0
    out, states = scan.run(cpu[name(scan, "prefill", False)], tokens, constants, start, [3])
    expected_out, expected_states = scan.expected(tokens, constants, start, [3])
    assert error(out, expected_out) < 2e-6 and error(states[0], expected_states[0]) < 2e-6


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


def time_loop(function: tirx.PrimFunc, block: SBlockRealize, axis: int) -> tirx.For:
    (loop,) = [loop for loop in wkv_blocks(function)[1] if loop.loop_var.same_as(block.iter_values[axis])]
    return loop


def schedule_time(function: tirx.PrimFunc, primitive: str, axis: int = 1) -> tirx.PrimFunc:
    """The kernel with ``primitive`` applied to the loop over t, or one of them, of each of its wkv blocks."""
    schedule = Schedule(tvm.IRModule({"main": function}))
    for block in wkv_blocks(function)[0]:
        loops = schedule.get_loops(schedule.get_sblock(block.block.name_hint))
        (loop,) = [x for x in loops if schedule.get(x).loop_var.same_as(block.iter_values[axis])]
        arguments = ["threadIdx.x"] if primitive == "bind" else []
        getattr(schedule, primitive)(loop, *arguments)
    return schedule.mod["main"]


every_primitive = pytest.mark.parametrize("primitive", ["parallel", "vectorize", "bind"])


@every_generation
@every_form
def test_time_is_a_reduction(scan, device, phase, in_place):
    function = scan.kernel(phase, device, in_place)
    axes = {tirx.IterVar.DataPar: "S", tirx.IterVar.CommReduce: "R"}
    blocks, _ = wkv_blocks(function)
    assert blocks
    for block in blocks:
        declared = "".join(axes[variable.iter_type] for variable in block.block.iter_vars)
        assert declared == scan.axes(device)
        assert all(time_loop(function, block, axis).kind == tirx.ForKind.SERIAL for axis in scan.time(device))


@every_generation
@every_primitive
def test_schedules_over_time_are_refused(scan, device, primitive):
    """And t's declaration is what refuses: alone it suffices, and without any reduction nothing is refused."""
    function, axes = scan.kernel("prefill", device), scan.axes(device)
    for axis in scan.time(device):
        with pytest.raises(ScheduleError):
            schedule_time(function, primitive, axis)
        time_alone = "".join("R" if i == axis else "S" for i in range(len(axes)))
        with pytest.raises(ScheduleError):
            schedule_time(declare(function, time_alone), primitive, axis)
        assert schedule_time(declare(function, "S" * len(axes)), primitive, axis)


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


def gpu_kernels() -> dict[str, tirx.PrimFunc]:
    return {name(scan, *form): scan.kernel(form[0], "gpu", form[1]) for scan in GPU_SCANS for form in FORMS}


@pytest.fixture(scope="module")
def on_gpu(gpu):
    return gpu.build(gpu_kernels())


@every_gpu_scan
@every_form
def test_ragged_batch_on_a_gpu(on_gpu, scan, phase, in_place):
    check_ragged(on_gpu[name(scan, phase, in_place)], scan, phase, in_place)


@every_gpu_scan
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_both_forms_agree_on_a_gpu(on_gpu, scan, phase):
    check_forms_agree(on_gpu[name(scan, phase, False)], on_gpu[name(scan, phase, True)], scan, phase)


@every_gpu_scan
@every_form
def test_no_thread_of_a_gpu_runs_along_the_tokens(scan, phase, in_place):
    """One thread for each channel of each sequence, or several that share its keys, in several blocks from generation 6 on."""
    kernel = scan.kernel(phase, "gpu", in_place)
    states = ("slots",) if in_place else ("state", "state_a")
    batch = next(p for p in kernel.params if p.name in states).shape[0]
    sizes = {size: 17 for parameter in kernel.params for size in parameter.shape if isinstance(size, tirx.Var)}
    blocks, threads = launch(kernel, sizes | {batch: 5})
    values, parts = part_of_head(scan.size) if scan.generation > 5 else (scan.size, threads // scan.size)
    sharing = 1 if scan.generation == 4 else parts
    assert int(np.prod(blocks)) * threads == 5 * scan.channels * sharing
    assert scan.generation < 6 or threads == values * parts <= 64


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
    scan = Scan(4, 1, 50)
    check_ragged(threads_as_loops[name(scan, phase, in_place)], scan, phase, in_place)


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "cuda", "arch": "sm_80"},
        {"kind": "opencl", "max_num_threads": 256},
        {"kind": "metal", "max_num_threads": 256},
        {"kind": "webgpu", "max_num_threads": 256},
    ],
    ids=lambda target: target["kind"],
)
def test_gpu_code_is_generated(target):
    with kernels_as_source():
        built = build(gpu_kernels(), tvm.target.Target(target, host=HOST_TARGET))
    (device,) = built.mod.imports
    assert device.kind == target["kind"]
    source = device.inspect_source()
    for label in gpu_kernels():
        assert f"{label}_kernel" in source
