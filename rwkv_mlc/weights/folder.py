"""What the files beside the weights of a Hugging Face folder state of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ..errors import UserError
from ..escaping import quoted
from ..special_tokens import SpecialTokens
from ..typed_json import Count, Extent, Schema, read

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADAPTER_CONFIG = "adapter_config.json"
ADVICE = "correct it, or download it again"
STATED = (
    "model_version",
    "vocab_size",
    "hidden_size",
    "attention_hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "head_size",
    "num_attention_heads",
    "decay_low_rank_dim",
    "a_low_rank_dim",
    "v_low_rank_dim",
    "gate_low_rank_dim",
    "mix_low_rank_dim",
)
"""What tensors say too; ranks where the generation has one of that name."""

OTHER_NAMES = {
    "hidden_size": ("n_embd",),
    "attention_hidden_size": ("dim_att",),
    "intermediate_size": ("dim_ffn", "n_inner"),
    "num_hidden_layers": ("n_layer",),
    "layer_norm_epsilon": ("layer_norm_eps", "norm_eps"),
    "context_length": ("max_position_embeddings", "ctx_len"),
    "head_size": ("head_dim",),
    "num_attention_heads": ("num_heads",),
    "hidden_act": ("activation_function",),
}
"""What else a field of ``FolderConfig`` is called, in configurations of other implementations."""

ACTIVATIONS = ("relu2", "relu_squared", "sqrelu", "squared_relu")
"""The square of ``relu``, which every RWKV has, by its names in Hugging Face's libraries."""

ARCHITECTURE = re.compile(r"rwkv(?:[-_]?v?(\d))?", re.IGNORECASE)
"""In a ``model_type``; with the number of a generation, which transformers' own, ``rwkv``, does not have."""


def _squared_relu(name: str) -> str:
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"the square of relu ({', '.join(ACTIVATIONS)}), which RWKV's channel mixing has")
    return name.lower()


Activation = Annotated[str, AfterValidator(_squared_relu)]


def _with_biases(given: bool) -> bool:
    if not given:
        raise ValueError("true, as the layer norms of every RWKV have biases")
    return given


