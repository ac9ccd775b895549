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
    ranks: tuple[int, ...] = (12, 10, 14, 20),
) -> dict[str, np.ndarray]:
    """Float32 tensors of a generation, ``4`` to ``7a``, whose logits are of order 1.

    Decays and bonuses are spread over the channels as in a trained model, norms lie around 1, and nothing is symmetric
    or zero, so that a swapped or skipped tensor shows. ``head_size`` means nothing to generation 4; ``attention_size`` is
    RWKV-LM's ``dim_att``, ``ranks`` are those of w, a, v and g in generation 7, of which 6 has the first two for mixes and
    decay."""
    rng = np.random.default_rng([seed, *generation.encode()])
    c, a = hidden_size, attention_size or hidden_size
    heads = a // head_size
    f = intermediate_size or (4 * c if generation in ("4", "7", "7a") else int(3.5 * c) // 32 * 32)
    gated = generation in ("5.1", "5.2", "6")
    per_head = {"4": (a,), "5.0": (heads,), "5.1": (heads,), "5.2": (heads, head_size), "6": (1, 1, a)}.get(
        generation, ()
    )
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

    def sevens(block: str, layer: int) -> None:
        """Time and channel mixing of generation 7."""
        for part in "rwkvag":
            put(f"{block}.att.x_{part}", rng.uniform(0.05, 0.95, (1, 1, c)))
        spreads = {"w": (-5.0, 2.0), "a": (-1.5, 1.5), "v": (-1.0, 1.0)}
        for part, rank in zip("wavg", ranks):
            if part == "v" and layer == 0:
                continue
            if part in spreads:
                bias = np.linspace(*spreads[part], a) + 0.2 * rng.normal(size=a)
                put(f"{block}.att.{part}0", rng.permutation(bias).reshape(1, 1, a))
            put(f"{block}.att.{part}1", rng.normal(0.0, 1 / np.sqrt(c), (c, rank)))
            put(f"{block}.att.{part}2", rng.normal(0.0, 1 / np.sqrt(rank), (rank, a)))
        put(f"{block}.att.k_k", rng.uniform(0.4, 1.2, (1, 1, a)))
        put(f"{block}.att.k_a", rng.uniform(0.3, 1.2, (1, 1, a)))
        put(f"{block}.att.r_k", rng.normal(0.0, 0.3, (heads, head_size)))
        for name in ("receptance", "key", "value"):
            matrix(f"{block}.att.{name}", a, c)
        matrix(f"{block}.att.output", c, a)
        norm(f"{block}.att.ln_x", a)
        put(f"{block}.ffn.x_k", rng.uniform(0.05, 0.95, (1, 1, c)))
        matrix(f"{block}.ffn.key", f, c)
        matrix(f"{block}.ffn.value", c, f)
        if generation == "7a":
            rank = 32  # the rwkv package knows no other
            put(f"{block}.ffn.s_emb.weight", rng.normal(0.0, 1 / np.sqrt(rank), (vocab_size, rank * rank)))
            put(f"{block}.ffn.s_emb_x.weight", rng.normal(0.0, 0.3 / np.sqrt(c), (rank * rank, c)))
            put(f"{block}.ffn.s1", rng.normal(0.0, 1 / np.sqrt(c), (c, rank)))
            put(f"{block}.ffn.s2", rng.normal(0.0, 1 / np.sqrt(rank), (rank, f)))
            put(f"{block}.ffn.s0", rng.normal(1.0, 0.3, (1, 1, f)))

    matrix("emb", vocab_size, c, np.sqrt(c))
    for i in range(layers):
        block = f"blocks.{i}"
        if i == 0:
            norm(f"{block}.ln0")
        norm(f"{block}.ln1")
        norm(f"{block}.ln2")
        if generation in ("7", "7a"):
            sevens(block, i)
            continue
        put(f"{block}.att.time_decay", spread(-5.0, 2.0) if generation == "4" else spread(-5.5, 0.5))
        if generation in ("4", "5.0"):
            put(f"{block}.att.time_first", spread(-2.0, 0.7))
        else:
            put(
                f"{block}.att.time_faaaa",
                spread(-0.5, 1.2).reshape(heads, -1) if generation == "6" else spread(-0.5, 1.2),
            )
        gate = ["g"] if gated else []
        mixing = "maa" if generation == "6" else "mix"
        for mix in ["k", "v", "r", *gate]:
            put(f"{block}.att.time_{mixing}_{mix}", rng.uniform(0.05, 0.95, (1, 1, c)))
        if generation == "6":
            for mix in "xw":
                put(f"{block}.att.time_maa_{mix}", rng.uniform(0.05, 0.95, (1, 1, c)))
            put(f"{block}.att.time_maa_w1", rng.normal(0.0, 1 / np.sqrt(c), (c, 5 * ranks[0])))
            put(f"{block}.att.time_maa_w2", rng.normal(0.0, 0.3 / np.sqrt(ranks[0]), (5, ranks[0], c)))
            put(f"{block}.att.time_decay_w1", rng.normal(0.0, 1 / np.sqrt(c), (c, ranks[1])))
            put(f"{block}.att.time_decay_w2", rng.normal(0.0, 1 / np.sqrt(ranks[1]), (ranks[1], a)))
        for name in ["receptance", "key", "value", *(["gate"] if gated else [])]:
            matrix(f"{block}.att.{name}", a, c)
        matrix(f"{block}.att.output", c, a)
        if generation != "4":
            norm(f"{block}.att.ln_x", a)
        for mix in ["k", "r"]:
            put(f"{block}.ffn.time_{mixing}_{mix}", rng.uniform(0.05, 0.95, (1, 1, c)))
        matrix(f"{block}.ffn.key", f, c)
        matrix(f"{block}.ffn.receptance", c, c)
        matrix(f"{block}.ffn.value", c, f)
    norm("ln_out")
    matrix("head", vocab_size, c)
    return tensors
