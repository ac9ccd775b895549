"""What the blocks of generations 4 and 5 share: parameter lists, the residual stack and channel mixing."""

from __future__ import annotations

from collections.abc import Callable

from ..config import RWKVConfig
from .parameter import Parameter


def norm(name: str, source: str, size: int) -> list[Parameter]:
    return [Parameter(f"{name}.{part}", f"{source}.{part}", (size,)) for part in ("weight", "bias")]


def linear(
    name: str, source: str, outputs: int, inputs: int, halvings: int = 0, sparse_input: bool = False
) -> Parameter:
    """A matrix [N, K], halved so many times: exact in float."""
    transform = (lambda w: w * 0.5**halvings) if halvings else None
    return Parameter(
        f"{name}.weight", f"{source}.weight", (outputs, inputs), "linear", transform, sparse_input=sparse_input
    )


def mix(name: str, source: str, target: str, size: int) -> Parameter:
    return Parameter(f"{name}.time_mix_{target}", f"{source}.time_mix_{target[0]}", (1, 1, size))


def parameters(config: RWKVConfig, attention: Callable[[str, str, int], list[Parameter]]) -> list[Parameter]:
    """The whole model's parameters around ``attention(name, source, halvings)``, those of one layer's time mixing; what it
    adds to the residual stream is halved so many times."""
    c, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    result = [Parameter("model.embeddings.weight", "emb.weight", (v, c), "embedding")]
    for i in range(config.num_hidden_layers):
        block, source, halvings = f"model.blocks.{i}", f"blocks.{i}", config.halvings(i)
        if i == 0:
            result += norm(f"{block}.pre_ln", f"{source}.ln0", c)
        result += norm(f"{block}.ln1", f"{source}.ln1", c) + norm(f"{block}.ln2", f"{source}.ln2", c)
        result += attention(f"{block}.attention", f"{source}.att", halvings)
        feed_forward, ffn = f"{block}.feed_forward", f"{source}.ffn"
        result += [mix(feed_forward, ffn, target, c) for target in ("key", "receptance")]
        result += [
            linear(f"{feed_forward}.key", f"{ffn}.key", f, c),
            linear(f"{feed_forward}.receptance", f"{ffn}.receptance", c, c),
            linear(f"{feed_forward}.value", f"{ffn}.value", c, f, halvings, sparse_input=True),
        ]
    return [*result, *norm("model.ln_out", "ln_out", c), Parameter("head.weight", "head.weight", (v, c), "head")]


def forward(config: RWKVConfig, ops, weights, state, tokens, time_mixing: Callable):
    """Tokens int32 [T] to the residual stream float32 [1, T, C] after the last block."""
    x = ops.embedding(tokens, weights.matrix("model.embeddings"))
    x = ops.layer_norm(x, weights.norm("model.blocks.0.pre_ln"))
    for layer in range(config.num_hidden_layers):
        block = weights.at(f"model.blocks.{layer}")
        x = time_mixing(config, ops, block, state, layer, x)
        x = channel_mixing(ops, block, state, layer, x)
        if config.halvings(layer + 1) > config.halvings(layer):
            x = ops.halve(x)
    return x


def channel_mixing(ops, block, state, layer: int, x):
    """x + sigmoid(r) * W_v relu(W_k ...)^2 ("RWKV", equation 19; "Eagle and Finch", section 4.3)."""
    w = block.at("feed_forward")
    mixes = {target: w.vector(f"time_mix_{target}") for target in ("key", "receptance")}
    mixed, last = ops.norm_shift_mix(x, block.norm("ln2"), mixes, state.get(layer, "ffn_x"))
    state.set(layer, "ffn_x", last)
    key, receptance = ops.linears(
        mixed, [w.matrix("key"), w.matrix("receptance")], activations=["squared_relu", "sigmoid"]
    )
    return ops.linear(key, w.matrix("value"), gate=receptance, residual=x)
