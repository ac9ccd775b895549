"""What compiled libraries, artifacts and dumps say of themselves, as types: all that another implementation has to read.

docs/artifact.md is written from them: the text below a field is its description there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    field_serializer,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from .config import RWKVConfig
from .escaping import quoted, shortened
from .quantization.layouts import LAYOUTS
from .typed_json import Bytes, Count, Extent, FileName, Schema, file_name, parse

ITEM_BYTES = {"float32": 4, "float16": 2, "uint32": 4}


def _is_none(value: object) -> bool:
    return value is None


def _stored(dtype: str) -> str:
    if dtype not in ITEM_BYTES:
        raise ValueError(f"one of {', '.join(ITEM_BYTES)}")
    return dtype


StoredDtype = Annotated[str, AfterValidator(_stored)]
Shape = Annotated[tuple[Extent, ...], Field(max_length=8)]


# The function _metadata of a library

NATIVE = "native"
"""The name of our own interface."""
MLC = "mlc"
"""The name of mlc_llm's."""
Abi = Literal["native", "mlc", "both"]
"""Which of the two sets of functions a library has."""
INTERFACES_OF: dict[Abi, tuple[str, ...]] = {"native": (NATIVE,), "mlc": (MLC,), "both": (NATIVE, MLC)}

CAPTURED_PREFIX = "captured_"
"""Begins the name of a second form of a function, whose launches on a CUDA device are one graph."""

PREFILL_CHUNK = 512
"""Tokens of a prompt that one call reads. What it allocates is 84 MB for a 7B model on a CPU."""

LONGEST_PREFILL_CHUNK = 2048
"""The same for devices that fewer tokens leave idle."""


class ParameterSpec(Schema):
    """A stored tensor as the functions of a library take it."""

    name: str
    """The tensor's name in ``tensor-cache.json``."""
    shape: Shape
    """The shape in memory, after the layout."""
    dtype: StoredDtype
    """The dtype, which is that of the stored tensor."""
    layout: str
    """How the stored tensor is permuted when it is loaded; see Layouts."""
    stored_shape: Shape | None = None
    """The shape in the shards; libraries built before they said it have none."""

    @field_validator("layout")
    @classmethod
    def _check_layout(cls, layout: str) -> str:
        if layout not in LAYOUTS:
            raise ValueError(f"one of {', '.join(LAYOUTS)}")
        return layout


class StateSpec(Schema):
    """One tensor of the recurrent state; a caller allocates it as [slots, *shape]."""

    layer: Count
    """The layer it belongs to."""
    role: str
    """Its name within the layer."""
    shape: Shape
    """The shape of what belongs to one sequence."""
    dtype: StoredDtype = "float32"
    """The dtype, which is the same for every state tensor today."""
    initial: float = 0.0
    """What every element is before the first token."""

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.{self.role}"

    def before(self, slots: int) -> np.ndarray:
        """What ``slots`` sequences have before the first token, [slots, *shape]."""
        return np.full((slots, *self.shape), self.initial, self.dtype)


class TensorSpec(Schema):
    """An argument or the result of a function."""

    name: str
    """Says what it holds."""
    shape: tuple[Extent | str, ...]
    """An extent is a number, or a name that stands for the same number wherever it occurs in a call."""
    dtype: str
    """As NumPy names it."""


class FunctionSpec(Schema):
    """How a function of a library is called."""

    arguments: tuple[TensorSpec | Literal["states", "params"], ...]
    """The arguments in order. "states" and "params" stand for one argument each: the tuple of all tensors of that kind, in
    the order of the metadata."""
    result: TensorSpec
    """The logits, or what a function that measures gives."""
    memory: dict[str, Bytes] | None = None
    """The bytes that a call allocates, its result among them, for each unit of an extent by the extent's name, and under "1"
    those of every call. Libraries built before they said it have none."""
    symbol: str | None = Field(None, exclude_if=_is_none)
    """The function's name in the library, where not that by which the metadata lists it."""
    planned: dict[str, Extent] = Field({})
    """Numbers by the names of extents. What a call allocates is that of an extent of this number at least."""

    def allocated(self, **extents: int) -> int:
        """The bytes that a call with these extents allocates; those that it does not have count for nothing."""
        assert self.memory is not None  # ``older_libraries.described`` completes it
        counted = {"1": 1} | {name: max(extent, self.planned.get(name, 1)) for name, extent in extents.items()}
        return sum(nbytes * counted[name] for name, nbytes in self.memory.items() if name in counted)


