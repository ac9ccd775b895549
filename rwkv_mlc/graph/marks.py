"""Attributes of Relax functions by which a graph asks the compiler's passes for a treatment."""

from __future__ import annotations

MERGED = "merge_kernels"  # its kernels between two norms become one: compiler.passes.merge
CAPTURED = "capture_cuda_graph"  # it also has a form that repeats its launches: compiler.passes.cuda_graph
VALUES = "named_values"  # what the outputs of its dataflow block are called, in order: compiler.passes.values
STORED = "stored_forms"  # how each parameter is stored, in their order: compiler.passes.stored
NARROW = "float16_values"  # those of ``VALUES`` that are kept in float16: compiler.passes.narrow
MLC_ENGINE = (
    "mlc_engine"  # what the metadata says to mlc_llm's engine, but for what a build finds out: compiler.passes.mlc
)
PLANNED = "planned_extents"  # numbers by the names of extents, up to which memory has one size: compiler.passes.memory
