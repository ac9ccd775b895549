"""From a config, a scheme and a target to a Relax module."""

from __future__ import annotations

import json
from typing import Literal

import tvm
from tvm import relax, tirx

from tir_kernels.cpu.gemm_int8 import TILES

from ..compiler.passes.cuda_graph import CAPTURED
from ..compiler.passes.merge import MERGED
from ..compiler.targets import CompileTarget
from ..config import RWKVConfig
from ..errors import UserError
from ..models import model_module
from ..quantization.schemes import FloatForm, Scheme
from .ops.cpu import CPUOps
from .ops.gpu import GPUOps
from .ops.kernels import KernelOps
from .state import ExplicitState
from .weights import Weights, runtime_tensors

Activations = Literal["float32", "int8"]

FAMILIES = {"cpu": CPUOps, "gpu": GPUOps}
PHASES = {"prefill": "prefill", "score": "prefill", "decode": "decode", "batch_decode": "decode"}


def build_module(
    config: RWKVConfig, scheme: Scheme, target: CompileTarget, prefill_activations: Activations = "float32"
) -> tvm.IRModule:
    """The functions of a library.

    ``prefill``, ``score``, ``decode`` and ``batch_decode`` all take (tokens int32 [T], segment_ends int32 [B], slots int32
    [B], states, params): the tokens of B sequences one after the other, where each ends, the state slot of each, the tuple
    of state tensors [S, ...] in the order of ``models.<generation>.states`` layer by layer, updated in place, and the tuple of
    parameters in the order of ``_metadata()["params"]``. ``prefill``, ``batch_decode`` (one token a sequence, T = B) and
    ``decode`` (T = B = 1) return the logits after each sequence's last token, float32 [1, B, V]; ``score`` those at every
    position, [1, T, V]. ``_metadata`` returns a JSON string: what ``metadata`` gives and, under "values", for every function
    [kernel, {argument: names}] of each of its kernel calls in order (``ops.kernels``), but for those whose kernels are
    merged. The family adds functions that measure the machine.

    ``prefill_activations`` "int8" rounds what the matrices of the blocks read in ``prefill``, and nowhere else, to 8 bits.
    Raises UserError where that cannot be.
    """
    check_activations(prefill_activations, scheme, target)
    builder = relax.BlockBuilder()
    values = {}
    for name in PHASES:
        ops = _emit_function(builder, name, config, scheme, target, prefill_activations)
        merged = _is_merged(name, target)
        values[name] = [] if merged else [(value.kernel, value.outputs) for value in ops.values]
    ops.emit_probes()
    with builder.function("_metadata", []):
        text = json.dumps(metadata(config, scheme, target, prefill_activations) | {"values": values})
        builder.emit_func_output(tvm.ir.StringImm(text))
    return builder.finalize()


def float16_values(config: RWKVConfig, scheme: Scheme, target: CompileTarget) -> set[str]:
    """The names of the values that a library for the target keeps in float16."""
    ops = _emit_function(relax.BlockBuilder(), "batch_decode", config, scheme, target, "float32")
    narrow = [names for value, names in ops.names.items() if value.ty.dtype == "float16"]
    return {name for names in narrow for name in ([names] if isinstance(names, str) else names or ())}


def check_activations(prefill_activations: Activations, scheme: Scheme, target: CompileTarget) -> None:
    """Raises UserError for int8 with a scheme of floats, and on a target without the instruction that makes it faster."""
    if prefill_activations == "float32":
        return
    if isinstance(scheme.linear, FloatForm):
        raise UserError(
            f"--int8-prefill needs quantised weights and {scheme.name} has none; choose one such as q4f16_1."
        )
    if target.integer_dot not in TILES:
        raise UserError(
            "--int8-prefill needs a CPU with AVX-512 VNNI and the target is none; name one with --mcpu, such as "
            "icelake-server, or leave the option out."
        )


def metadata(
    config: RWKVConfig, scheme: Scheme, target: CompileTarget, prefill_activations: Activations = "float32"
) -> dict:
    """What a runner must know to call the library, the parameters in order with the layout each is wanted in, and what
    the library was built with."""
    layout_of = FAMILIES[target.family].layout_of
    tensors = runtime_tensors(model_module(config).parameters(config), scheme, layout_of)
    return {
        "model_config": config.to_dict(),
        "quantization": scheme.name,
        "target": target.name,
        "prefill_activations": prefill_activations,
        "params": [{"name": t.name, "shape": t.shape, "dtype": t.dtype, "layout": t.layout} for t in tensors],
    }


def _emit_function(
    builder: relax.BlockBuilder,
    name: str,
    config: RWKVConfig,
    scheme: Scheme,
    target: CompileTarget,
    prefill_activations: Activations,
) -> KernelOps:
    model, phase = model_module(config), PHASES[name]
    batch = 1 if name == "decode" else tirx.Var("batch", "int64")
    num_slots = tirx.Var("num_slots", "int64")
    rows = batch if phase == "decode" else tirx.Var("rows", "int64")
    parameters = model.parameters(config)
    tensors = runtime_tensors(parameters, scheme, FAMILIES[target.family].layout_of)
    roles = [(layer, state) for layer in range(config.num_hidden_layers) for state in model.states(config)]

    tokens = relax.Var("tokens", relax.TensorType([rows], "int32"))
    segment_ends = relax.Var("segment_ends", relax.TensorType([batch], "int32"))
    slots = relax.Var("slots", relax.TensorType([batch], "int32"))
    states, params = relax.Var("states", relax.ObjectType()), relax.Var("params", relax.ObjectType())

    attributes = {MERGED: _is_merged(name, target), CAPTURED: name == "decode" and target.launch_graphs}
    marked = {attribute: True for attribute, holds in attributes.items() if holds}
    with builder.function(name, [tokens, segment_ends, slots, states, params], marked or None):
        with builder.dataflow():

            def item(container: relax.Var, index: int, shape: list, dtype: str) -> relax.Var:
                """A tensor of a tuple that is typed as an object: the VM would check each field of a tuple type at every
                call, a tenth of a small model's decoding; the kernels check what they are given."""
                get = relax.ExternFunc("vm.builtin.tuple_getitem")
                args = [container, tirx.IntImm("int64", index)]
                return builder.emit(relax.op.call_pure_packed(get, *args, ty_args=relax.TensorType(shape, dtype)))

            variables = {t.name: item(params, i, list(t.shape), t.dtype) for i, t in enumerate(tensors)}
            family = FAMILIES[target.family]
            weights = Weights.of(parameters, scheme, variables, family.form_of)
            state = ExplicitState(
                {
                    (layer, s.role): item(states, i, [num_slots, *s.shape], "float32")
                    for i, (layer, s) in enumerate(roles)
                }
            )
            if target.family == "cpu":
                options = {"int8_activations": name == "prefill" and prefill_activations == "int8"}
            else:
                options = {"activation_dtype": scheme.float_dtype}
            ops = family(builder, config, target, phase, tokens, segment_ends, slots, **options)
            x = model.forward(config, ops, weights, state, tokens)
            if name != "score":
                x = ops.last_rows(x)
            x = ops.layer_norm(x, weights.norm("model.ln_out"))
            logits = builder.emit_output(ops.linear(x, weights.matrix("head")))
        builder.emit_func_output(logits)
    return ops


def _is_merged(function: str, target: CompileTarget) -> bool:
    return function == "decode" and target.family == "cpu"
