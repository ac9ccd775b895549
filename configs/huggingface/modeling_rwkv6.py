"""RWKV-6 (Peng et al. 2024, "Eagle and Finch", section 4, Finch) in plain PyTorch."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_rwkv6 import Rwkv6Config
from .rwkv_causal_lm import RwkvBaseModel, RwkvCausalLM, RwkvPreTrainedModel, token_shift

TARGETS = {"w": "decay", "k": "key", "v": "value", "r": "receptance", "g": "gate"}
"""What the mixes are for, in the order of the parts of time_maa_w1 and time_maa_w2."""


def wkv(r, k, v, w, u, s, mask):
    """r_t (s_{t-1} + diag(u) k_t^T v_t), where s_t = diag(w_t) s_{t-1} + k_t^T v_t.

    r, k, v, w (decay, 0 to 1) [B, T, H, N], u (bonus) [H, N], s [B, H, N, N] with keys before values: all float32. Returns the
    heads' outputs [B, T, H, N] and the next s."""
    out = []
    for t in range(k.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append((r[:, t, :, None, :] @ (s + u[:, :, None] * kv))[:, :, 0])
        new = w[:, t, :, :, None] * s + kv
        s = new if mask is None else torch.where(mask[:, t, None, None, None], new, s)
    return torch.stack(out, 1), s


class Rwkv6TimeMixing(nn.Module):
    """W_o (SiLU(g) * GroupNorm(wkv)); the mixes and the decay depend on the token."""

    def __init__(self, config: Rwkv6Config):
        super().__init__()
        c, a = config.hidden_size, config.attention_hidden_size
        self.heads, self.size = a // config.head_size, config.head_size
        for letter in ("x", *TARGETS):
            self.register_parameter(f"time_maa_{letter}", nn.Parameter(torch.zeros(1, 1, c)))
        self.time_maa_w1 = nn.Parameter(torch.zeros(c, len(TARGETS) * config.mix_low_rank_dim))
        self.time_maa_w2 = nn.Parameter(torch.zeros(len(TARGETS), config.mix_low_rank_dim, c))
        self.time_decay = nn.Parameter(torch.zeros(1, 1, a))
        self.time_decay_w1 = nn.Parameter(torch.zeros(c, config.decay_low_rank_dim))
        self.time_decay_w2 = nn.Parameter(torch.zeros(config.decay_low_rank_dim, a))
        self.time_faaaa = nn.Parameter(torch.zeros(self.heads, self.size))
        self.key = nn.Linear(c, a, bias=False)
        self.value = nn.Linear(c, a, bias=False)
        self.receptance = nn.Linear(c, a, bias=False)
        self.gate = nn.Linear(c, a, bias=False)
        self.output = nn.Linear(a, c, bias=False)
        self.ln_x = nn.GroupNorm(self.heads, a, eps=1e-5 * config.head_size_divisor**2)

    def mixed(self, x, previous):
        """x_t + (x_{t-1} - x_t) (maa + tanh(mix(x_t) w1) w2) for each of TARGETS, equations 16 to 18."""
        change = previous - x
        hidden = torch.tanh((x + change * self.time_maa_x) @ self.time_maa_w1)
        hidden = hidden.view(*x.shape[:2], len(TARGETS), -1)
        return {
            target: x + change * (getattr(self, f"time_maa_{letter}") + hidden[:, :, i] @ self.time_maa_w2[i])
            for i, (letter, target) in enumerate(TARGETS.items())
        }

    def forward(self, x, layer, state, mask):
        previous, state.time_mixing[layer] = token_shift(x, state.time_mixing[layer], mask)
        batch, length, _ = x.shape
        mixed = self.mixed(x, previous)
        w = self.time_decay.float() + (torch.tanh(mixed["decay"] @ self.time_decay_w1) @ self.time_decay_w2).float()
        w = torch.exp(-torch.exp(w))
        inputs = (self.receptance(mixed["receptance"]), self.key(mixed["key"]), self.value(mixed["value"]), w)
        r, k, v, w = (y.float().view(batch, length, self.heads, self.size) for y in inputs)
        s = state.wkv[layer]
        s = w.new_zeros(batch, self.heads, self.size, self.size) if s is None else s
        out, state.wkv[layer] = wkv(r, k, v, w, self.time_faaaa.float(), s, mask)
        norm = self.ln_x
        out = F.group_norm(out.flatten(0, 1).flatten(1), self.heads, norm.weight.float(), norm.bias.float(), norm.eps)
        return self.output(out.view(batch, length, -1).to(x.dtype) * F.silu(self.gate(mixed["gate"])))


class Rwkv6ChannelMixing(nn.Module):
    """sigmoid(r) * W_v relu(W_k ...)^2."""

    def __init__(self, config: Rwkv6Config):
        super().__init__()
        c, f = config.hidden_size, config.intermediate_size
        self.time_maa_k = nn.Parameter(torch.zeros(1, 1, c))
        self.time_maa_r = nn.Parameter(torch.zeros(1, 1, c))
        self.key = nn.Linear(c, f, bias=False)
        self.receptance = nn.Linear(c, c, bias=False)
        self.value = nn.Linear(f, c, bias=False)

    def forward(self, x, layer, state, mask):
        previous, state.channel_mixing[layer] = token_shift(x, state.channel_mixing[layer], mask)
        change = previous - x
        k, r = self.key(x + change * self.time_maa_k), self.receptance(x + change * self.time_maa_r)
        return torch.sigmoid(r) * self.value(torch.relu(k) ** 2)


class Rwkv6Block(nn.Module):
    def __init__(self, config: Rwkv6Config, first: bool):
        super().__init__()
        c, epsilon = config.hidden_size, config.layer_norm_epsilon
        if first:
            self.pre_ln = nn.LayerNorm(c, eps=epsilon)
        self.ln1 = nn.LayerNorm(c, eps=epsilon)
        self.ln2 = nn.LayerNorm(c, eps=epsilon)
        self.attention = Rwkv6TimeMixing(config)
        self.feed_forward = Rwkv6ChannelMixing(config)

    def forward(self, x, layer, state, mask, first_value):
        x = x + self.attention(self.ln1(x), layer, state, mask)
        return x + self.feed_forward(self.ln2(x), layer, state, mask), first_value


class Rwkv6PreTrainedModel(RwkvPreTrainedModel):
    config_class = Rwkv6Config
    base_model_prefix = "rwkv"
    _no_split_modules = ("Rwkv6Block",)


class Rwkv6Model(Rwkv6PreTrainedModel, RwkvBaseModel):
    def __init__(self, config: Rwkv6Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Rwkv6Block(config, i == 0) for i in range(config.num_hidden_layers)])
        self.ln_out = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def layers_of(self):
        return self.blocks

    def first_norm(self, x):
        return self.blocks[0].pre_ln(x)

    def last_norm(self, x):
        return self.ln_out(x)


class Rwkv6ForCausalLM(Rwkv6PreTrainedModel, RwkvCausalLM):
    def __init__(self, config: Rwkv6Config):
        super().__init__(config)
        self.rwkv = Rwkv6Model(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.head

    def set_output_embeddings(self, value):
        self.head = value
