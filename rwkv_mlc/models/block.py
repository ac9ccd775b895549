"""What generations of the same build share: blocks of time mixing and channel mixing around a residual stream."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from .generation import Beside, Generation, Shapes
from .huggingface import PREFIX_RULES, TRANSFORMERS_NAMES, reading
from .parameter import NORMS, Parameter, Range, StateTensor, Transform
from .values import Role, norm_role, product_role
from .vocabulary import Expr, Ops, Weights

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor

ROWS = 16
"""Rows of a matrix that kernels of CPUs take at once: matrices that lie below each other each have a multiple of them."""

HUGGING_FACE_NAMES = (*PREFIX_RULES, *reading(TRANSFORMERS_NAMES))


class BlockGeneration(Generation):
    """Blocks ``x + time_mixing(ln1(x))``, ``x + channel_mixing(ln2(x))``; the channel mixing is that of generations 4 and 5.

    A generation whose layers hand on more than ``x`` writes ``blocks`` of its own."""

    own: Sequence[str] = ()
    hugging_face_names: Sequence[tuple[str, str]] = HUGGING_FACE_NAMES
    state_parameters = 1
    """How many of the parameters of wkv, the first ones, the state depends on."""

    @property
    def in_rwkv_cpp(self) -> bool:
        return True

    @property
    def own_in_configs(self) -> Mapping[str, str]:
        return {}

    def check_norms(self, config: RWKVConfig, of_folder: bool) -> None:
        """Every epsilon is built as it is given."""

    # Parameters

    @abstractmethod
    def attention(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        """The parameters of a layer's time mixing. What it adds to the residual stream is halved as often as that is."""

    def feed_forward(self, config: RWKVConfig, layer: int) -> list[Parameter]:
        """The parameters of a layer's channel mixing, as ``attention``."""
        name, source, halvings = f"model.blocks.{layer}.feed_forward", f"blocks.{layer}.ffn", config.halvings(layer)
        c, f, inputs = config.hidden_size, config.intermediate_size, "channel_mixing_inputs"
        return [
            *(self.shift_mix(name, source, target, c) for target in ("key", "receptance")),
            matrix(f"{name}.key", f"{source}.key", f, c, inputs),
            matrix(f"{name}.receptance", f"{source}.receptance", c, c, inputs),
            matrix(f"{name}.value", f"{source}.value", c, f, "channel_mixing_value", halvings, sparse_input=True),
        ]

    def shift_mix(self, name: str, source: str, target: str, size: int) -> Parameter:
        """The part mu of the token itself in what ``target`` of the channel mixing reads."""
        return mix(name, source, target, size)

    def parameters(self, config: RWKVConfig) -> list[Parameter]:
        c, v = config.hidden_size, config.vocab_size
        result = [Parameter("model.embeddings.weight", "emb.weight", (v, c), "embedding", "embedding")]
        for i in range(config.num_hidden_layers):
            block, source = f"model.blocks.{i}", f"blocks.{i}"
            if i == 0:
                result += norm(f"{block}.pre_ln", f"{source}.ln0", c)
            result += norm(f"{block}.ln1", f"{source}.ln1", c) + norm(f"{block}.ln2", f"{source}.ln2", c)
            result += self.attention(config, i) + self.feed_forward(config, i)
        head = Parameter("head.weight", "head.weight", (v, c), "head", "head")
        return [*result, *norm("model.ln_out", "ln_out", c), head]

    # The graph

    @abstractmethod
    def time_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x [1, T, C] with the block's time mixing added."""

    def channel_mixing(self, config: RWKVConfig, ops: Ops, block: Weights, x: Expr) -> Expr:
        """x + sigmoid(r) * W_v relu(W_k ...)^2 ("RWKV", equation 19; "Eagle and Finch", section 4.3)."""
        w = block.at("feed_forward")
        mixes = {target: w.vector(f"time_mix_{target}") for target in ("key", "receptance")}
        mixed = ops.norm_shift_mix(x, block.norm("ln2"), mixes, block.state("ffn_x"))
        key, receptance = ops.linears(
            [
                (mixed["key"], w.matrix("key"), "squared_relu"),
                (mixed["receptance"], w.matrix("receptance"), "sigmoid"),
            ]
        )
        return ops.linear(key, w.matrix("value"), gate=receptance, residual=x)

    def embed(self, config: RWKVConfig, ops: Ops, weights: Weights, tokens: Expr) -> Expr:
        x = ops.embedding(tokens, weights.matrix("model.embeddings"))
        return ops.layer_norm(x, weights.norm("model.blocks.0.pre_ln"))

    def blocks(self, config: RWKVConfig, ops: Ops, weights: Weights, x: Expr) -> Expr:
        for layer in range(config.num_hidden_layers):
            block = weights.block(layer)
            x = self.time_mixing(config, ops, block, x)
            x = self.channel_mixing(config, ops, block, x)
            if config.halvings(layer + 1) > config.halvings(layer):
                x = ops.halve(x)
        return x

    def head(self, config: RWKVConfig, ops: Ops, weights: Weights, x: Expr) -> Expr:
        return ops.linear(ops.layer_norm(x, weights.norm("model.ln_out")), weights.matrix("head"))

    # Roles

    @abstractmethod
    def time_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        """From the norm ``ln1`` to ``att.output``."""

    def channel_mixing_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        """From the norm ``ln2`` to what is added to the residual stream."""
        return [
            *mixed_roles("ln2", "ffn", ["key", "receptance"]),
            product_role("ffn.key", "ffn.mixed_key"),
            Role("ffn.k_squared", "squared ReLU", ("ffn.key",)),
            product_role("ffn.receptance", "ffn.mixed_receptance"),
            Role("ffn.receptance_sigmoid", "sigmoid", ("ffn.receptance",)),
            product_role("ffn.value", "ffn.k_squared", rescaled=True),
            Role("ffn.gated", "gate", ("ffn.receptance_sigmoid", "ffn.value"), rescaled=True),
        ]

    def block_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        time_mixing, channel_mixing = self.time_mixing_roles(config, layer), self.channel_mixing_roles(config, layer)
        return [
            norm_role("ln1", "x"),
            *time_mixing,
            Role("att.residual", "sum", ("x", time_mixing[-1].name), rescaled=True),
            norm_role("ln2", "att.residual"),
            *channel_mixing,
            Role("ffn.residual", "sum", ("att.residual", channel_mixing[-1].name), rescaled=True),
        ]

    def state_roles(self, config: RWKVConfig, layer: int) -> list[Role]:
        """``att_x`` and ``ffn_x`` are the norms' last rows, the others what wkv leaves of all it read."""
        (wkv,) = (role for role in self.block_roles(config, layer) if role.name == "att.wkv")
        rows = {"att_x": "ln1", "ffn_x": "ln2"}

        def role(state: StateTensor) -> Role:
            if state.role in rows:
                return Role(f"state.{state.role}", "last row", (rows[state.role],))
            inputs = tuple(name for name in wkv.inputs if name != "att.receptance")
            return Role(
                f"state.{state.role}", "state of wkv", inputs, wkv.states, wkv.parameters[: self.state_parameters]
            )

        return [role(state) for state in self.states(config)]


