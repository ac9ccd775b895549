"""RWKV-7 (Peng et al. 2025, "RWKV-7 Goose", section 4) in plain PyTorch, with the names of flash-linear-attention's
modeling_rwkv7.py."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_rwkv7 import RWKV7Config
from .rwkv_causal_lm import RwkvBaseModel, RwkvCausalLM, RwkvPreTrainedModel, token_shift


def wkv(r, w, k, v, kk, a, s, mask):
    """s_t r_t, where s_t = s_{t-1} (diag(w_t) - kk_t^T (a_t * kk_t)) + v_t^T k_t.

    r, w (decay, 0 to 1), k, v, kk (removal key of length 1), a (rate, 0 to 1) [B, T, H, N], s [B, H, N, N] with values
    before keys: all float32. Returns the heads' outputs [B, T, H, N] and the next s."""
    out = []
    for t in range(k.shape[1]):
        removed = s @ kk[:, t, :, :, None]
        new = s * w[:, t, :, None, :] - removed * (a[:, t] * kk[:, t])[:, :, None, :]
        new = new + v[:, t, :, :, None] * k[:, t, :, None, :]
        s = new if mask is None else torch.where(mask[:, t, None, None, None], new, s)
        out.append((s @ r[:, t, :, :, None])[..., 0])
    return torch.stack(out, 1), s


class RWKV7LoRA(nn.Module):
    """A pair of matrices of low rank with an activation between them."""

    def __init__(self, inputs: int, outputs: int, rank: int, activation: nn.Module, bias: bool = True):
        super().__init__()
        self.lora = nn.Sequential(nn.Linear(inputs, rank, bias=False), activation, nn.Linear(rank, outputs, bias=bias))

    def forward(self, x):
        return self.lora(x)


class RWKV7TimeMixing(nn.Module):
    """W_o (g * (GroupNorm(wkv) + bonus)), and the layer's values."""

    def __init__(self, config: RWKV7Config, first: bool):
        super().__init__()
        c, a = config.hidden_size, config.attention_hidden_size
        self.heads, self.size = a // config.head_dim, config.head_dim
        for letter in "rwkvag":
            self.register_parameter(f"x_{letter}", nn.Parameter(torch.zeros(1, 1, c)))
        self.k_k = nn.Parameter(torch.zeros(a))
        self.k_a = nn.Parameter(torch.zeros(a))
        self.r_k = nn.Parameter(torch.zeros(self.heads, self.size))
        self.r_proj = nn.Linear(c, a, bias=False)
        self.k_proj = nn.Linear(c, a, bias=False)
        self.v_proj = nn.Linear(c, a, bias=False)
        self.o_proj = nn.Linear(a, c, bias=False)
        self.w_lora = RWKV7LoRA(c, a, config.decay_low_rank_dim, nn.Tanh())
        self.a_lora = RWKV7LoRA(c, a, config.a_low_rank_dim, nn.Identity())
        if not first:
            self.v_lora = RWKV7LoRA(c, a, config.v_low_rank_dim, nn.Identity())
        self.g_lora = RWKV7LoRA(c, a, config.gate_low_rank_dim, nn.Sigmoid(), bias=False)
        self.g_norm = nn.GroupNorm(self.heads, a, eps=config.head_dim * config.norm_eps)

    def forward(self, x, layer, state, mask, first_value):
        previous, state.time_mixing[layer] = token_shift(x, state.time_mixing[layer], mask)
        batch, length, _ = x.shape
        r, w, k, v, a, g = (x + (previous - x) * getattr(self, f"x_{letter}") for letter in "rwkvag")
        value = self.v_proj(v)
        if first_value is None:
            first_value = value
        else:
            value = torch.lerp(value, first_value, torch.sigmoid(self.v_lora(v)))
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(self.w_lora(w).float()))
        inputs = (self.r_proj(r), w, self.k_proj(k), value, torch.sigmoid(self.a_lora(a)))
        r, w, k, v, a = (y.float().view(batch, length, self.heads, self.size) for y in inputs)
        k_k, k_a = (y.float().view(self.heads, self.size) for y in (self.k_k, self.k_a))
        kk = F.normalize(k * k_k, dim=-1)
        k = k * (1 + (a - 1) * k_a)
        s = state.wkv[layer]
        s = w.new_zeros(batch, self.heads, self.size, self.size) if s is None else s
        out, state.wkv[layer] = wkv(r, w, k, v, kk, a, s, mask)
        bonus = (r * k * self.r_k.float()).sum(-1, keepdim=True) * v
        norm = self.g_norm
        out = F.group_norm(out.flatten(0, 1).flatten(1), self.heads, norm.weight.float(), norm.bias.float(), norm.eps)
        out = (out.view(batch, length, -1) + bonus.flatten(2)).to(x.dtype)
        return self.o_proj(out * self.g_lora(g)), first_value


class RWKV7ChannelMixing(nn.Module):
    """W_v relu(W_k ...)^2."""

    def __init__(self, config: RWKV7Config):
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x, layer, state, mask):
        previous, state.channel_mixing[layer] = token_shift(x, state.channel_mixing[layer], mask)
        return self.value(torch.relu(self.key(x + (previous - x) * self.x_k)) ** 2)


class RWKV7Block(nn.Module):
    def __init__(self, config: RWKV7Config, first: bool):
        super().__init__()
        c, epsilon = config.hidden_size, config.norm_eps
        if first:
            self.pre_norm = nn.LayerNorm(c, eps=epsilon)
        self.attn_norm = nn.LayerNorm(c, eps=epsilon)
        self.attn = RWKV7TimeMixing(config, first)
        self.ffn_norm = nn.LayerNorm(c, eps=epsilon)
        self.ffn = RWKV7ChannelMixing(config)

    def forward(self, x, layer, state, mask, first_value):
        out, first_value = self.attn(self.attn_norm(x), layer, state, mask, first_value)
        x = x + out
        return x + self.ffn(self.ffn_norm(x), layer, state, mask), first_value


class RWKV7PreTrainedModel(RwkvPreTrainedModel):
    config_class = RWKV7Config
    base_model_prefix = "model"
    _no_split_modules = ("RWKV7Block",)


class RWKV7Model(RWKV7PreTrainedModel, RwkvBaseModel):
    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([RWKV7Block(config, i == 0) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def layers_of(self):
        return self.layers

    def first_norm(self, x):
        return self.layers[0].pre_norm(x)

    def last_norm(self, x):
        return self.norm(x)


class RWKV7ForCausalLM(RWKV7PreTrainedModel, RwkvCausalLM):
    def __init__(self, config: RWKV7Config):
        super().__init__(config)
        self.model = RWKV7Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value
