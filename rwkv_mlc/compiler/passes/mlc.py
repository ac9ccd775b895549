"""A library whose functions have mlc_llm's names, and which says of itself what that engine asks for."""

from __future__ import annotations

import tvm
from tvm import relax

from ...graph.marks import MLC_ENGINE
from ...schema import MLC, FunctionSpec, LibraryMetadata, MlcMetadata
from .memory import METADATA, with_body

NATIVE_PREFIX = "native_"


@tvm.transform.module_pass(opt_level=0)
def publish_for_mlc(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Of a module whose metadata carries the mark ``MLC_ENGINE``: the functions ``mlc_f`` become ``f``, a native one of that
    name ``native_f``, which the metadata says; and the metadata becomes ``schema.MlcMetadata``. To come when memory is
    planned."""
    metadata = {name.name_hint: function for name, function in mod.functions_items()}.get(METADATA)
    if metadata is None or not metadata.attrs or MLC_ENGINE not in metadata.attrs:
        return mod
    functions = {name: f for name, f in mod.functions_items() if isinstance(f, relax.Function)}
    prefix = f"{MLC}_"
    published = {name.name_hint.removeprefix(prefix) for name in functions if name.name_hint.startswith(prefix)}

    def renamed(name: str) -> str:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
        return NATIVE_PREFIX + name if name in published else name

    described = LibraryMetadata.read(metadata.body.body.value)
    own = {name: spec for name, spec in described.functions.items() if not name.startswith(prefix)}
    symbols = {name: renamed(name) for name in own}
    specs = {
        name: spec if symbols[name] == name else spec.model_copy(update={"symbol": symbols[name]})
        for name, spec in own.items()
    }
    values = {name: calls for name, calls in described.values.items() if name in own}
    said = MlcMetadata.model_validate_json(str(metadata.attrs[MLC_ENGINE]))
    usage = {
        name.removeprefix(prefix): _at_most(spec, said) for name, spec in described.functions.items() if name not in own
    }
    whole = said.model_copy(
        update={"memory_usage": usage, "own": described.model_copy(update={"functions": specs, "values": values})}
    )
    result = tvm.IRModule(attrs=mod.attrs)
    for name, function in mod.functions_items():
        if name not in functions:
            result[name] = function
            continue
        if name.name_hint == METADATA:
            bindings = [b for block in function.body.blocks for b in block.bindings]
            function = with_body(function, bindings, tvm.ir.StringImm(whole.model_dump_json(by_alias=True)))
        new = renamed(name.name_hint)
        result[name if new == name.name_hint else tvm.ir.GlobalVar(new)] = function.with_attr("global_symbol", new)
    return result


def _at_most(spec: FunctionSpec, said: MlcMetadata) -> int:
    return spec.allocated(T=said.prefill_chunk_size, B=said.max_batch_size)