def attention_size(shapes: Shapes) -> dict[str, dict[str, int]]:
    """The field ``own`` of ``RWKVConfig`` for a time mixing that has not as many channels as the residual stream."""
    (_, hidden_size), key = shapes["emb.weight"], shapes.get("blocks.0.att.key.weight", ())
    return {"own": {"attention_size": key[0]}} if len(key) == 2 and key[0] != hidden_size else {}


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1."""
    return tuple(n for n in shape if n != 1)


def transformers_config(config: RWKVConfig) -> dict[str, Any]:
    """The keys of transformers' ``RwkvConfig`` that a model's dimensions tell."""
    return {
        "attention_hidden_size": config.attention_size,
        "context_length": config.context_length,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "rescale_every": config.rescale_every,
    }


def headed_config(config: RWKVConfig) -> dict[str, Any]:
    """The same with the keys of RWKV-5's remote code."""
    return transformers_config(config) | {
        "head_size": config.head_size,
        "head_size_divisor": config.head_size_divisor,
        "num_attention_heads": config.num_heads,
    }


def norm(name: str, source: str, size: int, part: str = NORMS) -> list[Parameter]:
    """Weight and bias of a norm; random models have ones and zeros."""
    drawn: dict[str, Range] = {"weight": (1.0, 1.0), "bias": (0.0, 0.0)}
    return [Parameter(f"{name}.{p}", f"{source}.{p}", (size,), "vector", part, value) for p, value in drawn.items()]


