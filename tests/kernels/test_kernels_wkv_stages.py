"""wkv of RWKV-6 and RWKV-7 in stages, on ``cuda_device``: with asynchronous copies and without, and without each of the
barriers that they need."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.cuda import compile_fatbin, find_compiler
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.errors import UserError
from rwkv_mlc.verification.fatbin import read_fatbin, read_resources
from support.cuda_device import KERNEL, CudaOnCpu
from support.gpu_kernels import stuck
from support.opencl_device import source_of
from support.wkv_scans import Scan, check_ragged
from tir_kernels.gpu.stages import MOST_TOKENS, SHARED_BYTES, tokens_of_a_stage

SCHEDULES = 4  # for ``CudaOnCpu.schedule``: threads in either order, copies early and late
SMALL = {6: Scan(6, 2, 8), 7: Scan(7, 2, 8)}
STAGED = [Scan(6, 1, 64), Scan(7, 1, 64), Scan(7, 1, 16), *SMALL.values()]
BARRIER, WAIT = "__syncthreads();", "async_wait(1);"
BARRIERS = {  # as the source has them
    6: ["before a stage", "after a stage"],
    7: [
        "before a stage",
        "before sums over a head are added up",
        "before the keys of a stage are read",
        "before shares of what is removed are added up",
        "before those of every other token are",
        "after a stage",
    ],
}


@pytest.fixture(scope="module")
def staged(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    kernels = {str(scan): scan.kernel("prefill", "gpu", True, async_copies=True) for scan in STAGED}
    return cuda_device.build(kernels, libraries)


@pytest.mark.parametrize("number", range(SCHEDULES))
@pytest.mark.parametrize("scan", STAGED, ids=str)
def test_asynchronous_copies(staged, cuda_device, scan, number):
    """Several stages of a sequence, a part of one, and one token."""
    cuda_device.schedule(number)
    check_ragged(staged[str(scan)], scan, "prefill", True)


def without(text: str, which: int) -> Callable[[str], str]:
    """Leaves out one occurrence of ``text``."""

    def change(source: str) -> str:
        places = [match.start() for match in re.finditer(re.escape(text), source)]
        return source[: places[which]] + source[places[which] + len(text) :]

    return change


MUTATIONS = {
    f"wkv{generation}{' with copies' if copies else ''}: {what}": (generation, copies, change)
    for generation, barriers in BARRIERS.items()
    for copies in (False, True)
    for what, change in [
        *((f"no barrier {place}", without(BARRIER, i)) for i, place in enumerate(barriers)),
        *([("stages are not waited for", without(WAIT, 0))] if copies else []),
        ("one value", stuck("v")),
    ]
}


@pytest.fixture(scope="module")
def mutated(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    """Every mutation in one library, and what each of them is of."""
    kernels, changes = {}, {}
    for i, (generation, copies, change) in enumerate(MUTATIONS.values()):
        kernel = SMALL[generation].kernel("prefill", "gpu", True, async_copies=copies)
        kernels |= {f"mutation{i}": kernel, f"right{generation}{copies}": kernel}
        changes[f"mutation{i}_kernel"] = change

    def change(source: str) -> str:
        found = list(KERNEL.finditer(source))
        ends = [*(kernel.start() for kernel in found[1:]), len(source)]
        bodies = [(kernel[2], source[kernel.start() : end]) for kernel, end in zip(found, ends)]
        return source[: found[0].start()] + "".join(changes.get(name, str)(body) for name, body in bodies)

    return cuda_device.build(kernels, libraries, change)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_find_mistakes(mutation, mutated, cuda_device):
    """In some order of the threads, in all of which the kernel is right."""
    generation, copies, _ = MUTATIONS[mutation]
    found = []
    for number in range(SCHEDULES):
        cuda_device.schedule(number)
        check_ragged(mutated[f"right{generation}{copies}"], SMALL[generation], "prefill", True)
        cuda_device.schedule(number)
        try:
            check_ragged(mutated[f"mutation{list(MUTATIONS).index(mutation)}"], SMALL[generation], "prefill", True)
        except (AssertionError, RuntimeError) as mistake:
            found.append(mistake)
    assert found


@pytest.mark.parametrize("generation", BARRIERS)
@pytest.mark.parametrize("copies", [False, True])
def test_no_barrier_is_added(generation, copies):
    """TVM puts barriers where it sees threads write what others read."""
    kernel = Scan(generation, 2, 64).kernel("prefill", "gpu", True, async_copies=copies)
    source = source_of({"wkv": kernel}, resolve_target("cuda").attributes)
    assert source.count(BARRIER) == len(BARRIERS[generation])


def test_tokens_of_a_stage():
    for copies in (False, True):
        assert tokens_of_a_stage(64, 0, copies) == MOST_TOKENS[copies]
        assert tokens_of_a_stage(SHARED_BYTES[copies] // 2, 0, copies) == 2
        assert tokens_of_a_stage(SHARED_BYTES[copies] // 2, 4, copies) == 1


@pytest.mark.parametrize("generation", BARRIERS)
def test_what_a_gpu_has_to_give(generation, monkeypatch):
    """No local memory, and room for a block on each multiprocessor beside another one."""
    architectures = ["sm_75", "sm_90"]
    try:
        find_compiler(architectures)
    except UserError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(cuda, "find_compiler", find_compiler)
    kernel = Scan(generation, 32, 64).kernel("prefill", "gpu", True, async_copies=True)
    source = source_of({"wkv": kernel}, resolve_target("cuda").attributes)
    for image in read_fatbin(compile_fatbin(source.encode(), architectures)):
        if image.is_machine_code:
            (resources,) = read_resources(image.code).values()
            assert resources.stack == 0 and resources.registers <= 160 and resources.shared <= 32 << 10
