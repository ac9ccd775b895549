"""From a config, a scheme and a target to the Relax module of a library."""

from __future__ import annotations

import tvm
from tvm import relax

from ..config import RWKVConfig
from ..graph.model import GraphModel, best_activations, check_activations
from ..graph.target import GraphTarget
from ..quantization.schemes import Scheme
from ..schema import MLC, NATIVE, Activations, Family
from . import INTERFACES


def build_module(
    config: RWKVConfig,
    scheme: Scheme,
    target: GraphTarget,
    prefill_activations: Activations | None = None,
    family: Family = "fused",
    interface: str = NATIVE,
) -> tvm.IRModule:
    """The functions of a library: those of the interface, those of the family that measure the machine, and ``_metadata``,
    which returns ``schema.LibraryMetadata`` as JSON.

    ``prefill_activations`` are what the matrices of the blocks read in ``prefill``, and nowhere else, where not the fastest
    that are as exact as float32. Raises UserError where they cannot be.
    """
    activations = prefill_activations or best_activations(scheme, target, family)
    check_activations(activations, scheme, target, family)
    builder = relax.BlockBuilder()
    metadata = INTERFACES[interface].emit(builder, GraphModel(config, scheme, target, activations, family, as_stored=interface == MLC))
    with builder.function("_metadata", []):
        builder.emit_func_output(tvm.ir.StringImm(metadata.model_dump_json(by_alias=True)))
    return builder.finalize()


def float16_values(config: RWKVConfig, scheme: Scheme, target: GraphTarget) -> set[str]:
    """The names of the values that a library for the target keeps in float16."""
    return INTERFACES[NATIVE].float16_values(GraphModel(config, scheme, target))