class KernelValues(NamedTuple):
    """A kernel call of a function, and the named values that it writes."""

    kernel: str
    """Its name in the library."""
    outputs: dict[Count, str | tuple[str, ...]]
    """The names of the values, by the position of the argument that holds them; several lie in one argument plane by plane."""


Family = Literal["fused", "plain"]
"""How a graph is written: in kernels of ours, or in Relax's operators, which TVM fuses and schedules."""

Activations = Literal["float32", "int21", "int15", "int8"]
"""Of the products that read prompts: floats, or integers in three, two and one bytes."""
ROUNDED: tuple[Activations, ...] = ("int15", "int8")
"""Those that lose more than float32 does."""


class LibraryMetadata(Schema):
    """What ``_metadata`` returns, as JSON."""

    interface: str = NATIVE
    """Which set of functions the library has."""
    config: RWKVConfig = Field(alias="model_config")
    """The model that it was compiled for. ``context_length`` and ``float32`` may differ from the artifact's."""
    quantization: str
    """The scheme of its parameters."""
    target: str
    """The target's name, as in the library's file name."""
    prefill_activations: Activations = "float32"
    """What the matrices of the blocks read in ``prefill``."""
    family: Family = "fused"
    """How its graph is written; libraries built before there were two have kernels of ours."""
    params: tuple[ParameterSpec, ...]
    """The tuple "params"."""
    states: tuple[StateSpec, ...] = ()
    """The tuple "states"; libraries built before they described it have none."""
    functions: dict[str, FunctionSpec] = Field({})
    """The functions by name; libraries built before they described them have none."""
    values: dict[str, tuple[KernelValues, ...]] = Field({})
    """The kernel calls of every function in order, none where they are merged into one."""

    def prefill_chunk(self, most: int) -> int:
        """The tokens of a prompt that one call should read: those that its memory is planned for, at ``most`` so many."""
        prefill = self.functions.get("prefill")
        return min(most, prefill.planned.get("T", most)) if prefill else most

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters in memory."""
        return sum(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in self.params)

    @property
    def state_bytes(self) -> int:
        """Of the state of one sequence."""
        return sum(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in self.states)

    @classmethod
    def read(cls, text: str | bytes, library: Path | str = "The library") -> LibraryMetadata:
        """The types of JSON text, of which those of a library for mlc_llm hold them. Raises UserError for text that does not
        fit."""
        text = text.encode() if isinstance(text, str) else text
        source, advice = f"The metadata of {library}", "build it again"
        if text.startswith(b'{"model_type"'):
            return parse(MlcMetadata, text, source, advice).own
        return parse(cls, text, source, advice)


class MlcParameter(Schema):
    """A parameter of a library for mlc_llm."""

    name: str
    """The tensor's name in ``tensor-cache.json``."""
    shape: Shape
    """As there."""
    dtype: StoredDtype
    """As there."""
    preprocs: tuple[str, ...] = ()
    """What is done with it before it is used: nothing."""


class MlcMetadata(Schema):
    """What ``_metadata`` of a library with mlc_llm's functions returns, as JSON: what that engine reads
    (``cpp/metadata/model.cc``), and our own."""

    model_type: str
    """The generation's name, which contains "rwkv": the engine goes by that."""
    quantization: str
    """The scheme of its parameters."""
    context_window_size: int = -1
    """-1: no limit."""
    sliding_window_size: int = -1
    """-1: none."""
    attention_sink_size: int = -1
    """-1: none."""
    prefill_chunk_size: Extent
    """The most tokens of all prompts that the engine may read in a call; it does not cut prompts."""
    tensor_parallel_shards: Extent = 1
    """1."""
    pipeline_parallel_stages: Extent = 1
    """1."""
    disaggregation: bool = False
    """False."""
    kv_state_kind: str = "rnn_state"
    """What the engine keeps of a sequence."""
    max_batch_size: Extent
    """The most sequences of a call."""
    active_vocab_size: Extent
    """Token ids that there are logits for."""
    model_task: str = "chat"
    """``chat``."""
    params: tuple[MlcParameter, ...]
    """The parameters in the order in which functions take them."""
    memory_usage: dict[str, Bytes]
    """The bytes that a call of a function allocates at most."""
    own: LibraryMetadata = Field(alias="rwkv_mlc")
    """What our engine reads."""


