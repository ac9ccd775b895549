"""Perplexity of a demo model, as it is and on the grids of group quantization."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from .generations import Model

GROUP = 32
MATRICES = ("key", "value", "receptance", "gate", "output", "embeddings", "head")
MATRICES += ("k_proj", "v_proj", "r_proj", "o_proj", "lm_head")


def is_matrix(name: str) -> bool:
    """Embedding, head and projections: what quantization and weight decay act on."""
    return name.rsplit(".", 2)[-2] in MATRICES


def is_low_rank(name: str) -> bool:
    """Whether a tensor is of a pair of RWKV-7's, which every scheme stores as floats."""
    return ".lora." in name and name.endswith(".weight")


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """``weight`` [out, in] as group quantization stores it: 2^bits - 1 levels, an fp16 scale per 32 inputs."""
    top = 2 ** (bits - 1) - 1
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) / top).half().float()
    return ((groups / scale).round().clamp(-top, top) * scale).flatten(-2)


def quantized(model: Model, bits: int) -> dict[str, Tensor]:
    """Every matrix on its grid; the gradient passes straight through."""
    return {
        name: weight + (on_grid(weight, bits) - weight).detach()
        for name, weight in model.named_parameters()
        if is_matrix(name)
    }


@torch.no_grad()
def perplexity(model: Model, ids: list[int], bits: int | None = None) -> float:
    """The perplexity per token of ``ids`` as one stream after an end of text."""
    device = model.device
    weights = quantized(model, bits) if bits else {}
    state, loss = model.initial_state(1), 0.0
    inputs, targets = (torch.tensor(x, device=device) for x in ([0, *ids[:-1]], ids))
    for x, y in zip(inputs.split(256), targets.split(256)):
        logits, state = functional_call(model, weights, (x[None], state))
        loss += F.cross_entropy(logits[0], y, reduction="sum").item()
    return math.exp(loss / len(ids))


def baselines(train: list[int], ids: list[int], vocab_size: int) -> tuple[float, float]:
    """Perplexity of a unigram model (add one) and of a bigram model that leans on it (Witten-Bell)."""
    single, pairs = Counter(train), Counter(pairwise(train))
    followers = Counter(first for first, _ in pairs)
    uni = bi = 0.0
    for before, token in zip([0, *ids], ids):
        p = (single[token] + 1) / (len(train) + vocab_size)
        uni += math.log(p)
        kinds = followers[before]
        bi += math.log((pairs[before, token] + kinds * p) / (single[before] + kinds) if kinds else p)
    return math.exp(-uni / len(ids)), math.exp(-bi / len(ids))
