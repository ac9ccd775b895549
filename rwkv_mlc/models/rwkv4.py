"""RWKV-4 (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3; ChatRWKV ``model.py`` att_seq)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from .block import BlockGeneration, attention_size, matrix, mix, mixed_roles, squeezed, transformers_config
from .generation import Beside, Device, MlcChat, PackageHooks, Recurrence, ReferenceForward, Shapes, kernel_module
from .huggingface import TRANSFORMERS_NAMES, HuggingFace
from .parameter import Parameter, StateTensor, Transform
from .values import Role, product_role
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor

TARGETS = ("key", "value", "receptance")
AVERAGE = ("att_a", "att_b", "att_p")

# mlc-llm's mlc_llm/relax_model/rwkv.py, from August 2023 on
MLC_CHAT = MlcChat(
    time_mixing=(
        "time_decay",
        "time_first",
        "time_mix_key",
        "time_mix_value",
        "time_mix_receptance",
        "key.weight",
        "value.weight",
        "receptance.weight",
        "output.weight",
    ),
    float32=("time_decay", "time_first"),
    done={"attention.time_decay": "-exp"},
)


class RWKV4(BlockGeneration):
    name = "4"
    model_type = "rwkv4"
    tuned_state = None
    llama_cpp = None
    hugging_face = HuggingFace(
        architecture="RwkvForCausalLM", model_type="rwkv", names=TRANSFORMERS_NAMES, prefix="rwkv."
    )
    mlc_llm = None
    mlc_chat = MLC_CHAT
    package = PackageHooks(environment={}, states=("att_x", *AVERAGE, "ffn_x"))

    def recognizes(self, shapes: Shapes) -> bool:
        return "blocks.0.att.time_decay" in shapes

    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        return attention_size(shapes)

    def arrange(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        return tensors

    def sanitize(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        return tensors

    def hugging_face_config(self, config: RWKVConfig, names: Collection[str]) -> dict[str, Any]:
        if config.attention_size != config.hidden_size:
            raise UserError(
                f"transformers keeps states of hidden_size channels, {config.hidden_size} here, and this model's time mixing "
                f"has {config.attention_size}; it has no class for that."
            )
        return transformers_config(config)

    def attention(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        name, source, halvings = f"model.blocks.{layer}.attention", f"blocks.{layer}.att", config.halvings(layer)
        c, a = config.hidden_size, config.attention_size

        def vector(part: str, low: float, high: float, transform: Transform | None = None) -> Parameter:
            return Parameter(f"{name}.{part}", f"{source}.{part}", (a,), "vector", "wkv", (low, high), transform)

        return [
            vector("time_decay", -5.0, 3.0, lambda w: -np.exp(w)),
            vector("time_first", -1.0, 1.0),
            *(mix(name, source, target, c) for target in TARGETS),
            *(matrix(f"{name}.{t}", f"{source}.{t}", a, c, "time_mixing_inputs") for t in TARGETS),
            matrix(f"{name}.output", f"{source}.output", c, a, "time_mixing_output", halvings),
        ]

    def states(self, config: RWKVConfig) -> list[StateTensor]:
        """``att_x`` and ``ffn_x`` are the layer-normed inputs of the last token; ``att_a`` and ``att_b`` numerator and
        denominator of wkv, both scaled by exp(-``att_p``), the running maximum of the exponents."""
        c, a = config.hidden_size, config.attention_size
        average = [StateTensor(role, (a,), -1e30 if role == "att_p" else 0.0) for role in AVERAGE]
        return [StateTensor("att_x", (c,)), *average, StateTensor("ffn_x", (c,))]

    def rwkv_cpp_tensor(
        self, name: str, shape: tuple[int, ...], hidden_size: int
    ) -> tuple[tuple[int, ...], str | None]:
        return shape, "-exp" if name.endswith(".time_decay") else None

    def to_rwkv_cpp(self, config: RWKVConfig, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        done = "-exp" if name.endswith(".time_decay") else None
        return (squeezed(shape) if ".time_" in name else shape), done

    def time_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x + W_o (sigmoid(r) * wkv), equations 11 to 18."""
        w = block.at("attention")
        mixes = {target: w.vector(f"time_mix_{target}") for target in TARGETS}
        mixed = ops.norm_shift_mix(x, block.norm("ln1"), mixes, block.state("att_x"))
        activations = {"receptance": "sigmoid"}
        k, v, r = ops.linears([(mixed[t], w.matrix(t), activations.get(t)) for t in TARGETS])
        states = [block.state(role) for role in AVERAGE]
        (gated,) = ops.recurrence([r, k, v, w.vector("time_decay"), w.vector("time_first")], states, "att.gated")
        return ops.linear(gated, w.matrix("output"), residual=x)

    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        """(r through its sigmoid, k, v, w, u, a, b, p) -> r * wkv."""
        wkv4, channels = kernel_module(device, "wkv4"), config.attention_size
        parts = channels // wkv4.wkv4_channels(channels) if device == "cpu" else 1
        return Recurrence(partial(wkv4.wkv4, channels), parts, feeds_matrix=True)

    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        return [
            *mixed_roles("ln1", "att", TARGETS),
            *(product_role(f"att.{target}", f"att.mixed_{target}") for target in TARGETS),
            Role("att.receptance_sigmoid", "sigmoid", ("att.receptance",)),
            Role(
                "att.wkv",
                "wkv",
                ("att.key", "att.value"),
                tuple(f"state.{role}" for role in AVERAGE),
                ("att.time_decay", "att.time_first"),
            ),
            Role("att.gated", "gate", ("att.receptance_sigmoid", "att.wkv")),
            product_role("att.output", "att.gated", rescaled=True),
        ]

    def mistakes(self, config: RWKVConfig, role: str, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
        return iter(())

    @property
    def reference(self) -> ReferenceForward:
        from ..reference.rwkv4 import forward

        return forward

    def category(self, tokenizer_kind: str) -> str:
        return {"pile": "rwkv", "world": "rwkv_world"}[tokenizer_kind]

    def template(self, tokenizer_kind: str) -> str:
        """Raven, the only chat models with the Pile's vocabulary, are of this generation (ChatRWKV's README)."""
        return {"pile": "rwkv_raven", "world": "rwkv_world"}[tokenizer_kind]


GENERATIONS = (RWKV4(),)