# params/tensor-cache.json


class StoredTensorEntry(Schema):
    """A tensor in a shard: little-endian, row by row, without gaps."""

    name: str
    """The parameter's, or what is stored of it."""
    shape: Shape
    """The shape in the shard."""
    dtype: Literal["float32", "float16", "uint32"]
    """``uint32`` holds packed integers; see Schemes."""
    format: Literal["raw"] = "raw"
    """The bytes are those of the elements."""
    nbytes: Bytes
    """How many bytes the tensor has."""
    offset: Bytes = Field(alias="byteOffset")
    """Where its first byte is in the shard."""


class ShardEntry(Schema):
    """A file of tensors one after another."""

    file: FileName = Field(alias="dataPath")
    """The file's name, beside the index."""
    format: Literal["raw-shard"] = "raw-shard"
    """A file of raw tensors."""
    nbytes: Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
    """How many bytes the file has."""
    records: tuple[StoredTensorEntry, ...]
    """The tensors, in the order in which they lie there."""
    md5sum: str
    """The MD5 sum of the file, hexadecimal."""

    @model_validator(mode="after")
    def _check_tensors(self) -> ShardEntry:
        end = 0
        for tensor in self.records:
            if tensor.nbytes != ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape):
                raise ValueError(f"the bytes of {shortened(tensor.name)} as its shape and dtype give them")
            if tensor.offset + tensor.nbytes > self.nbytes:
                raise ValueError(f"{shortened(tensor.name)} inside its {self.nbytes} bytes")
            if tensor.offset < end:
                raise ValueError(f"{shortened(tensor.name)} after the tensor before it")
            end = tensor.offset + tensor.nbytes
        return self


class TensorTotals(Schema):
    """What mlc_llm shows of all shards."""

    tensors: Count = Field(alias="ParamSize")
    """How many there are."""
    nbytes: Bytes = Field(alias="ParamBytes")
    """How many bytes all shards have."""
    bits_per_weight: float = Field(alias="BitsPerParam")
    """Bits that the shards have for each weight of the model before quantization."""


class TensorIndex(Schema):
    """The index of the shards, in the format of TVM's ``tvmjs.dump_tensor_cache``."""

    metadata: TensorTotals
    """Sums over all shards."""
    records: tuple[ShardEntry, ...]
    """The shards."""


# params/mlc-chat-config.json


class Roles(TypedDict):
    """A text for each of the two who speak."""

    user: str
    """The text for the user."""
    assistant: str
    """The text for the model."""


Mark = Annotated[str, Field(min_length=1)]


class ThinkMode(Schema):
    """How much a model is asked to think before an answer."""

    opening: str
    """What follows ``role_empty_sep``: the beginning of the thoughts, which the model goes on with."""
    user_suffix: str = ""
    """What follows the user's text."""


class Thinking(Schema):
    """The thoughts that come before an answer."""

    begin: Mark
    """What they begin with."""
    end: Mark
    """What they end with."""
    modes: Annotated[dict[str, ThinkMode], Field(min_length=1)]
    """How much there may be of them, by name."""
    default: str
    """The name of the mode where none is asked for."""

    @model_validator(mode="after")
    def _has_default(self) -> Thinking:
        if self.default not in self.modes:
            raise ValueError(f"gives default as {quoted(self.default)}, expected one of {', '.join(self.modes)}")
        return self


class ToolUse(Schema):
    """How functions are offered to a model, called by it, and answered."""

    offer: str
    """What stands below the system text, or in its place; "{tools}" in it stands for the JSON list of the functions."""
    call_begin: Mark
    """What comes before a call, an object of a name and arguments in JSON."""
    call_end: Mark
    """What comes after it."""
    result: str
    """The user's text that answers a call; "{result}" in it stands for what the function gave."""


