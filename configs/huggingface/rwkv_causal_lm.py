"""What the RWKV models of this folder have in common: their state, the shift by one token, and the model around the blocks.

A model reads a text of any length with a state of one size. The state is returned as ``outputs.state`` and given to the
next call as ``state=``, which changes it; ``copy.deepcopy`` keeps one. B texts, T tokens, C channels, H heads of N
channels."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput


class RwkvState:
    """What is kept of ``length`` tokens: for every layer the last inputs of its time mixing and of its channel mixing, [B,
    C] each, and the heads' matrices ``wkv``, float32 [B, H, N, N]. A layer that has read nothing has None."""

    def __init__(self, layers: int):
        self.time_mixing: list[torch.Tensor | None] = [None] * layers
        self.wkv: list[torch.Tensor | None] = [None] * layers
        self.channel_mixing: list[torch.Tensor | None] = [None] * layers
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give text i the state of text ``beam_idx[i]``, for a beam search."""
        for states in (self.time_mixing, self.wkv, self.channel_mixing):
            states[:] = [s if s is None else s.index_select(0, beam_idx.to(s.device)) for s in states]


@dataclass
class RwkvOutput(ModelOutput):
    """``last_hidden_state`` [B, T, C]; ``hidden_states`` are what enters each block, and what leaves the last norm."""

    last_hidden_state: torch.Tensor | None = None
    state: RwkvState | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class RwkvCausalLMOutput(ModelOutput):
    """``logits`` [B, T, V] of the tokens that come after each; ``loss`` where labels were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: RwkvState | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def token_shift(
    x: torch.Tensor, last: torch.Tensor | None, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every token of x [B, T, C] the x of the token before it, ``last`` [B, C] for the first; and the last x of all.

    Where ``mask`` [B, T] is False there is padding, which is passed over."""
    last = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
    padded = torch.cat([last[:, None], x], 1)
    if mask is None:
        return padded[:, :-1], padded[:, -1]
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    newest = torch.where(mask, places, 0).cummax(1).values  # of the tokens so far that are no padding, 0 for ``last``
    newest = nn.functional.pad(newest, (1, 0))
    shifted = padded.gather(1, newest[:, :, None].expand(-1, -1, x.shape[2]))
    return shifted[:, :-1], shifted[:, -1]


class RwkvPreTrainedModel(PreTrainedModel):
    """Subclasses name ``config_class``, ``block_class`` and ``base_model_prefix``."""

    _is_stateful = True
    supports_gradient_checkpointing = False

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class RwkvBaseModel(RwkvPreTrainedModel):
    """The model without its head. Subclasses define ``embeddings``, ``layers_of()``, ``first_norm()`` and ``last_norm()``."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: RwkvState | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_,
    ) -> RwkvOutput:
        """``attention_mask`` [B, at least T] is 0 for padding, which changes nothing; its last T columns are those of the
        tokens."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        if state is None:
            state = RwkvState(self.config.num_hidden_layers)
        mask = None
        if attention_mask is not None:
            if attention_mask.dim() != 2 or attention_mask.shape[1] < x.shape[1]:
                raise ValueError(
                    f"attention_mask is {list(attention_mask.shape)}, expected [texts, {x.shape[1]} or more]."
                )
            mask = attention_mask[:, -x.shape[1] :].bool()
            mask = None if mask.all() else mask
        hidden_states = []
        x, first_value = self.first_norm(x), None
        for layer, block in enumerate(self.layers_of()):
            hidden_states.append(x)
            x, first_value = block(x, layer, state, mask, first_value)
        state.length += x.shape[1]
        x = self.last_norm(x)
        hidden_states.append(x)
        return RwkvOutput(x, state if use_cache else None, tuple(hidden_states) if output_hidden_states else None)


class RwkvCausalLM(RwkvPreTrainedModel, GenerationMixin):
    """The model with its head."""

    def base(self) -> RwkvBaseModel:
        return getattr(self, self.base_model_prefix)

    def get_input_embeddings(self) -> nn.Module:
        return self.base().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base().set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: RwkvState | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> RwkvCausalLMOutput:
        """``logits_to_keep`` tokens, the last ones, have logits, all where it is 0."""
        outputs = self.base()(
            input_ids, attention_mask, inputs_embeds, state, use_cache, output_hidden_states=output_hidden_states
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.get_output_embeddings()(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return RwkvCausalLMOutput(loss, logits, outputs.state, outputs.hidden_states)

    def prepare_inputs_for_generation(
        self, input_ids, state=None, attention_mask=None, inputs_embeds=None, use_cache=True, **_
    ):
        """The tokens that the state has not read yet."""
        if inputs_embeds is not None:
            raise ValueError("generate() takes input_ids here; inputs_embeds are for forward().")
        new = input_ids if state is None else input_ids[:, state.length :]
        return {"input_ids": new, "attention_mask": attention_mask, "state": state, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if outputs.state is not None:
            # a beam search reorders past_key_values in releases 4 of transformers, cache in releases 5
            model_kwargs |= dict.fromkeys(("state", "past_key_values", "cache"), outputs.state)
        return model_kwargs
