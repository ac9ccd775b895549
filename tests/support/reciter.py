"""A model that recites: what it says next depends on the last token alone, so that tests know its text beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from support.synthetic import synthetic_checkpoint

RECITED = " abcdefghijklmnopqrstuvwxyzé€😀"
LONG_TOKEN = b"la" * 32
HIDDEN_SIZE = 128


def write_reciter(path: Path) -> None:
    """A ``.safetensors`` checkpoint, with its vocabulary beside it, whose greedy text is ``RECITED`` round and round,
    from its start after a colon.

    Its tokens are the single bytes, so that é takes two and 😀 four, and one long one. A token's embedding is a random
    direction, the layers add nothing to it, and the head's row of a token is the direction of the token before it."""
    tokens = [bytes([byte]) for byte in range(256)] + [LONG_TOKEN]
    recited = RECITED.encode("utf-8")
    before = {recited[i]: recited[i - 1] for i in range(len(recited))}
    tensors = synthetic_checkpoint("5.2", vocab_size=len(tokens) + 1, hidden_size=HIDDEN_SIZE, layers=1)
    directions = np.random.default_rng(0).choice([-1, 1], (len(tokens) + 1, HIDDEN_SIZE)).astype(np.float32)
    tensors["emb.weight"] = directions
    tensors["head.weight"] = np.zeros_like(directions)
    for byte, previous in before.items():
        tensors["head.weight"][byte + 1] = directions[previous + 1]
    tensors["head.weight"][ord(" ") + 1] += directions[ord(":") + 1]
    for name in ("blocks.0.ln0", "ln_out"):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(HIDDEN_SIZE, "f4"), np.zeros(HIDDEN_SIZE, "f4")
    for name in ("blocks.0.att.output.weight", "blocks.0.ffn.value.weight"):
        tensors[name] = np.zeros_like(tensors[name])
    lines = [f"{i} {data!r} {len(data)}\n" for i, data in enumerate(tokens, 1)]
    path.with_name("rwkv_vocab.txt").write_text("".join(lines), encoding="utf-8")
    save_file(tensors, path)