class Conversation(Schema):
    """A prompt template: the fields of mlc_llm's conversation protocol that RWKV chats use, with its names, and two of our own,
    ``think`` and ``tool_use``."""

    name: str
    """The template's."""
    roles: Roles
    """What they are called in the text."""
    seps: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    """What ends a message: one separator, or two, after the user and after the assistant."""
    system_template: str = "{system_message}"
    """What is fed first; "{system_message}" in it stands for ``system_message``. Nothing where that is empty."""
    system_message: str = ""
    """The system text."""
    role_templates: Roles = Field(Roles(user="{user_message}", assistant="{assistant_message}"))
    """A message as it is fed; "{user_message}" or "{assistant_message}" in it stands for the text."""
    messages: tuple[tuple[Literal["user", "assistant"], str], ...] = ()
    """Who and what: the exchange that is fed after the system text."""
    role_content_sep: str = ""
    """What stands between the name of a role and its message."""
    role_empty_sep: str = ""
    """What follows the name of the assistant, where its answer begins."""
    stop_str: tuple[str, ...] = ()
    """Strings that end an answer; they are not part of it."""
    stop_token_ids: tuple[Count, ...] = ()
    """Token ids that end an answer."""
    think: Thinking | None = Field(None, exclude_if=_is_none)
    """For models that think before they answer."""
    tool_use: ToolUse | None = Field(None, exclude_if=_is_none)
    """For models that call functions."""


class Conversation2023(Schema):
    """The same template in the form of mlc_chat (``cpp/conversation.cc``)."""

    name: str
    """The template's."""
    system: str
    """What is fed first, without the separator, which mlc_chat adds."""
    roles: tuple[str, str]
    """The names of user and assistant."""
    messages: tuple[tuple[str, str], ...]
    """Name of the role and text."""
    offset: Count
    """How many of the messages belong to the template."""
    separator_style: Literal[0, 2]
    """0: roles and separators, 2: plain continuation."""
    seps: tuple[str, ...]
    """As in Conversation."""
    role_msg_sep: str
    """``role_content_sep`` there."""
    role_empty_sep: str
    """As there."""
    stop_str: str
    """The first of the strings; empty: none."""
    stop_tokens: tuple[Count, ...]
    """``stop_token_ids`` there."""
    prefix_tokens: tuple[Count, ...]
    """Ids to feed first: none."""
    add_bos: bool
    """Whether a text begins with ``bos_token_id``: false."""


class TokenizerInfo(Schema):
    """How mlc_llm turns tokens into text."""

    token_postproc_method: Literal["byte_level", "byte_fallback"]
    """``byte_level`` for tokenizer.json."""
    prepend_space_in_encode: bool
    """False."""
    strip_space_in_decode: bool
    """False."""


class InitialState(Schema):
    """A file of states, which stand for ``initial`` of the library's metadata."""

    file: FileName
    """In params/: safetensors, some of the metadata's states by name, float32 [*shape] without an axis of slots."""
    source: str
    """The file of state tuning that it was made from, as the user named it."""
    sha256: str
    """The SHA-256 of the file in params/, hexadecimal."""


