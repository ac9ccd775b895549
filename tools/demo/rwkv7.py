"""RWKV-7 in plain PyTorch, for training small models; parameters carry the names of flash-linear-attention.

Source of the equations: Peng et al. 2025, section 4. Initial values follow RWKV-LM's conventions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import GROUP_NORM_EPSILON, Size, shift

MAX_CHUNK = 32
RANKS = {"w": 16, "a": 16, "v": 16, "g": 32}
ACTIVATIONS = {"w": nn.Tanh, "a": nn.Identity, "v": nn.Identity, "g": nn.Sigmoid}


def wkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix-valued recurrence of RWKV-7 over chunks of equal length, each of which is solved at once.

    r, w (the log of the decay), k, v, kk (removal key of length 1), a (rate): [B, T, H, N]; state [B, H, N, N], value
    before key. Returns [B, T, H, N] and the new state.

    In a chunk that begins with S, let D_t be the product of its decays up to t, and u_t what the removal key of t reads in
    the state before t, with its sign turned. The state after t is (S + sum u_i (a_i kk_i / D_i) + v_i (k_i / D_i)) D_t
    over i <= t, so that the u of a chunk solve a triangular system."""
    length = r.shape[1]
    chunk = math.gcd(length, MAX_CHUNK)
    r, w, k, v, kk, a = (
        x.unflatten(1, (length // chunk, chunk)).permute(1, 0, 3, 2, 4) for x in (r, w, k, v, kk, a)
    )  # [G, B, H, L, N]
    decayed = w.cumsum(-2)
    decay, grown = torch.exp(decayed), torch.exp(-decayed)
    removal, reads = -kk * torch.exp(decayed - w), r * decay
    keys = torch.cat((a * kk * grown, k * grown), -2)
    scores = torch.cat((removal, reads), -2) @ keys.mT
    (removal_u, removal_v), (read_u, read_v) = (rows.chunk(2, -1) for rows in scores.chunk(2, -2))

    right = torch.cat((removal, removal_v.tril(-1) @ v), -1)
    system = torch.eye(chunk, device=r.device, dtype=r.dtype) - removal_u.tril(-1)
    of_state, own = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).chunk(2, -1)
    starts, values = [], []
    for key, part, rest, value, whole in zip(keys, of_state, own, v, decay[..., -1:, :]):
        starts.append(state)
        values.append(torch.cat((part @ state.mT + rest, value), -2))
        state = (state + values[-1].mT @ key) * whole
    read = torch.cat((read_u.tril(), read_v.tril()), -1)
    out = reads @ torch.stack(starts).mT + read @ torch.stack(values)
    return out.permute(1, 0, 3, 2, 4).flatten(1, 2), state


class LowRank(nn.Module):
    def __init__(self, size: int, letter: str, bias: Tensor | None):
        super().__init__()
        rank = RANKS[letter]
        expand = nn.Linear(rank, size, bias=bias is not None)
        self.lora = nn.Sequential(nn.Linear(size, rank, bias=False), ACTIVATIONS[letter](), expand)
        nn.init.zeros_(self.lora[0].weight)
        nn.init.orthogonal_(expand.weight, gain=0.1)
        if bias is not None:
            expand.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora(x)


class TimeMixing(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        self.heads = heads = (size.num_heads, size.head_size)
        c, depth = size.hidden_size, layer / max(size.num_hidden_layers - 1, 1)
        rest = 1 - layer / size.num_hidden_layers
        channel, position = torch.arange(c) / c, torch.arange(c) / (c - 1)
        in_head = 2 * (torch.arange(c) % size.head_size) / (size.head_size - 1) - 1
        zigzag, slope = in_head * in_head.abs(), position - 0.5

        def mix(power: float) -> nn.Parameter:
            return nn.Parameter((1 - channel ** (power * rest)).view(1, 1, c))

        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = map(mix, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2))
        self.w_lora = LowRank(c, "w", -5.5 + 6 * position ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a_lora = LowRank(c, "a", -0.19 + 0.3 * zigzag + 0.4 * slope)
        if layer > 0:
            self.v_lora = LowRank(c, "v", 0.73 - 0.4 * slope)
        self.g_lora = LowRank(c, "g", None)
        self.k_k = nn.Parameter(0.71 - 0.1 * slope)
        self.k_a = nn.Parameter(torch.full((c,), 1.02))
        self.r_k = nn.Parameter(torch.full(heads, -0.04))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(c, c, bias=False) for _ in range(4))
        self.g_norm = nn.LayerNorm(c)
        for projection, scale in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            nn.init.uniform_(projection.weight, -scale / c**0.5, scale / c**0.5)
        nn.init.zeros_(self.o_proj.weight)
        nn.init.constant_(self.g_norm.weight, ((1 + layer) / size.num_hidden_layers) ** 0.7)

    def forward(self, x: Tensor, last: Tensor, memory: Tensor, v_first: Tensor | None) -> tuple[Tensor, ...]:
        """The output [B, T, C], the next ``last`` and ``memory``, and the values of the first layer."""
        before = shift(x, last)
        change = before - x
        mixes = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        xr, xw, xk, xv, xa, xg = (torch.addcmul(x, change, mix) for mix in mixes)
        r, k, v = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        w = -math.exp(-0.5) * torch.sigmoid(self.w_lora(xw))
        a, g = torch.sigmoid(self.a_lora(xa)), self.g_lora(xg)
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v_lora(xv)))
        kk, k = k * self.k_k, k * (1 + (a - 1) * self.k_a)
        r, w, k, v, kk, a = (y.float().unflatten(-1, self.heads) for y in (r, w, k, v, kk, a))
        with torch.autocast(x.device.type, enabled=False):
            out, memory = wkv7(r, w, k, v, F.normalize(kk, dim=-1), a, memory)
        out = F.group_norm(
            out.flatten(0, 1).flatten(1), self.heads[0], self.g_norm.weight, self.g_norm.bias, GROUP_NORM_EPSILON
        ).view_as(x)
        bonus = ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(2)
        return self.o_proj((out + bonus) * g), x[:, -1], memory, v_first


