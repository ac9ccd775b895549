"""Folders that mlc_chat converted in 2023, which number their parameters: RWKV-4, and RWKV-5.2 of its fork.

The numbers are those of mlc-llm's ``mlc_llm/relax_model/param_manager.py``, which counts the tensors of one parameter after
the other in the order in which ``mlc_llm/relax_model/rwkv.py`` defines them, the words of a quantized matrix before their
scales (``mlc_llm/quantization/group_quantization.py``); ``mlc_llm/utils.py`` saves them. How often the weights of a layer were
halved no file of such a folder says, only the model's ``config.json``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from ..config import RWKVConfig
from ..errors import UserError
from ..escaping import listed, quoted
from ..models import GENERATIONS
from ..models.generation import Generation, MlcChat
from ..models.parameter import Parameter
from ..quantization.group import GroupForm
from ..quantization.schemes import SCHEMES, Scheme
from ..typed_json import Extent, FileName, Schema, read
from .converted import ADVICE, AGAIN, CHAT_CONFIG, Converted, Located, ModelConfig
from .folder import CONFIG, Facts, read_facts

KNOWN: dict[str, tuple[Generation, MlcChat]] = {
    generation.category(vocabulary): (generation, generation.mlc_chat)
    for generation in GENERATIONS.values()
    for vocabulary in ("pile", "world")
    if generation.mlc_chat is not None
}
"""By ``model_category``."""

QUANTIZATIONS = ("q0f32", "q0f16", "q3f16_1", "q4f16_0", "q4f16_1", "q4f16_2", "q8f16_1")
"""Those whose numbers are ours: ``q4f32_0`` and ``q4f32_1`` of 2023 have a smallest value beside every scale, ``q3f16_0`` and
``q8f16_0`` are laid out otherwise."""

HALF_WORDS = 3
"""Bits of the weights that lie in words of 16 bits."""

NORMS = ("ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias")
CHANNEL_MIXING = ("time_mix_key", "time_mix_receptance", "key.weight", "receptance.weight", "value.weight")


class ChatConfig(Schema):
    """What of ``mlc-chat-config.json`` the parameters depend on."""

    category: str = Field(alias="model_category")
    local_id: FileName
    vocab_size: Extent


@dataclass(frozen=True)
class HalfWords(Located):
    """Words of 16 bits with five weights each, the highest bit 0; two of them make a word of ours, which has ten weights."""

    halves: Located

    def read(self) -> np.ndarray:
        """uint32 [*shape]. Raises UserError for a highest bit that is not 0."""
        pairs = self.halves.read().reshape(*self.entry.shape, 2).astype(np.uint32)
        if (pairs >> 15).any():
            raise UserError(f"{self.path} is damaged: it holds words of more than five weights; {ADVICE}.")
        return pairs[..., 0] | (pairs[..., 1] << np.uint32(15))


def read_numbered(folder: Path, stored: Mapping[str, Located]) -> Converted:
    """The tensors by the names of today. Raises UserError for a model or a quantization that is not read, and for tensors that
    are not those of the model by their count, numbers, shapes and dtypes."""
    chat = read(ChatConfig, folder / CHAT_CONFIG, ADVICE, inside=folder)
    if chat.category not in KNOWN:
        raise UserError(
            f"{folder / CHAT_CONFIG} is of the model category {quoted(chat.category)}; of mlc_chat's folders those of "
            f"{listed(KNOWN)} are read: {AGAIN}."
        )
    generation, done = KNOWN[chat.category]
    model, _, quantization = chat.local_id.rpartition("-")
    if quantization not in QUANTIZATIONS:
        raise UserError(
            f"{folder} is of the local_id {quoted(chat.local_id)}; of mlc_chat's quantizations those are read that are schemes "
            f"here, too, {listed(QUANTIZATIONS)}: {AGAIN}."
        )
    scheme = SCHEMES[quantization]
    numbered = _in_order(folder, stored)
    config = _config(folder, chat, generation, done, scheme, numbered)
    tensors = _by_name(folder, numbered, _parameters(generation, done, config), done, scheme)
    facts = _facts(folder, model)
    return Converted(
        tensors=tensors,
        config=ModelConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            rescale_every=max(facts.config.rescale_every or 0, 0),
            layer_norm_epsilon=1e-5 if facts.config.layer_norm_epsilon is None else facts.config.layer_norm_epsilon,
        ),
        scheme=scheme,
        done=done.done,
        stated=facts.stated,
        context_length=facts.config.context_length,
        tokens=facts.tokens,
    )


def _in_order(folder: Path, stored: Mapping[str, Located]) -> list[Located]:
    names = [f"param_{i}" for i in range(len(stored))]
    if missing := [name for name in names if name not in stored]:
        raise UserError(f"{folder} holds {len(stored)} tensors and no {missing[0]} among them; {ADVICE}.")
    return [stored[name] for name in names]


def _config(
    folder: Path, chat: ChatConfig, generation: Generation, done: MlcChat, scheme: Scheme, numbered: list[Located]
) -> RWKVConfig:
    """The sizes that the numbers of tensors and their shapes give; whether the other shapes agree is seen later."""
    of_matrix = 2 if isinstance(scheme.matrix, GroupForm) else 1
    of_embedding = 2 if isinstance(scheme.embedding, GroupForm) else 1
    layer = (*NORMS, *done.time_mixing, *CHANNEL_MIXING)
    matrices = [name for name in layer if name.endswith(".weight") and not name.startswith("ln")]
    each = len(layer) + (of_matrix - 1) * len(matrices)
    others = 2 * of_embedding + 4  # embedding and head, the norms before and after all layers
    layers, rest = divmod(len(numbered) - others, each)
    if layers < 1 or rest:
        raise UserError(
            f"{folder} holds {len(numbered)} tensors, expected {others} and {each} for every layer of an "
            f"RWKV-{generation.name} in {scheme.name}; {AGAIN}."
        )
    first = of_embedding + 2
    norm, decay = numbered[of_embedding].entry.shape, numbered[first + len(NORMS)].entry.shape
    key = numbered[first + each - 2 * of_matrix - 1].entry.shape  # the scales, where there are any
    transposed = isinstance(scheme.matrix, GroupForm) and scheme.matrix.transposed
    found = {
        "generation": generation.name,
        "vocab_size": chat.vocab_size,
        "hidden_size": norm[0] if norm else 1,
        "num_hidden_layers": layers,
        "intermediate_size": key[-1 if transposed else 0] if key else 1,
        "head_size": decay[1] if len(decay) == 2 else 0,
    }
    return RWKVConfig.from_dict(found, f"The shape of the tensors in {folder}", ADVICE)


def _parameters(generation: Generation, done: MlcChat, config: RWKVConfig) -> list[Parameter]:
    """In mlc_chat's order."""
    parts = (
        *NORMS,
        *(f"attention.{name}" for name in done.time_mixing),
        *(f"feed_forward.{n}" for n in CHANNEL_MIXING),
    )
    before, after = ("pre_ln.weight", "pre_ln.bias"), ("ln_out.weight", "ln_out.bias")
    names = [
        "model.embeddings.weight",
        *(f"model.blocks.0.{name}" for name in before),
        *(f"model.blocks.{layer}.{part}" for layer in range(config.num_hidden_layers) for part in parts),
        *(f"model.{name}" for name in after),
        "head.weight",
    ]
    parameters = {parameter.name: parameter for parameter in generation.parameters(config)}
    return [parameters[name] for name in names]


