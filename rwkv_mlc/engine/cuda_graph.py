"""Decoding through a CUDA graph, which repeats its launches on the tensors it was recorded with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schema import CAPTURED_PREFIX
from .tvm_runtime import Device, Module, Tensor, copy, empty, tvm_ffi, virtual_machine

FUNCTION = f"{CAPTURED_PREFIX}decode"


class DecodeGraph:
    """``captured_decode`` of a library for one state: a virtual machine of its own, as a machine keeps one graph, and
    tensors of its own for the inputs. The first call records."""

    def __init__(self, executable: Module, device: Device, states: tvm_ffi.Array, params: tvm_ffi.Array):
        self.machine = virtual_machine(executable, device)
        self.inputs = [empty((1,), "int32", device) for _ in ("tokens", "segment_ends", "slots")]
        self.function, self.fixed = self.machine[FUNCTION], (states, params)

    def __call__(self, inputs: Sequence[np.ndarray]) -> Tensor:
        """The logits, in a tensor that the next call overwrites. ``inputs`` are int32 [1] each."""
        for array, kept in zip(inputs, self.inputs, strict=True):
            copy(array, kept)
        return self.function(*self.inputs, *self.fixed)
