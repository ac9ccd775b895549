"""Low-rank adaptions (Hu et al. 2021, "LoRA"), merged into the weights that they were trained for: W + alpha / r B A.

Files are those of RWKV-LM's trainers (``blocks.0.att.key.lora_A``), which may hold whole tensors besides, and of PEFT
(``base_model.model.rwkv.blocks.0.attention.key.lora_A.weight``), whose ``adapter_config.json`` says alpha.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..errors import UserError
from ..escaping import listed, listed_problems, quoted, shortened
from ..models import detect_config, generation_of
from ..typed_json import Extent, Schema, read
from . import read_file
from .adapters import THIN, content_of, own_name
from .checkpoint import Checkpoint, LazyTensor, MergedLora
from .folder import ADAPTER_CONFIG, ADVICE
from .huggingface import rename

PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")
"""PEFT's ``init_lora_weights`` that leave the model's own weights as they are: others, such as "pissa", take from them what
the LoRA begins with."""


class AdapterConfig(Schema):
    """``adapter_config.json``: ``rank_pattern`` and ``alpha_pattern`` give some modules ranks and alphas of their own,
    ``use_rslora`` divides by the root of the rank, ``use_dora`` and ``fan_in_fan_out`` are other products, a LoRA with
    ``init_lora_weights`` beyond ``BEGINNINGS`` is of other weights, ``layer_replication`` gives the model more layers, and with
    ``alora_invocation_tokens`` only some tokens see the LoRA."""

    peft_type: str = "LORA"
    rank: Extent | None = Field(default=None, alias="r")
    rank_pattern: dict[str, Extent] = Field(default_factory=dict)
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: Any = True
    layer_replication: Any = None
    alora_invocation_tokens: Any = None

    @property
    def ranks(self) -> frozenset[int]:
        """None at all where the file does not say them."""
        return frozenset(() if self.rank is None else (self.rank, *self.rank_pattern.values()))


def merged(checkpoint: Checkpoint, path: Path, alpha: float | None = None) -> Checkpoint:
    """The checkpoint with a LoRA, a file or PEFT's folder, in its weights; computed in float32 when they are read.

    ``alpha`` is what the LoRA was trained with, where its ``adapter_config.json`` does not say that. Raises UserError for a
    file that cannot be read or holds no LoRA, for an unknown alpha, and for one whose tensors do not all fit the model, with
    a list of those."""
    file, config = _file_of(path)
    stored = read_file(file, "LoRA").tensors
    alpha = config.lora_alpha if alpha is None else alpha
    rules = generation_of(detect_config(checkpoint.shapes)).hugging_face_names
    thin: dict[str, dict[str, LazyTensor]] = {}
    whole: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        place, key = whole, rename(own_name(name), rules)
        if pair := THIN.fullmatch(own_name(name)):
            target = rename(f"{pair[1]}.weight", rules)
            target = target if target in checkpoint.tensors else rename(pair[1], rules)
            place, key = thin.setdefault(target, {}), pair[2]
        if key in place:
            raise UserError(
                f"{file} holds two tensors for one place, one of them as {shortened(name)}; give the adapter of one training."
            )
        place[key] = tensor
    if not thin and (content := content_of(stored)):
        raise UserError(f"{file} is {content.what}, not a LoRA; {content.advice}.")
    if not thin:
        raise UserError(
            f"{file} holds no LoRA: none of its tensors is called lora_A or lora_B; give the adapter's own file."
        )
    if alpha is None:
        raise UserError(f"{file} does not say the alpha that it was trained with; give it with --lora-alpha N.")
    if problems := list(_problems(checkpoint.shapes, thin, whole, config.ranks)):
        count = "1 of its tensors does" if len(problems) == 1 else f"{len(problems)} of its tensors do"
        raise UserError(
            f"The LoRA {file} is of another model than {checkpoint.name}, {count} not fit: {listed_problems(problems)}."
        )

    def sum_of(weight: LazyTensor, a: LazyTensor, b: LazyTensor) -> LazyTensor:
        rank = a.shape[0]
        scale = np.float32(alpha / (math.sqrt(rank) if config.use_rslora else rank))
        return LazyTensor(weight.shape, "float32", lambda: weight.read() + scale * (b.read() @ a.read()))

    sums = {
        name: sum_of(whole.get(name, checkpoint.tensors[name]), pair["A"], pair["B"]) for name, pair in thin.items()
    }
    return dataclasses.replace(
        checkpoint,
        tensors=checkpoint.tensors | whole | sums,
        lora=MergedLora(file, float(alpha), matrices=len(sums), whole=len(whole), by_root=config.use_rslora),
    )


def _file_of(path: Path) -> tuple[Path, AdapterConfig]:
    """The file with the tensors, and what is said beside it."""
    if path.is_dir():
        found = [path / name for name in PEFT_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no LoRA; expected {' or '.join(PEFT_FILES)}, or give the file's path.")
        path = found[0]
    if not path.exists():
        raise UserError(f"There is no LoRA {path}; give an adapter's file or folder.")
    if path.name not in PEFT_FILES or not (path.parent / ADAPTER_CONFIG).is_file():
        return path, AdapterConfig()
    config = read(AdapterConfig, path.parent / ADAPTER_CONFIG, ADVICE)
    others = {
        f"peft_type {config.peft_type!r}": config.peft_type != "LORA",
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "alpha_pattern": bool(config.alpha_pattern),
        f"init_lora_weights {quoted(config.init_lora_weights)}": config.init_lora_weights not in BEGINNINGS,
        "layer_replication": bool(config.layer_replication),
        "alora_invocation_tokens": bool(config.alora_invocation_tokens),
    }
    if asked := [name for name, is_set in others.items() if is_set]:
        raise UserError(
            f"{path.parent / ADAPTER_CONFIG} asks for {', '.join(asked)}, and only plain LoRAs of one alpha are merged here; "
            "merge it with PEFT (merge_and_unload) and save the whole model."
        )
    return path, config


def _problems(
    shapes: Mapping[str, tuple[int, ...]],
    thin: Mapping[str, Mapping[str, LazyTensor]],
    whole: Mapping[str, LazyTensor],
    ranks: Collection[int],
) -> Iterator[str]:
    for name, pair in thin.items():
        module = name.removesuffix(".weight")
        sides = {side: list(tensor.shape) for side, tensor in pair.items()}
        if name not in shapes:
            yield from (f"unknown {module}.lora_{side}" for side in sides)
        elif len(sides) < 2:
            (absent,) = {"A", "B"} - set(sides)
            yield f"missing {module}.lora_{absent}"
        elif not _multiply(sides["B"], sides["A"], shapes[name]):
            yield f"{module} is {list(shapes[name])}, its lora_A {sides['A']} and lora_B {sides['B']}"
        elif ranks and sides["A"][0] not in ranks:
            yield f"{module} has the rank {sides['A'][0]}, where {ADAPTER_CONFIG} says {listed(list(map(str, sorted(ranks))))}"
    for name, tensor in whole.items():
        if name not in shapes:
            yield f"unknown {name}"
        elif _core(tensor.shape) != _core(shapes[name]):
            yield f"{name} is {list(tensor.shape)}, expected {list(shapes[name])}"


def _multiply(b: list[int], a: list[int], shape: tuple[int, ...]) -> bool:
    """Whether [N, r] and [r, K] are there, of a matrix [N, K]."""
    return len(a) == len(b) == 2 and b[1] == a[0] > 0 and (b[0], a[1]) == shape


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of length 1, which differ between formats."""
    return tuple(n for n in shape if n != 1)
