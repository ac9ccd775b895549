"""What the compiler leaves out of TVM's lowering would change nothing."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx

from rwkv_mlc.compiler import pipeline
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import get_scheme
from support.compiled import in_memory
from support.synthetic import synthetic_checkpoint


def lowered(kernels: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    bound = tirx.transform.BindTarget(target.with_host(target.host or target))(kernels)
    return tirx.get_tir_pipeline("s_tir")[0](bound)


@pytest.mark.parametrize("name", ["llvm", "cuda -arch=sm_80", "metal"])
def test_idle_passes_find_nothing(name, monkeypatch):
    target = resolve_target(name)
    config, _, _ = resolve(in_memory(synthetic_checkpoint("5.2", hidden_size=64, layers=1, head_size=32)))
    module = build_module(config, get_scheme("q4f16_1"), target)
    kernels = tvm.IRModule(
        {
            variable: function.with_attr("global_symbol", variable.name_hint)
            for variable, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc)
        }
    )
    with pipeline.lowering():
        without = lowered(kernels, target.tvm)
    monkeypatch.setattr(pipeline, "IDLE", ())
    with pipeline.lowering():
        tvm.ir.assert_structural_equal(lowered(kernels, target.tvm), without)
