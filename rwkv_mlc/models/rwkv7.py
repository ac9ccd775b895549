"""RWKV-7 (Peng et al. 2025, "RWKV-7 Goose", section 4; RWKV-LM's ``rwkv_v7_numpy.py``) and RWKV-7a, whose channel mixing is
scaled by an embedding of its own (``rwkv_v7a_demo.py``)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from .block import (
    HUGGING_FACE_NAMES,
    BlockGeneration,
    heads_of,
    low_rank,
    matrix,
    norm,
    oriented,
    states_of_heads,
    transposed,
)
from .generation import Beside, Device, PackageHooks, Recurrence, ReferenceForward, Shapes, TunedState, kernel_module
from .huggingface import FLA_NAMES, PREFIX_RULES, HuggingFace, reading
from .llama_cpp import LLAMA_CPP_NAMES, LlamaCpp
from .parameter import NORMS, Parameter, StateTensor
from .values import Role, norm_role, product_role
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor

MIXES = {"receptance": "r", "key": "k", "value": "v", "decay": "w", "rate": "a", "gate": "g"}
"""What the mixed inputs are for, and what BlinkDL calls each; the first three are those of large matrices."""

MATRICES = ("receptance", "key", "value")
RANKS = {"decay_rank": "w", "rate_rank": "a", "value_rank": "v", "gate_rank": "g"}
"""The sizes of the low-rank pairs by BlinkDL's letter."""
IN_CONFIGS = {
    "decay_low_rank_dim": "decay_rank",
    "a_low_rank_dim": "rate_rank",
    "v_low_rank_dim": "value_rank",
    "gate_low_rank_dim": "gate_rank",
}

EPSILON = 1e-5
"""Of BlinkDL's layer norms."""

HIDDEN = {"w": "tanh", "a": None, "v": None, "g": "sigmoid"}
"""What is applied between the halves of a pair."""

HALVES = tuple(f"{letter}{half}" for letter in HIDDEN for half in "12")

FIRST_FLA_NAMES = ((r"(blocks\.\d+\.att)\.x_x$", r"\1.x_rwkvag"),)
"""The first version of flash-linear-attention has one x_x of all mixes."""

HUGGING_FACE = HuggingFace(
    architecture="RWKV7ForCausalLM",
    model_type="rwkv7",
    names=FLA_NAMES,
    prefix="model.",
    code=("configuration_rwkv7.py", "modeling_rwkv7.py", "rwkv_causal_lm.py"),
    configuration="RWKV7Config",
    base="RWKV7Model",
    transposed=tuple(f".att.{half}" for half in HALVES),
    flat=(".att.w0", ".att.a0", ".att.v0", ".att.k_k", ".att.k_a", ".ffn.x_k"),
)

LLAMA_CPP = LlamaCpp(
    architecture="rwkv7",
    names=(
        *LLAMA_CPP_NAMES,
        (r"blocks\.0\.time_mix_v[012]\.weight$", ""),  # copies of a0 to a2 stand in for what the first layer has not
        (r"(blocks\.\d+)\.time_mix_lerp_fused\.weight$", r"\1.att.x_rwkvag"),
        (r"(blocks\.\d+)\.time_mix_([wavg][012]|k_k|k_a|r_k)\.weight$", r"\1.att.\2"),
        (r"(blocks\.\d+)\.channel_mix_lerp_k\.weight$", r"\1.ffn.x_k"),
    ),
    transposed=HALVES,
    by_head=("r_k",),
    fused={"x_rwkvag": tuple(f"x_{letter}" for letter in "rwkvag")},
)


