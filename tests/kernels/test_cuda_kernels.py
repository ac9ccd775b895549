"""Mistakes in CUDA C++ that the checks of ``test_kernels_gpu`` find, on ``cuda_device``."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from support.gpu_kernels import all_kernels, check_group_norm, check_layer_norm, check_product, check_wkv5, stuck

BARRIER = "__syncthreads();"


def put(new: str, text: str, which: int = 0) -> Callable[[str], str]:
    """Has ``new`` in the place of one occurrence of ``text``."""

    def change(source: str) -> str:
        match = list(re.finditer(re.escape(text), source))[which]
        return source[: match.start()] + new + source[match.end() :]

    return change


def without(text: str, which: int = 0) -> Callable[[str], str]:
    return put("", text, which)


def gemm(function) -> None:
    check_product(function, "several", "q4", 65)


def group_norm(function) -> None:
    check_group_norm(function, 3, 97)


MUTATIONS = {
    "gemm without its first barrier": ("gemm_several_q4", without(BARRIER), gemm),
    "gemm without its second barrier": ("gemm_several_q4", without(BARRIER, 1), gemm),
    "gemm with one scale": ("gemm_several_q4", stuck("w1_q_scale"), gemm),
    "group_norm without its first barrier": ("group_norm_3x97", without(BARRIER), group_norm),
    "group_norm with one weight": ("group_norm_3x97", stuck("weight"), group_norm),
    "wkv5 without the barrier before it adds up": ("wkv5", without(BARRIER), check_wkv5),
    "wkv5 without the barrier after that": ("wkv5", without(BARRIER, 1), check_wkv5),
    "wkv5 with one receptance": ("wkv5", stuck("r"), check_wkv5),
    "layer_norm with one barrier that half of the threads pass": (
        "layer_norm_1600",
        put(f"if (threadIdx.x < 128) {BARRIER}", BARRIER),
        lambda function: check_layer_norm(function, 1600, 7),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_find_mistakes(mutation, cuda_device, libraries):
    name, change, check = MUTATIONS[mutation]
    kernel = {name: all_kernels()[name]}
    with pytest.raises((AssertionError, RuntimeError)):
        check(cuda_device.build(kernel, libraries, change)[name])