def _by_name(
    folder: Path, numbered: list[Located], parameters: list[Parameter], done: MlcChat, scheme: Scheme
) -> dict[str, Located]:
    """The tensors under the names and in the shapes and dtypes in which mlc_llm of today stores them."""
    tensors: dict[str, Located] = {}
    wanted = [(p, name, shape, dtype) for p in parameters for name, (shape, dtype) in scheme.stored(p).items()]
    for (parameter, name, shape, dtype), located in zip(wanted, numbered, strict=True):
        entry, form = located.entry, scheme.form(parameter.role)
        expected: tuple[tuple[int, ...], str] = shape, dtype
        halves = isinstance(form, GroupForm) and form.bits == HALF_WORDS and dtype == "uint32"
        if halves:
            expected = (shape[0], 2 * shape[1]), "uint16"
        elif parameter.role == "vector":
            is_mix = len(shape) == 3  # [1, 1, C], of which mlc_chat left out what is 1
            expected = shape[-1:] if is_mix else shape, "float32" if name.endswith(done.float32) else scheme.float_dtype
        if (entry.shape, entry.dtype) != expected:
            raise UserError(
                f"{folder} holds {entry.name} as {entry.dtype} {list(entry.shape)}, expected {expected[1]} "
                f"{list(expected[0])} of {name} in {scheme.name}; {AGAIN}."
            )
        renamed = entry.model_copy(update={"name": name, "shape": shape, "dtype": dtype if halves else entry.dtype})
        tensors[name] = HalfWords(located.path, renamed, located) if halves else Located(located.path, renamed)
    return tensors


def _facts(folder: Path, model: str) -> Facts:
    """What the model's ``config.json`` says, in the folder or where mlc_chat's build downloaded the model. Raises UserError
    where there is none."""
    home = Path(os.path.abspath(folder)).parent.parent  # noqa: PTH100  links keep their names
    for place in (folder, home / "models" / model):
        if (facts := read_facts(place, own=place == folder)) is not None:
            return facts
    raise UserError(
        f"{folder} does not say every how many layers mlc_chat halved its weights; put the {CONFIG} of the model that it was "
        f'converted from into it, or a {CONFIG} of {{"rescale_every": 6}}, which is what those of RWKV-4 on Hugging Face say.'
    )
