"""Weights as they are stored, row by row: what embeddings read on every device, and matrix products on GPUs.

- float: ``weight`` [N, K].
- group: ``q_weight`` uint32 [N, words] and ``q_scale`` [N, groups], with the fields of ``grouped`` in the words of each row.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from .builder import arg
from .grouped import Grouped


@dataclass(frozen=True)
class RowFloat:
    """A matrix in ``dtype``, float16 or float32."""

    dtype: str

    def args(self, name: str, rows: int, columns: int) -> list:
        """Declare the arguments of a matrix [rows, columns]."""
        return [arg(f"{name}_weight", (rows, columns), self.dtype)]

    def element(self, tensors: list, row, column):
        """One weight, float32."""
        return T.cast(tensors[0][row, column], "float32")


@dataclass(frozen=True)
class RowGroup(Grouped):
    """A matrix of ``bits``-wide fields with one scale for every ``group`` of inputs."""

    def args(self, name: str, rows: int, columns: int) -> list:
        """Declare the arguments of a matrix [rows, columns]."""
        groups = self.groups(columns)
        return [
            arg(f"{name}_q_weight", (rows, groups * self.words), "uint32"),
            arg(f"{name}_q_scale", (rows, groups), self.scale_dtype),
        ]

    def element(self, tensors: list, row, column):
        """One weight, float32."""
        q_weight, q_scale = tensors
        shift = T.cast(column % self.fields * self.bits, "uint32")
        field = T.bitwise_and(T.shift_right(q_weight[row, column // self.fields], shift), T.uint32(2**self.bits - 1))
        scale = T.cast(q_scale[row, column // self.group], "float32")
        return (T.cast(T.cast(field, "int32"), "float32") - T.float32(self.max_int)) * scale


Rows = RowFloat | RowGroup
