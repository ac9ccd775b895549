"""Mistakes in OpenCL C that the checks of ``test_kernels_gpu`` find."""

from __future__ import annotations

import pytest

from support.gpu_kernels import LENGTHS, SLOTS, all_kernels, check_product, check_shift, check_wkv4, check_wkv5, stuck
from support.opencl_device import OpenCL


@pytest.fixture(scope="module")
def opencl() -> OpenCL:
    return OpenCL()


BARRIER = "barrier(CLK_LOCAL_MEM_FENCE);"


def without_barrier(which: int):
    def change(source: str) -> str:
        parts = source.split(BARRIER)
        assert len(parts) > which + 1
        return (
            BARRIER.join(parts[: which + 1]) + parts[which + 1] + "".join(BARRIER + part for part in parts[which + 2 :])
        )

    return change


MUTATIONS = [  # PoCL makes barriers of its own where there are loops with barriers, so that gemm does not miss its own
    ("gemv_several_q4", without_barrier(0), lambda f: check_product(f, "several", "q4", 1)),
    ("gemv_several_q4", stuck("w0_q_scale"), lambda f: check_product(f, "several", "q4", 1)),
    ("gemm_several_q3", stuck("w1_q_weight"), lambda f: check_product(f, "several", "q3", 65)),
    ("gemm_single_float16", stuck("x"), lambda f: check_product(f, "single", "float16", 65)),
    ("gemm_single_float16", stuck("gate"), lambda f: check_product(f, "single", "float16", 65)),
    ("shift_1600_4", without_barrier(0), lambda f: check_shift({"shift_1600_4": f}, 1600, 4, LENGTHS, SLOTS)),
    ("shift_1600_4", without_barrier(1), lambda f: check_shift({"shift_1600_4": f}, 1600, 4, LENGTHS, SLOTS)),
    ("shift_1600_4", stuck("slots"), lambda f: check_shift({"shift_1600_4": f}, 1600, 4, LENGTHS, SLOTS)),
    ("shift_1600_4", stuck("mix_2"), lambda f: check_shift({"shift_1600_4": f}, 1600, 4, LENGTHS, SLOTS)),
    ("wkv4", stuck("u"), check_wkv4),
    ("wkv5", stuck("r"), check_wkv5),
    ("wkv5", str, lambda f: check_wkv5(f, transposed=True)),
]


@pytest.mark.parametrize("name, change, check", MUTATIONS, ids=[f"{i}_{m[0]}" for i, m in enumerate(MUTATIONS)])
def test_the_checks_find_mistakes(opencl, name, change, check):
    kernel = {name: all_kernels()[name]}
    if change is not str:
        check(opencl.build(kernel)[name])
    with pytest.raises(AssertionError):
        check(opencl.build(kernel, change)[name])
