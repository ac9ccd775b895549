"""Small random checkpoints of every generation under BlinkDL's names, shapes and values."""

from __future__ import annotations

import numpy as np


def synthetic_checkpoint(
    generation: str,
    seed: int = 0,
    vocab_size: int = 97,
    hidden_size: int = 128,
    layers: int = 3,
    head_size: int = 64,
    intermediate_size: int | None = None,
    attention_size: int | None = None,
) -> dict[str, np.ndarray]:
    """Float32 tensors of generation ``4``, ``5.0``, ``5.1`` or ``5.2`` whose logits are of order 1.

    Decays and bonuses are spread over the channels as in a trained model, norms lie around 1, and nothing is symmetric
    or zero, so that a swapped or skipped tensor shows. ``head_size`` means nothing to generation 4; ``attention_size`` is
    RWKV-LM's ``dim_att``."""
    rng = np.random.default_rng([seed, *generation.encode()])
    c, a = hidden_size, attention_size or hidden_size
    heads = a // head_size
    f = intermediate_size or (4 * c if generation == "4" else int(3.5 * c) // 32 * 32)
    gated = generation in ("5.1", "5.2")
    per_head = {"4": (a,), "5.0": (heads,), "5.1": (heads,), "5.2": (heads, head_size)}[generation]
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, array: np.ndarray) -> None:
        tensors[name] = np.ascontiguousarray(array, np.float32)

    def matrix(name: str, out: int, inputs: int, gain: float = 1.0) -> None:
        put(f"{name}.weight", rng.normal(0.0, gain / np.sqrt(inputs), (out, inputs)))

    def norm(name: str, size: int = c) -> None:
        put(f"{name}.weight", 1.0 + 0.2 * rng.normal(size=size))
        put(f"{name}.bias", 0.1 * rng.normal(size=size))

    def spread(low: float, high: float) -> np.ndarray:
        values = np.linspace(low, high, int(np.prod(per_head))) + 0.2 * rng.normal(size=int(np.prod(per_head)))
        return rng.permutation(values).reshape(per_head)

    matrix("emb", vocab_size, c, np.sqrt(c))
    for i in range(layers):
        block = f"blocks.{i}"
        if i == 0:
            norm(f"{block}.ln0")
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        put(f"{block}.att.time_decay", spread(-5.0, 2.0) if generation == "4" else spread(-5.5, 0.5))
        if generation in ("4", "5.0"):
            put(f"{block}.att.time_first", spread(-2.0, 0.7))
        else:
            put(f"{block}.att.time_faaaa", spread(-0.5, 1.2))
        gate = ["g"] if gated else []
        for mix in ["k", "v", "r", *gate]:
            put(f"{block}.att.time_mix_{mix}", rng.uniform(0.05, 0.95, (1, 1, c)))
        for name in ["receptance", "key", "value", *(["gate"] if gated else [])]:
            matrix(f"{block}.att.{name}", a, c)
        matrix(f"{block}.att.output", c, a)
        if generation != "4":
            norm(f"{block}.att.ln_x", a)
        for mix in ["k", "r"]:
            put(f"{block}.ffn.time_mix_{mix}", rng.uniform(0.05, 0.95, (1, 1, c)))
        matrix(f"{block}.ffn.key", f, c)
        matrix(f"{block}.ffn.receptance", c, c)
        matrix(f"{block}.ffn.value", c, f)
    norm("ln_out")
    matrix("head", vocab_size, c)
    return tensors