def matrix(
    name: str, source: str, outputs: int, inputs: int, part: str, halvings: int = 0, sparse_input: bool = False
) -> Parameter:
    """A matrix [N, K], halved so many times: exact in float."""
    transform: Transform | None = (lambda w: w * 0.5**halvings) if halvings else None
    shape, names = (outputs, inputs), (f"{name}.weight", f"{source}.weight")
    return Parameter(*names, shape, "matrix", part, transform=transform, sparse_input=sparse_input)


def mix(name: str, source: str, target: str, size: int) -> Parameter:
    """The part mu of the token itself in what ``target`` reads."""
    names = f"{name}.time_mix_{target}", f"{source}.time_mix_{target[0]}"
    return Parameter(*names, (1, 1, size), "vector", NORMS, (0.0, 1.0))


def low_rank(name: str, source: str, part: str, inputs: int, outputs: int) -> Parameter:
    """Half of a low-rank pair, [outputs, inputs]; BlinkDL stores [inputs, outputs]."""
    names, shape = (f"{name}.{part}.weight", f"{source}.{part}"), (outputs, inputs)
    return Parameter(*names, shape, "low_rank", "low_rank", transform=np.transpose, source_shape=(inputs, outputs))


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A matrix, or several, the other way round."""
    shape = (*tensor.shape[:-2], *tensor.shape[-2:][::-1])
    return dataclasses.replace(tensor, shape=shape, read=lambda: np.ascontiguousarray(tensor.read().swapaxes(-1, -2)))


def oriented(tensors: dict[str, LazyTensor], halves: tuple[str, ...], inputs: int) -> dict[str, LazyTensor]:
    """The tensors with the low-rank matrices, whose names end in ``halves``, as BlinkDL stores them. web-rwkv's converter
    transposes all of them, which a first half tells that is not square: it is [inputs, rank] where they are not transposed.
    Where all are square they are taken as BlinkDL's."""
    pairs = {name for name in tensors if name.endswith(halves)}
    firsts = [tensors[name].shape for name in pairs if name.endswith("1")]
    lengths = [shape for shape in firsts if len(shape) == 2 and shape[0] != shape[1]]
    if not lengths or any(shape[1] != inputs for shape in lengths):
        return tensors
    return {name: transposed(tensor) if name in pairs else tensor for name, tensor in tensors.items()}


def states_of_heads(config: RWKVConfig) -> list[StateTensor]:
    """``att_x`` and ``ffn_x`` are the layer-normed inputs of the last token; ``att_kv`` is a matrix S[h] of every head, whose
    axes are those of the generation's wkv."""
    c, size = config.hidden_size, config.head_size
    return [
        StateTensor("att_x", (c,)),
        StateTensor("att_kv", (config.num_heads, size, size)),
        StateTensor("ffn_x", (c,)),
    ]


def read_after_update(config: RWKVConfig, beside: Beside) -> Iterator[tuple[str, np.ndarray]]:
    """A mistake in the wkv of generations 5 and 6: the first token's output, r (u k v), with the k v that belongs into the next
    state."""
    out, r, k, v = (beside(f"att.{name}") for name in ("wkv", "receptance", "key", "value"))
    if out is None or r is None or k is None or v is None:
        return
    heads = [array[0].astype(np.float64).reshape(config.num_heads, config.head_size) for array in (r, k, v)]
    once_more = ((heads[0] * heads[1]).sum(1, keepdims=True) * heads[2]).reshape(1, -1)
    text = "the state is read after its update: the first token counts once more than its bonus"
    yield text, out[:1] + once_more


def heads_of(shapes: Shapes, name: str, channels: int) -> int:
    """The size of heads that a tensor [heads, size] tells. Raises UserError where they are not ``channels`` in all."""
    shape = shapes.get(name, ())
    if len(shape) != 2 or shape[0] * shape[1] != channels or shape[1] < 2:
        raise UserError(
            f"{name} is {list(shape)}; it should be [heads, channels of a head], {channels} channels in all and more than one "
            "a head."
        )
    return shape[1]


def mixed_roles(norm: str, half_block: str, targets: Sequence[str], mixes: str = "time_mix_") -> list[Role]:
    """``mixes`` is how the names of the mixes in the checkpoint begin."""
    state = (f"state.{half_block}_x",)
    return [
        Role(f"{half_block}.mixed_{t}", "token shift and mix", (norm,), state, (f"{half_block}.{mixes}{t[0]}",))
        for t in targets
    ]