class ChannelMixing(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        c, f = size.hidden_size, size.intermediate_size
        self.x_k = nn.Parameter(1 - (torch.arange(c) / c) ** (1 - layer / size.num_hidden_layers) ** 4)
        self.key, self.value = nn.Linear(c, f, bias=False), nn.Linear(f, c, bias=False)
        nn.init.uniform_(self.key.weight, -0.5 / c**0.5, 0.5 / c**0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        k = torch.relu(self.key(torch.lerp(x, shift(x, last), self.x_k))).square()
        return self.value(k), x[:, -1]


class Block(nn.Module):
    def __init__(self, size: Size, layer: int):
        super().__init__()
        if layer == 0:
            self.pre_norm = nn.LayerNorm(size.hidden_size)
        self.attn_norm, self.ffn_norm = nn.LayerNorm(size.hidden_size), nn.LayerNorm(size.hidden_size)
        self.attn, self.ffn = TimeMixing(size, layer), ChannelMixing(size, layer)

    def forward(self, x: Tensor, state: tuple, v_first: Tensor | None) -> tuple[Tensor, tuple, Tensor]:
        if hasattr(self, "pre_norm"):
            x = self.pre_norm(x)
        last, memory, last_of_ffn = state
        out, last, memory, v_first = self.attn(self.attn_norm(x), last, memory, v_first)
        x = x + out
        out, last_of_ffn = self.ffn(self.ffn_norm(x), last_of_ffn)
        return x + out, (last, memory, last_of_ffn), v_first


class RWKV7(nn.Module):
    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(size.vocab_size, size.hidden_size)
        self.model.layers = nn.ModuleList(Block(size, layer) for layer in range(size.num_hidden_layers))
        self.model.norm = nn.LayerNorm(size.hidden_size)
        self.lm_head = nn.Linear(size.hidden_size, size.vocab_size, bias=False)
        nn.init.normal_(self.model.embeddings.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def initial_state(self, batch: int) -> list:
        c, n = self.size.hidden_size, self.size.head_size
        last = torch.zeros(batch, c, device=self.device)
        memory = torch.zeros(batch, self.size.num_heads, n, n, device=self.device)
        return [(last, memory, last)] * self.size.num_hidden_layers

    def forward(self, tokens: Tensor, state: list) -> tuple[Tensor, list]:
        """Logits [B, T, V] for int64 tokens [B, T], and the state after them."""
        x, v_first, after = self.model.embeddings(tokens), None, []
        for block, before in zip(self.model.layers, state):
            x, new, v_first = block(x, before, v_first)
            after.append(new)
        return self.lm_head(self.model.norm(x)), after
