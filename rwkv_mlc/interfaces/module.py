"""From a config, a scheme and a target to the Relax module of a library."""

from __future__ import annotations

import dataclasses

import tvm
from tvm import relax

from ..config import RWKVConfig
from ..graph.marks import MLC_ENGINE
from ..graph.model import GraphModel, best_activations, check_activations
from ..graph.target import GraphTarget
from ..quantization.schemes import Scheme
from ..schema import MLC, NATIVE, Activations, Family
from . import INTERFACES, native
from .mlc import described_for_engine


def build_module(
    config: RWKVConfig,
    scheme: Scheme,
    target: GraphTarget,
    prefill_activations: Activations | None = None,
    family: Family = "fused",
    interfaces: tuple[str, ...] = (NATIVE,),
) -> tvm.IRModule:
    """The functions of a library: those of the interfaces, the first of which the metadata is of, those of the family that
    measure the machine, and ``_metadata``, which returns ``schema.LibraryMetadata`` as JSON.

    ``prefill_activations`` are what the matrices of the blocks read in ``prefill``, and nowhere else, where not the fastest
    that are as exact as float32. Raises UserError where they cannot be, and where mlc_llm could not use the model."""
    activations = prefill_activations or best_activations(scheme, target, family)
    check_activations(activations, scheme, target, family)
    builder, model = relax.BlockBuilder(), GraphModel(config, scheme, target, activations, family)
    as_stored = dataclasses.replace(model, as_stored=True)
    first, *others = (INTERFACES[name].emit(builder, as_stored if name == MLC else model) for name in interfaces)
    metadata, marks = first, {}
    for other in others:
        both = {"functions": metadata.functions | other.functions, "values": metadata.values | other.values}
        metadata = metadata.model_copy(update=both)
    if MLC in interfaces:
        marks[MLC_ENGINE] = described_for_engine(as_stored, first).model_dump_json(by_alias=True)
    with builder.function("_metadata", [], marks or None):
        builder.emit_func_output(tvm.ir.StringImm(metadata.model_dump_json(by_alias=True)))
    return builder.finalize()


def float16_values(config: RWKVConfig, scheme: Scheme, target: GraphTarget) -> set[str]:
    """The names of the values that a library for the target keeps in float16."""
    return native.float16_values(GraphModel(config, scheme, target))