class ChatConfig(Schema):
    """Model, tokenizer, prompt template and sampling defaults, with the fields of both eras of MLC: mlc_llm of today reads
    ``model_config`` and ``conv_template``, mlc_chat of 2023 ``model_lib``, ``conv_config`` and lengths. Fields that may be
    missing are for these two, but for those of sampling, ``eos_token_id`` and ``bos_token_id``."""

    version: str | None = None
    """The version of mlc_llm's format."""
    model_type: str | None = None
    """The generation's name, such as ``rwkv5``."""
    quantization: str
    """The scheme of the parameters; see Schemes."""
    config: RWKVConfig = Field(alias="model_config")
    """The model; ``num_heads`` and ``prefill_chunk_size`` are repeated here for mlc_llm."""
    vocab_size: Extent | None = None
    """Token ids that the model has logits for."""
    active_vocab_size: Extent | None = None
    """Token ids that the tokenizer may know: its largest plus 1. The rest is padding."""
    context_window_size: int | None = None
    """-1: no limit."""
    sliding_window_size: int | None = None
    """-1: none."""
    attention_sink_size: int | None = None
    """-1: none."""
    prefill_chunk_size: Extent
    """Tokens; the longest part of a prompt that one call should read, which is no longer than what a library plans for."""
    tensor_parallel_shards: Extent | None = None
    """1."""
    pipeline_parallel_stages: Extent | None = None
    """1."""
    pad_token_id: Count | None = None
    """0."""
    bos_token_id: Count | None = None
    """What a text begins with; stands for an empty prompt."""
    eos_token_id: Count | tuple[Count, ...] = 0
    """The token, or the tokens, that end a text."""
    temperature: float | None = None
    """This and those up to ``seed`` are the sampling defaults; generation.md says what they mean."""
    top_p: float | None = None
    """The probability that the nucleus has."""
    presence_penalty: float | None = None
    """The penalty for a token that has occurred, of the author's chat."""
    frequency_penalty: float | None = None
    """The penalty for each time that it has occurred, of the author's chat."""
    repetition_penalty: float | None = None
    """1 is off."""
    penalty_decay: float | None = None
    """Ours; other engines skip it."""
    top_k: int | None = None
    """May be added by hand."""
    max_tokens: int | None = None
    """May be added by hand."""
    seed: int | None = None
    """May be added by hand."""
    tokenizer_files: tuple[FileName, ...]
    """In params/: ``rwkv_vocab.txt`` and ``tokenizer_model``, or ``tokenizer.json``."""
    tokenizer_info: TokenizerInfo | None = None
    """For mlc_llm."""
    initial_state: InitialState | None = None
    """Ours: the state before the first token of every text, where it was trained; null: the library's own."""
    conv_template: Conversation
    """The prompt template."""
    model_task: str | None = None
    """``chat``."""
    model_lib: str | None = None
    """The artifact's name; the symbols of object files begin with it."""
    local_id: str | None = None
    """The artifact's name."""
    model_name: str | None = None
    """The artifact's name without the scheme."""
    model_category: str | None = None
    """mlc_chat's name of the generation and its vocabulary, such as ``rwkv_world``."""
    conv_config: Conversation2023 | None = None
    """For mlc_chat."""
    mean_gen_len: Extent | None = None
    """Tokens that mlc_chat expects of an answer."""
    max_gen_len: Extent | None = None
    """The context length of the training."""
    max_window_size: Extent | None = None
    """As ``max_gen_len``."""
    shift_fill_factor: float | None = None
    """For models with a window."""
    num_shards: Extent | None = None
    """1."""
    use_presharded_weights: bool | None = None
    """False."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling defaults that the file gives, by name."""
        values = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    @field_serializer("config")
    def _model_config(self, config: RWKVConfig) -> dict[str, Any]:
        return config.to_dict() | {"num_heads": config.num_heads, "prefill_chunk_size": self.prefill_chunk_size}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "penalty_decay",
    "seed",
    "max_tokens",
)


# build-record.json


def _plain(value: Any) -> Any:
    return file_name(value) if isinstance(value, str) else value


