"""RWKV-4 and RWKV-5.2 in plain PyTorch, for training small models; parameters carry their Hugging Face names.

Sources of the equations: RWKV-4, Peng et al. 2023, section 3; RWKV-5, Peng et al. 2024, section 4. Initial decays and
mixes follow RWKV-LM's conventions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_NORM_EPSILON = 64e-5
MAX_CHUNK = 16


@dataclass(frozen=True)
class Size:
    generation: str = "5.2"
    vocab_size: int = 768
    hidden_size: int = 128
    num_hidden_layers: int = 6
    head_size: int = 64

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_size

    @property
    def intermediate_size(self) -> int:
        return 4 * self.hidden_size if self.generation in ("4", "7") else int(3.5 * self.hidden_size) // 32 * 32


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The weighted mean of RWKV-4 over chunks of equal length.

    k, v [B, T, C]; w [C], the log of the decay; u [C]. The state is the mean so far and the log of its total weight,
    both [B, C]. Returns [B, T, C] and the new state. Computed in float64, whose range has room for the weights of keys
    that are hundreds apart."""
    dtype = k.dtype
    k, v, w, u, mean, log_weight = (x.double() for x in (k, v, w, u, *state))
    batch, length, channels = k.shape
    chunk = math.gcd(length, MAX_CHUNK)
    top = torch.maximum(k.detach().amax(1), log_weight)
    e = torch.exp(k - top[:, None])
    carried = torch.exp(log_weight - top)
    x = torch.stack((e * v, e)).permute(3, 0, 1, 2).reshape(channels, 2 * batch, length // chunk, chunk)
    s = torch.stack((carried * mean, carried)).permute(2, 0, 1).reshape(channels, 2 * batch)

    i = torch.arange(chunk, device=k.device)
    gap = i[None, :] - 1 - i[:, None]  # [from, to]
    earlier = torch.exp(w[:, None, None] * gap.clamp(min=0)) * (gap >= 0)
    weights = earlier + torch.exp(u)[:, None, None] * torch.eye(chunk, dtype=k.dtype, device=k.device)
    inside = (x.flatten(1, 2) @ weights).view_as(x)
    sums = torch.einsum("cbgi,ci->gcb", x, torch.exp(w[:, None] * (chunk - 1 - i)))
    whole = torch.exp(w * chunk)[:, None]
    starts = []
    for total in sums:
        starts.append(s)
        s = whole * s + total
    before = torch.stack(starts, 2)[..., None] * torch.exp(w[:, None] * i)[:, None, None]
    numerator, denominator = (inside + before).view(channels, 2, batch, length).permute(1, 2, 3, 0)
    a, b = s.view(channels, 2, batch).permute(1, 2, 0)
    return (numerator / denominator).to(dtype), ((a / b).to(dtype), (top + torch.log(b)).to(dtype))


def wkv5(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix-valued recurrence of RWKV-5 over chunks of equal length.

    r, k, v [B, T, H, N]; w [H, N], the log of the decay; u [H, N]; state [B, H, N, N], key before value.
    Returns [B, T, H, N] and the new state."""
    length = r.shape[1]
    chunk = math.gcd(length, MAX_CHUNK)
    r, k, v = (x.unflatten(1, (length // chunk, chunk)).permute(1, 0, 3, 2, 4) for x in (r, k, v))  # [G, B, H, L, N]

    i = torch.arange(chunk, device=r.device)[:, None]
    w, middle = w[:, None, :], chunk // 2
    pairs = (r * torch.exp(w * (i - middle))) @ (k * torch.exp(w * (middle - 1 - i))).mT
    own = (r * u[:, None, :] * k).sum(-1, keepdim=True)
    inside = pairs.tril(-1) @ v + own * v
    sums = (k * torch.exp(w * (chunk - 1 - i))).mT @ v
    whole = torch.exp(w * chunk).mT
    starts = []
    for total in sums:
        starts.append(state)
        state = whole * state + total
    out = inside + (r * torch.exp(w * i)) @ torch.stack(starts)
    return out.permute(1, 0, 3, 2, 4).flatten(1, 2), state


def shift(x: Tensor, last: Tensor) -> Tensor:
    """The token before each token: [B, T, C], beginning with ``last`` [B, C]."""
    return torch.cat((last[:, None], x[:, :-1]), 1)


class TimeMixing(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        self.size = size
        c, depth = size.hidden_size, layer / max(size.num_hidden_layers - 1, 1)
        rest = 1 - layer / size.num_hidden_layers
        channel = torch.arange(c) / c
        position = torch.arange(c) / (c - 1)

        def mix(power: float, offset: float = 0.0) -> nn.Parameter:
            return nn.Parameter((channel**power + offset).view(1, 1, c))

        self.time_mix_key = mix(rest)
        self.time_mix_value = mix(rest, 0.3 * depth)
        self.time_mix_receptance = mix(0.5 * rest)
        if size.generation == "4":
            zigzag = 0.5 * ((torch.arange(c) + 1) % 3 - 1)
            self.time_decay = nn.Parameter(-5 + 8 * position ** (0.7 + 1.3 * depth))
            self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        else:
            zigzag = 0.1 * ((torch.arange(c) + 1) % 3 - 1)
            by_head = (size.num_heads, size.head_size)
            self.time_decay = nn.Parameter((-6 + 5 * position ** (0.7 + 1.3 * depth)).view(by_head))
            self.time_faaaa = nn.Parameter((depth * (1 - position) + zigzag).view(by_head))
            self.time_mix_gate = mix(0.5 * rest)
            self.gate = nn.Linear(c, c, bias=False)
            self.ln_x = nn.LayerNorm(c)
        self.key, self.value, self.receptance, self.output = (nn.Linear(c, c, bias=False) for _ in range(4))
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        last, memory = state
        before = shift(x, last)
        k = self.key(torch.lerp(before, x, self.time_mix_key))
        v = self.value(torch.lerp(before, x, self.time_mix_value))
        r = self.receptance(torch.lerp(before, x, self.time_mix_receptance))
        r, k, v, w = r.float(), k.float(), v.float(), -torch.exp(self.time_decay)
        if self.size.generation == "4":
            out, memory = wkv4(k, v, w, self.time_first, memory)
            out = torch.sigmoid(r) * out
        else:
            heads = (self.size.num_heads, self.size.head_size)
            with torch.autocast(x.device.type, enabled=False):
                out, memory = wkv5(*(y.unflatten(-1, heads) for y in (r, k, v)), w, self.time_faaaa, memory)
            out = F.group_norm(
                out.flatten(0, 1).flatten(1), heads[0], self.ln_x.weight, self.ln_x.bias, GROUP_NORM_EPSILON
            ).view_as(x)
            out = out * F.silu(self.gate(torch.lerp(before, x, self.time_mix_gate)))
        return self.output(out), (x[:, -1], memory)

    def initial_state(self, batch: int) -> tuple:
        c, device = self.size.hidden_size, self.time_decay.device
        last = torch.zeros(batch, c, device=device)
        if self.size.generation == "4":
            return last, (torch.zeros_like(last), torch.full_like(last, -1e30))
        n = self.size.head_size
        return last, torch.zeros(batch, self.size.num_heads, n, n, device=device)


class ChannelMixing(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        c, f = size.hidden_size, size.intermediate_size
        mix = ((torch.arange(c) / c) ** (1 - layer / size.num_hidden_layers)).view(1, 1, c)
        self.time_mix_key, self.time_mix_receptance = nn.Parameter(mix), nn.Parameter(mix.clone())
        self.key, self.value = nn.Linear(c, f, bias=False), nn.Linear(f, c, bias=False)
        self.receptance = nn.Linear(c, c, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        before = shift(x, last)
        k = torch.relu(self.key(torch.lerp(before, x, self.time_mix_key))).square()
        r = torch.sigmoid(self.receptance(torch.lerp(before, x, self.time_mix_receptance)))
        return r * self.value(k), x[:, -1]


class Block(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        if layer == 0:
            self.pre_ln = nn.LayerNorm(size.hidden_size)
        self.ln1, self.ln2 = nn.LayerNorm(size.hidden_size), nn.LayerNorm(size.hidden_size)
        self.attention, self.feed_forward = TimeMixing(size, layer), ChannelMixing(size, layer)

    def forward(self, x: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        if hasattr(self, "pre_ln"):
            x = self.pre_ln(x)
        attention, last = state
        out, attention = self.attention(self.ln1(x), attention)
        x = x + out
        out, last = self.feed_forward(self.ln2(x), last)
        return x + out, (attention, last)


class RWKV(nn.Module):
    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        self.rwkv = nn.Module()
        self.rwkv.embeddings = nn.Embedding(size.vocab_size, size.hidden_size)
        self.rwkv.blocks = nn.ModuleList(Block(size, layer) for layer in range(size.num_hidden_layers))
        self.rwkv.ln_out = nn.LayerNorm(size.hidden_size)
        self.head = nn.Linear(size.hidden_size, size.vocab_size, bias=False)
        nn.init.normal_(self.rwkv.embeddings.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def initial_state(self, batch: int) -> list:
        return [
            (attention, torch.zeros_like(attention[0]))
            for attention in (block.attention.initial_state(batch) for block in self.rwkv.blocks)
        ]

    def forward(self, tokens: Tensor, state: list) -> tuple[Tensor, list]:
        """Logits [B, T, V] for int64 tokens [B, T], and the state after them."""
        x = self.rwkv.embeddings(tokens)
        after = []
        for block, before in zip(self.rwkv.blocks, state):
            x, new = block(x, before)
            after.append(new)
        return self.head(self.rwkv.ln_out(x)), after
