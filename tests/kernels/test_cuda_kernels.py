"""CUDA kernels against their twins in float64, from the very source that is compiled for GPUs, on ``cuda_device``.

Checks and tests are those of ``test_kernels_gpu``; here float16 is float16."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import test_kernels_gpu as gpu
from support.cuda_device import CudaOnCpu
from test_kernels_gpu import (  # noqa: F401  tests of the fixture ``kernels``
    test_embedding,
    test_fill_writes_everything,
    test_group_norm,
    test_last_rows,
    test_layer_norm,
    test_norm_shift_mix,
    test_stream_reads_everything,
    test_wkv,
)

CASES = [  # every form, every shape
    ("several", "q4"),
    ("several", "q3"),
    ("ragged", "float32"),
    ("ragged", "q8"),
    ("single", "float16"),
    ("float32 inputs", "q4"),
    ("wide", "q4_float32"),
    ("wide", "q4"),
    ("widest", "float16"),
]
BARRIER = "__syncthreads();"


@pytest.fixture(scope="module")
def kernels(cuda_device: CudaOnCpu, libraries) -> dict[str, Callable]:
    return cuda_device.build(gpu.all_kernels(CASES), libraries)


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("kind", gpu.KERNELS)
def test_products(kernels, kind, name, form):
    gpu.test_products(kernels, kind, name, form)


def put(new: str, text: str, which: int = 0) -> Callable[[str], str]:
    """Has ``new`` in the place of one occurrence of ``text``."""

    def change(source: str) -> str:
        match = list(re.finditer(re.escape(text), source))[which]
        return source[: match.start()] + new + source[match.end() :]

    return change


def without(text: str, which: int = 0) -> Callable[[str], str]:
    return put("", text, which)


def gemm(function) -> None:
    gpu.check_product(function, "several", "q4", 65)


def group_norm(function) -> None:
    gpu.test_group_norm({"group_norm_3x97": function, "gated_group_norm_3x97": None}, 3, 97)


MUTATIONS = {
    "gemm without its first barrier": ("gemm_several_q4", without(BARRIER), gemm),
    "gemm without its second barrier": ("gemm_several_q4", without(BARRIER, 1), gemm),
    "gemm with one scale": ("gemm_several_q4", gpu.stuck("w1_q_scale"), gemm),
    "group_norm without its first barrier": ("group_norm_3x97", without(BARRIER), group_norm),
    "group_norm with one weight": ("group_norm_3x97", gpu.stuck("weight"), group_norm),
    "wkv5 without the barrier before it adds up": ("wkv5", without(BARRIER), gpu.check_wkv5),
    "wkv5 without the barrier after that": ("wkv5", without(BARRIER, 1), gpu.check_wkv5),
    "wkv5 with one receptance": ("wkv5", gpu.stuck("r"), gpu.check_wkv5),
    "layer_norm with one barrier that half of the threads pass": (
        "layer_norm_1600",
        put(f"if (threadIdx.x < 128) {BARRIER}", BARRIER),
        lambda function: gpu.test_layer_norm({"layer_norm_1600": function}, 1600, 7),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_find_mistakes(mutation, kernels, cuda_device, libraries):
    name, change, check = MUTATIONS[mutation]
    kernel = {name: gpu.all_kernels(CASES)[name]}
    with pytest.raises((AssertionError, RuntimeError)):
        check(cuda_device.build(kernel, libraries, change)[name])
