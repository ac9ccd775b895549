"""What a graph has to know of the machine it is for; ``compiler.targets`` says it of every target."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.generation import Device
from ..schema import PREFILL_CHUNK


@dataclass(frozen=True, kw_only=True)
class GraphTarget:
    """``name`` is the suffix of the library's file name, ``device`` the kind of device that computes, a key of
    ``graph.ops.FAMILIES`` as well. For CPUs, ``integer_dot`` of ``tir_kernels.cpu.gemv`` and ``gemm_tile`` of
    ``tir_kernels.cpu.gemm`` choose the kernels. For GPUs, ``float16_lanes`` is how many float16 a vector may hold;
    ``tensor_cores`` and ``launch_graphs`` say whether the device has what ``tir_kernels.gpu.tensor_core`` calls
    and can repeat a record of launches. ``prefill_chunk`` is how many tokens of a prompt a call is planned for."""

    name: str
    device: Device
    integer_dot: str | None = None
    gemm_tile: tuple[int, int] | None = None
    float16_lanes: int = 8
    tensor_cores: bool = False
    launch_graphs: bool = False
    prefill_chunk: int = PREFILL_CHUNK

    def integer_dot_for(self, bits: int) -> str | None:
        """``integer_dot`` for weights of so many bits: Arm's sdot takes signed bytes."""
        return "sdot_of_bytes" if self.integer_dot == "sdot" and bits == 8 else self.integer_dot
