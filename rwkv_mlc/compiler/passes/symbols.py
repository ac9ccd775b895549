"""Names under which the linker finds kernels."""

from __future__ import annotations

import tvm
from tvm import relax, tirx


@tvm.transform.module_pass(opt_level=0)
def attach_symbols(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """``AttachGlobalSymbol``, which puts a system library's prefix before the names of kernels, without their bodies at
    hand: TVM 0.27 fails to rewrite one that takes a buffer's address."""
    kernels = {name: f for name, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    hollow = mod.clone()
    for name, kernel in kernels.items():
        hollow.update_func(name, kernel.with_body(tirx.Evaluate(0)))
    named = relax.transform.AttachGlobalSymbol()(hollow)
    prefix = mod.attrs["system_lib_prefix"] if mod.attrs and "system_lib_prefix" in mod.attrs else ""
    for name, kernel in kernels.items():
        symbol = prefix + name.name_hint
        named.update_func(named.get_global_var(symbol), kernel.with_attr("global_symbol", symbol))
    return named