Biased = Annotated[bool, AfterValidator(_with_biases)]
Ratio = Annotated[float, Field(gt=0, le=1024, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TokenIds = Count | tuple[Count, ...] | None


class FolderConfig(Schema):
    """``config.json``, in the names of transformers' ``RwkvConfig`` and of RWKV-5's remote code, or in ``OTHER_NAMES``: all of
    its fields on which a forward pass depends."""

    model_type: str | None = None
    model_version: str | None = None
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    n_embd: Count | None = None
    attention_hidden_size: Count | None = None
    dim_att: Count | None = None
    intermediate_size: Count | None = None
    dim_ffn: Count | None = None
    n_inner: Count | None = None
    num_hidden_layers: Count | None = None
    n_layer: Count | None = None
    head_size: Count | None = None
    head_dim: Count | None = None
    num_attention_heads: Count | None = None
    num_heads: Count | None = None
    context_length: Extent | None = None
    max_position_embeddings: Extent | None = None
    ctx_len: Extent | None = None
    head_size_divisor: Extent | None = None
    layer_norm_epsilon: Epsilon | None = None
    layer_norm_eps: Epsilon | None = None
    norm_eps: Epsilon | None = None
    rescale_every: int | None = None
    architectures: tuple[str, ...] | None = None
    decay_low_rank_dim: Count | None = None
    a_low_rank_dim: Count | None = None
    v_low_rank_dim: Count | None = None
    gate_low_rank_dim: Count | None = None
    mix_low_rank_dim: Count | None = None
    value_dim: Count | tuple[Count, ...] | None = None
    hidden_ratio: Ratio | None = None
    norm_bias: Biased | None = None
    attn: dict[str, Any] | None = None
    hidden_act: Activation | None = None
    activation_function: Activation | None = None
    quantization_config: dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    eos_token_id: TokenIds = None
    bos_token_id: Count | None = None
    pad_token_id: Count | None = None

    @model_validator(mode="after")
    def _under_one_name(self) -> FolderConfig:
        found: dict[str, Any] = {}
        for name, others in OTHER_NAMES.items():
            given = [(key, value) for key in (name, *others) if (value := getattr(self, key)) is not None]
            for key, value in given[1:]:
                if value != given[0][1]:
                    raise ValueError(
                        f"gives {given[0][0]} {quoted(given[0][1])} and {key} {quoted(value)}, which are one thing"
                    )
            if given and given[0][0] != name:
                found[name] = given[0][1]
        return self.model_copy(update=found) if found else self


class GenerationConfig(Schema):
    """``generation_config.json``, which transformers' ``generate`` heeds."""

    eos_token_id: TokenIds = None
    bos_token_id: Count | None = None
    pad_token_id: Count | None = None


class AddedToken(Schema):
    """A token in ``tokenizer_config.json``, with the rules by which text becomes it left out."""

    content: str


class TokenizerConfig(Schema):
    """``tokenizer_config.json`` and ``special_tokens_map.json``."""

    eos_token: str | AddedToken | None = None


@dataclass(frozen=True)
class Facts:
    """What a folder's files state: ``config`` of the model, ``tokens`` of its special tokens."""

    config: FolderConfig = field(default_factory=FolderConfig)
    tokens: SpecialTokens = field(default_factory=SpecialTokens)

    @property
    def stated(self) -> dict[str, int | str]:
        """Those of ``STATED`` that are there, the ``model_type`` and one of the ``architectures`` where they have a number, and
        what flash-linear-attention's configurations give otherwise; 0 and null leave them to the tensors."""
        config = self.config
        found = {name: value for name in STATED if (value := getattr(config, name))}
        classes = config.architectures or ()
        for name, given in (("model_type", config.model_type), *(("architectures", given) for given in classes)):
            architecture = ARCHITECTURE.search(given or "")
            if architecture and architecture[1]:
                found[name] = f"rwkv{architecture[1]}"
        widths = (config.value_dim,) if isinstance(config.value_dim, int) else config.value_dim or ()
        if some := sorted({width for width in widths if width}):
            found["value_dim"] = some[0] if len(some) == 1 else ", ".join(map(str, some))
        if config.hidden_ratio and config.hidden_size and not config.intermediate_size:
            found["intermediate_size"] = -(-int(config.hidden_size * config.hidden_ratio) // 32) * 32
        return found


def read_facts(folder: Path, own: bool) -> Facts | None:
    """What the files beside weights in a folder state; None where there is no ``config.json``, or where it is of another
    architecture and the weights are not the folder's ``own``, by their name. Raises UserError for one that does not fit,
    and for an adapter, which changes the weights."""
    if own and (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{folder} holds a PEFT adapter ({ADAPTER_CONFIG}), which changes the model's weights; move it to a folder of "
            "its own and have it merged with --lora FOLDER."
        )
    if not (folder / CONFIG).is_file():
        return None
    config = read(FolderConfig, folder / CONFIG, ADVICE)
    if config.model_type and not ARCHITECTURE.search(config.model_type):
        if not own:
            return None
        raise UserError(
            f"{folder / CONFIG} is of a model of the type {quoted(config.model_type)}, expected one of RWKV's; get the "
            "config.json of these weights, or move them to a folder of their own."
        )
    if config.attn:
        raise UserError(
            f"{folder / CONFIG} says that layers are attention's (attn): a hybrid, which this project does not compute."
        )
    if config.quantization_config is not None:
        raise UserError(
            f"{folder / CONFIG} says that the weights are quantized (quantization_config); get the model's own, as float16 or "
            "bfloat16."
        )
    return Facts(config, _special_tokens(folder, config))


def _special_tokens(folder: Path, config: FolderConfig) -> SpecialTokens:
    """``generation_config.json`` goes before ``config.json``, as in transformers; a text ends at what either names, and where
    none does, at the tokenizer's end."""
    generation = GenerationConfig()
    if (folder / GENERATION_CONFIG).is_file():
        generation = read(GenerationConfig, folder / GENERATION_CONFIG, ADVICE)
    end = tuple(dict.fromkeys((*_ids(config.eos_token_id), *_ids(generation.eos_token_id))))
    return SpecialTokens(
        end=end,
        end_text=None if end else _end_text(folder),
        begin=config.bos_token_id if generation.bos_token_id is None else generation.bos_token_id,
        padding=config.pad_token_id if generation.pad_token_id is None else generation.pad_token_id,
    )


def _ids(given: TokenIds) -> tuple[int, ...]:
    return () if given is None else (given,) if isinstance(given, int) else given


def _end_text(folder: Path) -> str | None:
    for path in (folder / TOKENIZER_CONFIG, folder / SPECIAL_TOKENS_MAP):
        token = read(TokenizerConfig, path, ADVICE).eos_token if path.is_file() else None
        if token is not None:
            return token.content if isinstance(token, AddedToken) else token
    return None
