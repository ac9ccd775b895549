"""RWKV-5 (Peng et al. 2024, "Eagle and Finch", section 4) in plain PyTorch: 5.2 is the paper's Eagle; in 5.1 decay and
bonus are one number a head, and 5.0 has no gate either."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_rwkv5 import Rwkv5Config
from .rwkv_causal_lm import RwkvBaseModel, RwkvCausalLM, RwkvPreTrainedModel, token_shift


def wkv(r, k, v, w, u, s, mask):
    """r_t (s_{t-1} + diag(u) k_t^T v_t), where s_t = diag(w) s_{t-1} + k_t^T v_t.

    r, k, v [B, T, H, N], w (decay per token, 0 to 1) and u (bonus) [H, N], s [B, H, N, N] with keys before values: all float32.
    Returns the heads' outputs [B, T, H, N] and the next s."""
    w, u = w[:, :, None], u[:, :, None]
    out = []
    for t in range(k.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append((r[:, t, :, None, :] @ (s + u * kv))[:, :, 0])
        new = w * s + kv
        s = new if mask is None else torch.where(mask[:, t, None, None, None], new, s)
    return torch.stack(out, 1), s


class Rwkv5TimeMixing(nn.Module):
    """W_o (SiLU(g) * GroupNorm(wkv))."""

    def __init__(self, config: Rwkv5Config):
        super().__init__()
        c, a = config.hidden_size, config.attention_hidden_size
        self.heads, self.size = a // config.head_size, config.head_size
        self.gated = config.model_version != "5_0"
        shape = (self.heads, self.size) if config.model_version == "5_2" else (self.heads,)
        self.time_decay = nn.Parameter(torch.zeros(shape))
        self.bonus = "time_first" if config.logarithmic_bonus else "time_faaaa"
        self.register_parameter(self.bonus, nn.Parameter(torch.zeros(shape)))
        for target in ("key", "value", "receptance", *(["gate"] if self.gated else [])):
            self.register_parameter(f"time_mix_{target}", nn.Parameter(torch.zeros(1, 1, c)))
            self.add_module(target, nn.Linear(c, a, bias=False))
        self.output = nn.Linear(a, c, bias=False)
        self.ln_x = nn.GroupNorm(self.heads, a, eps=1e-5 * config.head_size_divisor**2)

    def forward(self, x, layer, state, mask):
        previous, state.time_mixing[layer] = token_shift(x, state.time_mixing[layer], mask)
        batch, length, _ = x.shape

        def project(target):
            mix = getattr(self, f"time_mix_{target}")
            return getattr(self, target)(previous + mix * (x - previous))

        def by_head(target):
            return project(target).float().view(batch, length, self.heads, self.size)

        w = torch.exp(-torch.exp(self.time_decay.float().view(self.heads, -1))).expand(-1, self.size)
        u = getattr(self, self.bonus).float().view(self.heads, -1).expand(-1, self.size)
        u = u.exp() if self.bonus == "time_first" else u
        s = state.wkv[layer]
        s = w.new_zeros(batch, self.heads, self.size, self.size) if s is None else s
        out, state.wkv[layer] = wkv(by_head("receptance"), by_head("key"), by_head("value"), w, u, s, mask)
        norm = self.ln_x
        out = F.group_norm(out.flatten(0, 1).flatten(1), self.heads, norm.weight.float(), norm.bias.float(), norm.eps)
        out = out.view(batch, length, -1).to(x.dtype)
        return self.output(out * F.silu(project("gate")) if self.gated else out)


class Rwkv5ChannelMixing(nn.Module):
    """sigmoid(r) * W_v relu(W_k ...)^2."""

    def __init__(self, config: Rwkv5Config):
        super().__init__()
        c, f = config.hidden_size, config.intermediate_size
        self.time_mix_key = nn.Parameter(torch.zeros(1, 1, c))
        self.time_mix_receptance = nn.Parameter(torch.zeros(1, 1, c))
        self.key = nn.Linear(c, f, bias=False)
        self.receptance = nn.Linear(c, c, bias=False)
        self.value = nn.Linear(f, c, bias=False)

    def forward(self, x, layer, state, mask):
        previous, state.channel_mixing[layer] = token_shift(x, state.channel_mixing[layer], mask)
        k = self.key(previous + self.time_mix_key * (x - previous))
        r = self.receptance(previous + self.time_mix_receptance * (x - previous))
        return torch.sigmoid(r) * self.value(torch.relu(k) ** 2)


class Rwkv5Block(nn.Module):
    def __init__(self, config: Rwkv5Config, first: bool):
        super().__init__()
        c, epsilon = config.hidden_size, config.layer_norm_epsilon
        if first:
            self.pre_ln = nn.LayerNorm(c, eps=epsilon)
        self.ln1 = nn.LayerNorm(c, eps=epsilon)
        self.ln2 = nn.LayerNorm(c, eps=epsilon)
        self.attention = Rwkv5TimeMixing(config)
        self.feed_forward = Rwkv5ChannelMixing(config)

    def forward(self, x, layer, state, mask, first_value):
        x = x + self.attention(self.ln1(x), layer, state, mask)
        return x + self.feed_forward(self.ln2(x), layer, state, mask), first_value


class Rwkv5PreTrainedModel(RwkvPreTrainedModel):
    config_class = Rwkv5Config
    base_model_prefix = "rwkv"
    _no_split_modules = ("Rwkv5Block",)


class Rwkv5Model(Rwkv5PreTrainedModel, RwkvBaseModel):
    def __init__(self, config: Rwkv5Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Rwkv5Block(config, i == 0) for i in range(config.num_hidden_layers)])
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


class Rwkv5ForCausalLM(Rwkv5PreTrainedModel, RwkvCausalLM):
    def __init__(self, config: Rwkv5Config):
        super().__init__(config)
        self.rwkv = Rwkv5Model(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.head

    def set_output_embeddings(self, value):
        self.head = value