class RWKV7(BlockGeneration):
    """``embedded`` says whether the channel mixing has embeddings of its own: 7a."""

    model_type = "rwkv7"
    hugging_face_names = (*PREFIX_RULES, *reading(FLA_NAMES), *FIRST_FLA_NAMES, *HUGGING_FACE_NAMES)
    tuned_state = TunedState("att_kv", axes=(0, 1, 2))
    state_parameters = 2
    mlc_llm = None
    mlc_chat = None

    def __init__(self, name: str, embedded: bool):
        self.name, self.embedded = name, embedded
        self.own = (*RANKS, *(("embedding_rank",) if embedded else ()))

    @property
    def llama_cpp(self) -> LlamaCpp | None:
        """llama.cpp has no embeddings of the channel mixing."""
        return None if self.embedded else LLAMA_CPP

    @property
    def package(self) -> PackageHooks | None:
        """None: the package compiles what it runs of RWKV-7, so that its values cannot be seen."""
        return None

    def recognizes(self, shapes: Shapes) -> bool:
        embedded = any(name.endswith(".ffn.s_emb.weight") for name in shapes)
        return "blocks.0.att.r_k" in shapes and (embedded or not self.embedded)

    def dimensions(self, shapes: Shapes) -> dict[str, Any]:
        _, hidden_size = shapes["emb.weight"]
        size = math.prod(shapes["blocks.0.att.r_k"])
        own = {} if size == hidden_size else {"attention_size": size}
        for field, letter in RANKS.items():
            half = f"blocks.{1 if letter == 'v' else 0}.att.{letter}1"  # what the first layer has of v nothing reads
            own[field] = math.prod(shapes.get(half) or shapes.get(f"{half}.weight", (0,))) // hidden_size
        if self.embedded:
            own["embedding_rank"] = math.prod(shapes.get("blocks.0.ffn.s1", (0,))) // hidden_size
        return {"head_size": heads_of(shapes, "blocks.0.att.r_k", size), "own": own}

    @property
    def own_in_configs(self) -> Mapping[str, str]:
        return IN_CONFIGS

    def arrange(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Low-rank matrices as BlinkDL stores them, [inputs, outputs], without those of the first layer's value, which
        nothing reads; mixes one by one, which rwkv.cpp and fla stack."""
        _, hidden_size = tensors["emb.weight"].shape
        result: dict[str, LazyTensor] = {}
        for name, tensor in tensors.items():
            part = name.rpartition(".att.")[2]
            if name.startswith("blocks.0.att.v") and part.removesuffix(".weight") in ("v0", "v1", "v2"):
                continue
            if part == "x_rwkvag" and math.prod(tensor.shape) == len(MIXES) * hidden_size:
                parts = {letter: _row(tensor, i, hidden_size) for i, letter in enumerate("rwkvag")}
                result |= {name.replace(part, f"x_{letter}"): row for letter, row in parts.items()}
                continue
            if part.removesuffix(".weight") in HALVES and part not in HALVES:
                name, tensor = name.removesuffix(".weight"), transposed(tensor)
            result[name] = tensor
        return oriented(result, tuple(f".att.{half}" for half in HALVES), hidden_size)

    def sanitize(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The tables of 7a with what ``s_emb_x`` adds to them."""
        arranged = self.arrange(tensors)
        return _folded(arranged) if self.embedded else arranged

    def check_norms(self, config: RWKVConfig, of_folder: bool) -> None:
        """Of a folder they are those of flash-linear-attention, and the tables of 7a are folded with the epsilon that BlinkDL's
        have."""
        if of_folder and not self._has_fla_norms(config):
            raise UserError(
                f"The config.json means an epsilon of {config.head_size * config.layer_norm_epsilon:g} for the norm of heads, "
                f"head_dim times norm_eps, where {config.group_norm_epsilon:g} is what is built; only heads of 64 with a "
                "norm_eps of 1e-5 have that."
            )
        if self.embedded and config.layer_norm_epsilon != EPSILON:
            raise UserError(
                f"An RWKV-7a with layer norms of epsilon {config.layer_norm_epsilon:g} is not built: its tables go with "
                f"{EPSILON:g}."
            )

    # Parameters

    def attention(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        name, source, halvings = f"model.blocks.{layer}.attention", f"blocks.{layer}.att", config.halvings(layer)
        c, a, heads = config.hidden_size, config.attention_size, (config.num_heads, config.head_size)

        def by_head(part: str, low: float, high: float) -> Parameter:
            stored = heads if part == "r_k" else (1, 1, a)
            names = f"{name}.{part}", f"{source}.{part}"
            return Parameter(*names, heads, "vector", "wkv", (low, high), source_shape=stored)

        def bias(part: str, low: float, high: float) -> Parameter:
            return Parameter(f"{name}.{part}", f"{source}.{part}", (1, 1, a), "vector", "low_rank", (low, high))

        def pair(letter: str, rank: int) -> list[Parameter]:
            return [
                low_rank(name, source, f"{letter}1", c, rank),
                low_rank(name, source, f"{letter}2", rank, a),
            ]

        ranks = {letter: config.own[field] for field, letter in RANKS.items()}
        output = matrix(f"{name}.output", f"{source}.output", c, a, "time_mixing_output", halvings)
        if layer == 0:  # one of its inputs carries millions of times the energy of the others
            output = dataclasses.replace(output, role="kept")
        return [
            *(mix(name, source, target, letter, c) for target, letter in MIXES.items()),
            bias("w0", -6.0, -0.5),
            *pair("w", ranks["w"]),
            bias("a0", -1.0, 1.0),
            *pair("a", ranks["a"]),
            *([bias("v0", 0.0, 1.5), *pair("v", ranks["v"])] if layer else []),
            *pair("g", ranks["g"]),
            by_head("k_k", 0.5, 1.0),
            by_head("k_a", 0.8, 1.2),
            by_head("r_k", -0.3, 0.3),
            *(matrix(f"{name}.{t}", f"{source}.{t}", a, c, "time_mixing_inputs") for t in MATRICES),
            output,
            *norm(f"{name}.ln_x", f"{source}.ln_x", a, "group_norm"),
        ]

    def feed_forward(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        name, source, halvings = f"model.blocks.{layer}.feed_forward", f"blocks.{layer}.ffn", config.halvings(layer)
        c, f = config.hidden_size, config.intermediate_size
        scale = []
        if self.embedded:
            rank = config.own["embedding_rank"]
            names, shape = (f"{name}.s_emb.weight", f"{source}.s_emb.weight"), (config.vocab_size, rank * rank)
            scale = [
                Parameter(*names, shape, "table", "low_rank"),
                low_rank(name, source, "s1", c, rank),
                low_rank(name, source, "s2", rank, f),
                Parameter(f"{name}.s0", f"{source}.s0", (1, 1, f), "vector", "low_rank", (0.5, 1.5)),
            ]
        return [
            mix(name, source, "key", "k", c),
            *scale,
            matrix(f"{name}.key", f"{source}.key", f, c, "channel_mixing_inputs"),
            matrix(f"{name}.value", f"{source}.value", c, f, "channel_mixing_value", halvings, sparse_input=True),
        ]

    def states(self, config: RWKVConfig) -> list[StateTensor]:
        """``att_kv`` is S[h, v, k], value before key."""
        return states_of_heads(config)

    @property
    def hugging_face(self) -> HuggingFace | None:
        """None for 7a, of which no layout is published."""
        return None if self.embedded else HUGGING_FACE

    def hugging_face_config(self, config: RWKVConfig, names: Collection[str]) -> dict[str, Any]:
        """The keys of flash-linear-attention's ``RWKV7Config``; ``attention_hidden_size``, which it does not have, where that
        is another than ``hidden_size``."""
        if not (config.layer_norm_epsilon == EPSILON and self._has_fla_norms(config)):
            raise UserError(
                f"The layout of RWKV-7 has head_dim times 1e-5 for the norm of heads, {config.head_size * EPSILON:g}; this "
                f"model has {config.group_norm_epsilon:g}, and {config.layer_norm_epsilon:g} for its layer norms."
            )
        other = {"attention_hidden_size": config.attention_size} if "attention_size" in config.own else {}
        return {
            "attn_mode": "chunk",
            **{theirs: config.own[ours] for theirs, ours in IN_CONFIGS.items()},
            **other,
            "fuse_norm": False,
            "head_dim": config.head_size,
            "num_heads": config.num_heads,
            "hidden_act": "sqrelu",
            "hidden_ratio": config.intermediate_size / config.hidden_size,
            "max_position_embeddings": config.context_length,
            "norm_bias": True,
            "norm_eps": config.layer_norm_epsilon,
            "norm_first": True,
            "value_dim": [config.attention_size] * config.num_hidden_layers,
        }

    def _has_fla_norms(self, config: RWKVConfig) -> bool:
        """flash-linear-attention has ``head_dim * norm_eps`` in the norm of heads (``fla/layers/rwkv7.py``)."""
        return math.isclose(config.head_size * config.layer_norm_epsilon, config.group_norm_epsilon, rel_tol=1e-6)

    def rwkv_cpp_tensor(
        self, name: str, shape: tuple[int, ...], hidden_size: int
    ) -> tuple[tuple[int, ...], str | None]:
        """rwkv.cpp transposes what is of low rank."""
        return (shape[::-1], "transpose") if name.rpartition(".att.")[2] in HALVES else (shape, None)

    @property
    def in_rwkv_cpp(self) -> bool:
        return not self.embedded

    def to_rwkv_cpp(self, config: RWKVConfig, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        return self.rwkv_cpp_tensor(name, shape, config.hidden_size)

    # The graph

    def blocks(self, config: RWKVConfig, ops: Ops, weights: Weights, x: Expr) -> Expr:
        first = None
        for layer in range(config.num_hidden_layers):
            block = weights.block(layer)
            x, value = self.residual_time_mixing(config, ops, block, x, first)
            first = value if first is None else first
            x = self.channel_mixing(config, ops, block, x)
            if config.halvings(layer + 1) > config.halvings(layer):
                x = ops.halve(x)
        return x

    def time_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """That of the first layer."""
        return self.residual_time_mixing(config, ops, block, x, None)[0]

    def residual_time_mixing(
        self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr, first: Expr | None
    ) -> tuple[Expr, Expr]:
        """x + W_o (g * (group_norm(wkv) + bonus)), and the layer's values; ``first`` are those of the first layer."""
        w = block.at("attention")
        mixes = {target: w.vector(f"time_mix_{target}") for target in MIXES}
        mixed = ops.norm_shift_mix(x, block.norm("ln1"), mixes, block.state("att_x"))
        pairs = {"w": "decay", "a": "rate", "g": "gate"} | ({} if first is None else {"v": "value"})
        r, k, v = ops.linears([(mixed[t], w.matrix(t), None) for t in MATRICES])
        hidden = ops.linears([(mixed[target], w.matrix(f"{s}1"), HIDDEN[s]) for s, target in pairs.items()])
        roles = {
            "w": ("att.decay", "w0", "bounded_decay"),
            "a": ("att.rate", "a0", "sigmoid"),
            "g": ("att.g2", None, None),
            "v": ("att.value_mix", "v0", "sigmoid"),
        }
        expansions = {}
        for letter, h in zip(pairs, hidden):
            role, bias, activation = roles[letter]
            expansions[role] = (h, w.matrix(f"{letter}2"), w.vector(bias) if bias else None, activation)
        decay, rate, gate, *share = ops.expand(expansions)
        values = [v, rate] if first is None else [first, *share]  # v + (v - v) * rate in the first layer
        inputs = [r, decay, k, v, rate, *values, w.vector("k_k"), w.vector("k_a"), w.vector("r_k")]
        out, bonus = ops.recurrence(inputs, [block.state("att_kv")], "att.wkv", "att.bonus")
        out = ops.group_norm(out, w.norm("ln_x"), config.num_heads, config.group_norm_epsilon, gate, bonus)
        return ops.linear(out, w.matrix("output"), residual=x), v

    def channel_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x + W_v relu(W_k ...)^2; in 7a relu(W_k ...)^2 * (s_2 M s_1 ln_2(x) + s_0), where M is the token's own matrix."""
        w, mixes = block.at("feed_forward"), {"key": block.at("feed_forward").vector("time_mix_key")}
        mixed = ops.norm_shift_mix(x, block.norm("ln2"), mixes, block.state("ffn_x"), ("now",) if self.embedded else ())
        (key,) = ops.linears([(mixed["key"], w.matrix("key"), "squared_relu")])
        if self.embedded:
            (hidden,) = ops.linears([(mixed["now"], w.matrix("s1"), None)])
            hidden = ops.token_matrix(hidden, w.matrix("s_emb"), "ffn.s_emb")
            (key,) = ops.expand({"ffn.scaled": (hidden, w.matrix("s2"), w.vector("s0"), None)}, gate=key)
        return ops.linear(key, w.matrix("value"), residual=x)

    def recurrence(self, config: RWKVConfig, device: Device) -> Recurrence:
        """(r, w, k, v, a, v_first, nu, k_k, k_a, r_k, kv) -> wkv and the bonus."""
        kernel = partial(kernel_module(device, "wkv7").wkv7, config.num_heads, config.head_size)
        return Recurrence(kernel, parts=config.num_heads, stages=True)

    # Roles

    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        read: tuple[str, ...] = ("att.decay", "att.key", "att.value", "att.rate")
        pairs = [("w", "decay"), ("a", "rate"), ("g", "gate")]
        share = []
        if layer:
            read += ("att.value_mix", "blocks.0.att.value")
            pairs.append(("v", "value"))
            share = [
                Role("att.v2", "matrix product", ("att.v1",), parameters=("att.v2",)),
                Role("att.value_mix", "sigmoid", ("att.v2",), parameters=("att.v0",)),
            ]
        hidden = []
        for letter, target in pairs:
            hidden.append(
                Role(f"att.{letter}1", "matrix product", (f"att.mixed_{target}",), parameters=(f"att.{letter}1",))
            )
            if activation := HIDDEN[letter]:
                hidden.append(Role(f"att.{letter}1_{activation}", activation, (f"att.{letter}1",)))
        return [
            *(
                Role(f"att.mixed_{target}", "token shift and mix", ("ln1",), ("state.att_x",), (f"att.x_{letter}",))
                for target, letter in MIXES.items()
            ),
            *(product_role(f"att.{target}", f"att.mixed_{target}") for target in MATRICES),
            *hidden,
            Role("att.w2", "matrix product", ("att.w1_tanh",), parameters=("att.w2",)),
            Role("att.decay", "decay", ("att.w2",), parameters=("att.w0",)),
            Role("att.a2", "matrix product", ("att.a1",), parameters=("att.a2",)),
            Role("att.rate", "sigmoid", ("att.a2",), parameters=("att.a0",)),
            Role("att.g2", "matrix product", ("att.g1_sigmoid",), parameters=("att.g2",)),
            *share,
            Role("att.wkv", "wkv", (*read, "att.receptance"), ("state.att_kv",), ("att.k_k", "att.k_a")),
            Role("att.bonus", "bonus", (*read[1:], "att.receptance"), parameters=("att.r_k", "att.k_a")),
            norm_role("att.ln_x", "att.wkv", "group norm"),
            Role("att.gated", "gate", ("att.ln_x", "att.g2", "att.bonus")),
            product_role("att.output", "att.gated", rescaled=True),
        ]

    def channel_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        hidden, scale = "ffn.k_squared", []
        if self.embedded:
            hidden = "ffn.scaled"
            scale = [
                Role("ffn.s1", "matrix product", ("ln2",), parameters=("ffn.s1",)),
                Role("ffn.s_emb", "token's matrix", ("ffn.s1",), parameters=("ffn.s_emb.weight",)),
                Role("ffn.s2", "matrix product", ("ffn.s_emb",), parameters=("ffn.s2",)),
                Role("ffn.scale", "bias", ("ffn.s2",), parameters=("ffn.s0",)),
                Role("ffn.scaled", "gate", ("ffn.k_squared", "ffn.scale")),
            ]
        return [
            Role("ffn.mixed_key", "token shift and mix", ("ln2",), ("state.ffn_x",), ("ffn.x_k",)),
            product_role("ffn.key", "ffn.mixed_key"),
            Role("ffn.k_squared", "squared ReLU", ("ffn.key",)),
            *scale,
            product_role("ffn.value", hidden, rescaled=True),
        ]

    def mistakes(self, config: RWKVConfig, role: str, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
        right = beside(role)
        if right is None:
            return
        if role == "att.decay":
            exponent = np.log(np.maximum(right.astype(np.float64), 1e-300))
            yield "the decay's exponent lacks its factor exp(-1/2)", np.exp(exponent * math.exp(0.5))
            yield "the decay is not between exp(-exp(-1/2)) and 1: its exponent lost the minus sign", np.exp(-exponent)
        elif role == "att.wkv":
            yield "the state is read before its update: the first token puts out nothing", np.zeros_like(right[:1])
            yield from self._of_other_values(config, right[:1], beside)
        elif role == "att.gated":
            yield from _product("the bonus is not added to the group norm", beside("att.ln_x"), beside("att.g2"))
        elif role == "ffn.scaled":
            yield from _product("s0 is not added to the scale", beside("ffn.k_squared"), beside("ffn.s2"))

    def _of_other_values(
        self, config: RWKVConfig, right: np.ndarray, beside: Beside
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The first token's output, (r k') v' in every head, with v' from the values of another layer than the first."""
        own, first, share = (beside(name) for name in ("att.value", "blocks.0.att.value", "att.value_mix"))
        if own is None or first is None or share is None:
            return

        def heads(values: np.ndarray) -> np.ndarray:
            return values[0].astype(np.float64).reshape(config.num_heads, config.head_size)

        def mixed(values: np.ndarray) -> np.ndarray:
            return heads(own) + (heads(values) - heads(own)) * heads(share)

        value = mixed(first)
        asked = (heads(right) * value).sum(1, keepdims=True) / (value**2).sum(1, keepdims=True)
        for layer in range(1, config.num_hidden_layers):
            if (other := beside(f"blocks.{layer}.att.value")) is not None:
                text = f"the values of blocks.{layer} take the place of the first layer's"
                yield text, (asked * mixed(other)).reshape(1, -1)

    @property
    def reference(self) -> ReferenceForward:
        from ..reference.rwkv7 import forward

        return forward

    def category(self, tokenizer_kind: str) -> str:
        return "rwkv7"

    def template(self, tokenizer_kind: str) -> str:
        """Of the G1 series, which is what people chat with."""
        return {"pile": "plain", "world": "rwkv_g1"}[tokenizer_kind]


def mix(name: str, source: str, target: str, letter: str, size: int) -> Parameter:
    """The part of the token itself in what ``target`` reads; BlinkDL's x_r and so on are those of the token before."""
    names, drawn = (f"{name}.time_mix_{target}", f"{source}.x_{letter}"), (0.0, 1.0)
    return Parameter(*names, (1, 1, size), "vector", NORMS, drawn, lambda part: 1.0 - part)


def _product(text: str, a: np.ndarray | None, b: np.ndarray | None) -> Iterator[tuple[str, np.ndarray]]:
    """What a gate gives of two values, where they are known."""
    if a is not None and b is not None:
        yield text, a.astype(np.float64) * b


def _row(tensor: LazyTensor, index: int, size: int) -> LazyTensor:
    """One of the vectors of ``size`` that lie below each other."""
    return dataclasses.replace(tensor, shape=(size,), read=lambda: tensor.read().reshape(-1, size)[index])


def _folded(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """With each table of 7a plus ln0(emb) s_emb_x^T, computed in float32 when it is read, in place of the two. Raises
    UserError for a table that has not a row of a square number of values for each token, or whose ``s_emb_x`` does not fit."""
    result, (vocab_size, hidden_size) = dict(tensors), tensors["emb.weight"].shape

    def table(own: LazyTensor, projection: LazyTensor) -> LazyTensor:
        def read() -> np.ndarray:
            x = tensors["emb.weight"].read().astype(np.float32)
            x -= x.mean(1, keepdims=True)
            x /= np.sqrt((x**2).mean(1, keepdims=True) + np.float32(EPSILON))
            x *= tensors["blocks.0.ln0.weight"].read().astype(np.float32)
            x += tensors["blocks.0.ln0.bias"].read().astype(np.float32)
            folded = x @ projection.read().astype(np.float32).T
            folded += own.read()
            return folded

        return dataclasses.replace(own, read=read)

    for name in tensors:
        if not name.endswith(".ffn.s_emb.weight"):
            continue
        rows, size = (*tensors[name].shape, 0, 0)[:2]
        if rows != vocab_size or isqrt(size) ** 2 != size:
            raise UserError(
                f"{name} is {list(tensors[name].shape)}; RWKV-7a has a square matrix for each of {vocab_size} tokens there."
            )
        projection = result.pop(added := name.replace("s_emb.", "s_emb_x."), None)
        if projection is None:
            continue
        if projection.shape != (size, hidden_size):
            raise UserError(f"{added} is {list(projection.shape)}; beside {name} it should be {[size, hidden_size]}.")
        result[name] = table(tensors[name], projection)
    return result


GENERATIONS = (RWKV7("7", embedded=False), RWKV7("7a", embedded=True))