def _described(target: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError unless the parts that are read here have their types."""
    for part in (target, target.get("host", {})):
        if not isinstance(part, dict) or any(not isinstance(part.get(name, ""), str) for name in ("mtriple", "mcpu")):
            raise ValueError("a target as TVM describes it")
    return target


class LibraryRecord(Schema):
    """One compiled library."""

    path: Annotated[Path, BeforeValidator(_plain), PlainSerializer(lambda path: path.name)] = Field(alias="file")
    """The library's name, beside the record."""
    sha256: str
    """The SHA-256 of the file, hexadecimal."""
    target: Annotated[dict[str, Any], AfterValidator(_described)]
    """TVM's description of the target."""
    cpu_features: list[str]
    """What its code needs of the CPU, in LLVM's names, such as "avx512vnni"."""
    versions: dict[str, str]
    """The versions of the packages that built it; the library runs on this version of "apache-tvm"."""
    time: str
    """When it was built, UTC in ISO 8601."""
    prefill_activations: Activations = "float32"
    """As in the library's metadata."""
    family: Family = "fused"
    """As in the library's metadata."""
    abi: Abi = "native"
    """Whose functions it has: our engine's, mlc_llm's, or both."""

    @property
    def triple(self) -> str | None:
        """LLVM's name of the machine that loads the library: for a GPU's its host."""
        return self.target.get("host", self.target).get("mtriple")


class LoraRecord(Schema):
    """A LoRA that was merged into the parameters."""

    file: str
    """The LoRA as the user named it."""
    alpha: Annotated[float, Field(gt=0)]
    """What its products were scaled by, before they were divided by their rank."""


class BuildRecord(Schema):
    """What an artifact was built from, and its libraries."""

    name: FileName
    """The artifact's."""
    source: str
    """The checkpoint as the user named it."""
    source_sha256: str
    """The SHA-256 of the checkpoint's bytes, hexadecimal, with those of ``lora`` and its alpha after them; a saved state bears
    it too."""
    source_format: str
    """The format of the checkpoint."""
    generation: str
    """As in RWKVConfig."""
    quantization: str
    """The scheme of the parameters."""
    head_size_divisor: Extent
    """As in RWKVConfig."""
    versions: dict[str, str]
    """The versions of the packages that converted the parameters."""
    time: str
    """When they were converted, UTC in ISO 8601."""
    rescale_every: Count = 0
    """As in RWKVConfig."""
    lora: LoraRecord | None = None
    """The LoRA in the parameters, null for none."""
    libraries: dict[str, LibraryRecord] = Field({})
    """The libraries, by the targets' names."""


# dump.json


class DumpHeader(Schema):
    """What a dump is of."""

    source: Literal["library", "reference", "rwkv"]
    """What computed the values."""
    name: str
    """The model's."""
    sha256: str
    """The SHA-256 of the checkpoint's bytes, hexadecimal."""
    config: RWKVConfig = Field(alias="model_config")
    """The model."""
    quantization: str | None
    """The scheme of the weights, null where they are the checkpoint's."""
    activations: Literal["float64", "float32", "float16", "int21", "int15", "int8"]
    """What the values were computed in; integers: in the products of a prefill."""
    tokens: Annotated[list[Count], Field(min_length=1)]
    """The token ids of the prefill."""
    decoded: list[Count]
    """The single tokens after it."""
    chunk: Extent
    """Tokens; the longest part of the prefill that one call read."""
    target: str | None = None
    """The library's target."""
    device: str | None = None
    """The device that the library ran on."""
    family: Family | None = None
    """How the library's graph is written."""
    kernels: dict[str, str] = Field({})
    """What computed a value, by its name."""
    notes: list[str] = Field([])
    """What a reader of a comparison should know."""

    @model_validator(mode="after")
    def _check_tokens(self) -> DumpHeader:
        if max([*self.tokens, *self.decoded]) >= self.config.vocab_size:
            largest = max([*self.tokens, *self.decoded])
            raise ValueError(f"gives the token id {largest}, expected at most {self.config.vocab_size - 1}")
        return self

    @property
    def calls(self) -> list[str]:
        return ["prefill", *(f"decode.{i}" for i in range(len(self.decoded)))]

    @property
    def borders(self) -> list[int]:
        """The rows of the prefill with which a new chunk begins, but for the first."""
        return list(range(self.chunk, len(self.tokens), self.chunk))


class DumpFile(DumpHeader):
    """``dump.json``: the header, and what lies beside it in ``tensors.safetensors``."""

    format: Literal["rwkv_mlc dump 1"] = "rwkv_mlc dump 1"
    """This one."""
    tensors: dict[str, tuple[str | Count, ...]]
    """Dtype and shape of every tensor by its name, in the order of execution."""

    @property
    def header(self) -> DumpHeader:
        return DumpHeader(**{name: getattr(self, name) for name in DumpHeader.model_fields})

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, the format first."""
        return {"format": self.format} | super().to_dict()


# Checkpoints on Hugging Face


class WeightIndex(Schema):
    """``model.safetensors.index.json``, or ``pytorch_model.bin.index.json``."""

    weight_map: dict[str, FileName]
    """The file of every tensor."""
