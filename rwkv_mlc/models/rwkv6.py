"""RWKV-6 (Peng et al. 2024, "Eagle and Finch", section 4; ChatRWKV ``model.py`` att_seq_v6_0)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import RWKVConfig
from .block import (
    HUGGING_FACE_NAMES,
    ROWS,
    BlockGeneration,
    attention_size,
    headed_config,
    heads_of,
    low_rank,
    matrix,
    mixed_roles,
    norm,
    oriented,
    read_after_update,
    squeezed,
    states_of_heads,
)
from .generation import Beside, Device, PackageHooks, Recurrence, ReferenceForward, Shapes, TunedState, kernel_module
from .huggingface import TRANSFORMERS_NAMES, HuggingFace
from .llama_cpp import LLAMA_CPP_NAMES, LlamaCpp
from .parameter import NORMS, Parameter, StateTensor
from .values import Role, norm_role, product_role
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor

TARGETS = {"decay": "w", "key": "k", "value": "v", "receptance": "r", "gate": "g"}
"""What the mixes of the time mixing are for, in the order of the parts of ``time_maa_w1`` and ``time_maa_w2``, and what
BlinkDL calls each."""

MATRICES = ("key", "value", "receptance", "gate")
HALVES = ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")
"""The matrices of low rank."""


LLAMA_CPP = LlamaCpp(
    architecture="rwkv6",
    names=(
        *LLAMA_CPP_NAMES,
        (r"(blocks\.\d+)\.time_mix_lerp_fused\.weight$", r"\1.att.time_maa_wkvrg"),
        (r"(blocks\.\d+)\.time_mix_lerp_([xwkvrg])\.weight$", r"\1.att.time_maa_\2"),
        (r"(blocks\.\d+)\.time_mix_(w[12])\.weight$", r"\1.att.time_maa_\2"),
        (r"(blocks\.\d+)\.time_mix_(decay|decay_w[12])\.weight$", r"\1.att.time_\2"),
        (r"(blocks\.\d+)\.time_mix_first\.weight$", r"\1.att.time_faaaa"),
        (r"(blocks\.\d+)\.channel_mix_lerp_([kr])\.weight$", r"\1.ffn.time_maa_\2"),
    ),
    transposed=HALVES,
    by_head=("time_faaaa",),
    fused={"time_maa_wkvrg": tuple(f"time_maa_{letter}" for letter in TARGETS.values())},
)


class RWKV6(BlockGeneration):
    name = "6"
    model_type = "rwkv6"
    own = ("mix_rank", "decay_rank")
    package = PackageHooks(environment={}, states=("att_x", "att_kv", "ffn_x"), head_size_divisor=8)
    tuned_state = TunedState("att_kv", axes=(0, 2, 1))
    llama_cpp = LLAMA_CPP
    hugging_face = HuggingFace(
        architecture="Rwkv6ForCausalLM",
        model_type="rwkv6",
        names=TRANSFORMERS_NAMES,
        prefix="rwkv.",
        code=("configuration_rwkv6.py", "modeling_rwkv6.py", "rwkv_causal_lm.py"),
        configuration="Rwkv6Config",
        base="Rwkv6Model",
    )
    mlc_llm: Mapping[str, str] = {}
    mlc_chat = None
    state_parameters = 0

    # web-rwkv's converter calls BlinkDL's time_maa time_mix, and time_faaaa time_first
    hugging_face_names = (
        *HUGGING_FACE_NAMES,
        (r"(blocks\.\d+\.(?:att|ffn)\.)time_mix_(\w+)$", r"\1time_maa_\2"),
        (r"(blocks\.\d+\.att\.)time_first$", r"\1time_faaaa"),
    )

    def recognizes(self, shapes: Shapes) -> bool:
        return "blocks.0.att.time_maa_x" in shapes

    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        (_, hidden_size), bonus = shapes["emb.weight"], "blocks.0.att.time_faaaa"
        mixes, decay = (prod(shapes.get(f"blocks.0.att.{name}", ())) for name in ("time_maa_w1", "time_decay_w1"))
        other = attention_size(shapes).get("own", {})
        head_size = heads_of(shapes, bonus, other.get("attention_size", hidden_size))
        ranks = {"mix_rank": mixes // (len(TARGETS) * hidden_size), "decay_rank": decay // hidden_size}
        return {"head_size": head_size, "own": {**other, **ranks}}

    @property
    def own_in_configs(self) -> Mapping[str, str]:
        return {f"{name}_low_rank_dim": f"{name}_rank" for name in ("mix", "decay")}

    def arrange(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Low-rank matrices as BlinkDL stores them, [inputs, outputs]."""
        _, hidden_size = tensors["emb.weight"].shape
        return oriented(tensors, HALVES, hidden_size)

    def sanitize(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        return self.arrange(tensors)

    def hugging_face_config(self, config: RWKVConfig, names: Collection[str]) -> dict[str, Any]:
        return headed_config(config) | {theirs: config.own[ours] for theirs, ours in self.own_in_configs.items()}

    def attention(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        name, source, halvings = f"model.blocks.{layer}.attention", f"blocks.{layer}.att", config.halvings(layer)
        c, a, inputs = config.hidden_size, config.attention_size, "time_mixing_inputs"
        mix_rank, decay_rank = config.own["mix_rank"], config.own["decay_rank"]
        heads = (config.num_heads, config.head_size)
        padding = -c % ROWS

        def maa(target: str) -> Parameter:
            names = f"{name}.time_maa_{target}", f"{source}.time_maa_{TARGETS[target]}"
            return Parameter(*names, (1, 1, c), "vector", "low_rank", (0.0, 1.0))

        def stacked(array: np.ndarray) -> np.ndarray:
            return np.pad(array.swapaxes(1, 2), ((0, 0), (0, padding), (0, 0))).reshape(-1, mix_rank)

        return [
            static_mix(name, source, "x", c),
            low_rank(name, source, "time_maa_w1", c, len(TARGETS) * mix_rank),
            Parameter(
                f"{name}.time_maa_w2.weight",
                f"{source}.time_maa_w2",
                (len(TARGETS) * (c + padding), mix_rank),
                "low_rank",
                "low_rank",
                transform=stacked,
                source_shape=(len(TARGETS), mix_rank, c),
            ),
            *map(maa, TARGETS),
            Parameter(f"{name}.time_decay", f"{source}.time_decay", (1, 1, a), "vector", "low_rank", (-6.0, -0.5)),
            low_rank(name, source, "time_decay_w1", c, decay_rank),
            low_rank(name, source, "time_decay_w2", decay_rank, a),
            Parameter(f"{name}.time_faaaa", f"{source}.time_faaaa", heads, "vector", "wkv", (-1.0, 1.0)),
            *(matrix(f"{name}.{t}", f"{source}.{t}", a, c, inputs) for t in MATRICES),
            matrix(f"{name}.output", f"{source}.output", c, a, "time_mixing_output", halvings),
            *norm(f"{name}.ln_x", f"{source}.ln_x", a, "group_norm"),
        ]

    def shift_mix(self, name: str, source: str, target: str, size: int) -> Parameter:
        return static_mix(name, source, target, size)

    def states(self, config: RWKVConfig) -> list[StateTensor]:
        """``att_kv`` is S[h, k, v], key before value, as of generation 5."""
        return states_of_heads(config)

    def rwkv_cpp_tensor(
        self, name: str, shape: tuple[int, ...], hidden_size: int
    ) -> tuple[tuple[int, ...], str | None]:
        """rwkv.cpp transposes the last two axes of what is of low rank and gives decay and bonus a trailing axis of
        length 1."""
        part = name.rpartition(".")[2]
        if part in HALVES:
            return (*shape[:-2], shape[-1], shape[-2]), "transpose"
        if part == "time_decay":
            return (1, 1, prod(shape)), None
        if part == "time_faaaa":
            return (shape[:2] if len(shape) == 3 else (1, *shape[:1])), None  # [N, 1] is what is left of a single head
        return shape, None

    def to_rwkv_cpp(self, config: RWKVConfig, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        part = name.rpartition(".")[2]
        if part in HALVES:
            return (*shape[:-2], shape[-1], shape[-2]), "transpose"
        if part == "time_decay":
            return (config.num_heads, config.head_size, 1), None
        if part == "time_faaaa":
            return (*shape, 1), None
        return (squeezed(shape) if ".time_" in name else shape), None

    def time_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x + W_o (silu(g) * group_norm(wkv)), equations 16 to 22: the mixes and the decay depend on the token."""
        w = block.at("attention")
        mixed = ops.norm_shift_mix(
            x, block.norm("ln1"), {"x": w.vector("time_mix_x")}, block.state("att_x"), ("now", "before")
        )
        (hidden,) = ops.linears([(mixed["x"], w.matrix("time_maa_w1"), "tanh")])
        mixes = {target: w.vector(f"time_maa_{target}") for target in TARGETS}
        mixed = ops.expand_mix(mixed, hidden, w.matrix("time_maa_w2"), mixes)
        (hidden,) = ops.linears([(mixed["decay"], w.matrix("time_decay_w1"), "tanh")])
        activations = {"gate": "silu"}
        k, v, r, gate = ops.linears([(mixed[t], w.matrix(t), activations.get(t)) for t in MATRICES])
        (decay,) = ops.expand(
            {"att.decay": (hidden, w.matrix("time_decay_w2"), w.vector("time_decay"), "exp_minus_exp")}
        )
        inputs = [r, k, v, decay, w.vector("time_faaaa")]
        (out,) = ops.recurrence(inputs, [block.state("att_kv")], "att.wkv")
        out = ops.group_norm(out, w.norm("ln_x"), config.num_heads, config.group_norm_epsilon, gate)
        return ops.linear(out, w.matrix("output"), residual=x)

    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        """(r, k, v, w, u, kv) -> wkv."""
        kernel = partial(kernel_module(device, "wkv6").wkv6, config.num_heads, config.head_size)
        return Recurrence(kernel, parts=config.num_heads, stages=True)

    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        state = ("state.att_x",)
        return [
            Role("att.mixed_x", "token shift and mix", ("ln1",), state, ("att.time_maa_x",)),
            Role("att.time_maa_w1", "matrix product", ("att.mixed_x",), parameters=("att.time_maa_w1",)),
            Role("att.time_maa_w1_tanh", "tanh", ("att.time_maa_w1",)),
            *(
                Role(
                    f"att.mixed_{t}",
                    "token shift and mix",
                    ("ln1", "att.time_maa_w1_tanh"),
                    state,
                    (f"att.time_maa_{letter}", "att.time_maa_w2"),
                )
                for t, letter in TARGETS.items()
            ),
            Role("att.time_decay_w1", "matrix product", ("att.mixed_decay",), parameters=("att.time_decay_w1",)),
            Role("att.time_decay_w1_tanh", "tanh", ("att.time_decay_w1",)),
            *(product_role(f"att.{target}", f"att.mixed_{target}") for target in MATRICES),
            Role("att.gate_silu", "SiLU", ("att.gate",)),
            Role("att.time_decay_w2", "matrix product", ("att.time_decay_w1_tanh",), parameters=("att.time_decay_w2",)),
            Role("att.decay", "decay", ("att.time_decay_w2",), parameters=("att.time_decay",)),
            Role(
                "att.wkv",
                "wkv",
                ("att.key", "att.value", "att.receptance", "att.decay"),
                ("state.att_kv",),
                ("att.time_faaaa",),
            ),
            norm_role("att.ln_x", "att.wkv", "group norm"),
            Role("att.gated", "gate", ("att.ln_x", "att.gate_silu")),
            product_role("att.output", "att.gated", rescaled=True),
        ]

    def channel_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        mixes = mixed_roles("ln2", "ffn", ["key", "receptance"], "time_maa_")
        return [*mixes, *super().channel_mixing_roles(config, layer)[len(mixes) :]]

    def mistakes(self, config: RWKVConfig, role: str, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
        right = beside(role)
        if role == "att.decay" and right is not None:
            once = -np.log(np.maximum(right.astype(np.float64), 1e-300))
            yield "the decay lacks its outer exponential: exp(-exp(w)) became exp(w)", once
        elif role == "att.wkv":
            yield from read_after_update(config, beside)

    @property
    def reference(self) -> ReferenceForward:
        from ..reference.rwkv6 import forward

        return forward

    def category(self, tokenizer_kind: str) -> str:
        return "rwkv6"

    def template(self, tokenizer_kind: str) -> str:
        return {"pile": "plain", "world": "rwkv_world"}[tokenizer_kind]


def static_mix(name: str, source: str, target: str, size: int) -> Parameter:
    """The part of the token itself in what ``target`` reads; BlinkDL's time_maa is that of the token before."""
    names = f"{name}.time_mix_{target}", f"{source}.time_maa_{target[0]}"
    return Parameter(*names, (1, 1, size), "vector", NORMS, (0.0, 1.0), lambda maa: 1.0 - maa)


GENERATIONS = (RWKV6(),)
