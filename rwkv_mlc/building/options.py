"""How an artifact is to be built, where not as usual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..errors import UserError
from ..escaping import quoted
from ..models import ModelOptions
from ..schema import Abi, Activations, Family
from ..typed_json import file_name


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Wishes of a build. Raises UserError for a value that means nothing by itself; whether the model and the target have
    what is wished for, the build finds out.

    Of the artifact: ``artifact_name`` is its folder's name, where not ``<model>-<quantization>``; ``overwrite`` lets it take
    the place of one that was built from another checkpoint.

    Of the model: ``head_size_divisor``, ``context_length`` (tokens) and ``rescale_every`` (layers) are those of
    ``ModelOptions``. ``float32_layers`` and ``float32_values`` (roles of a block, such as ``ffn.key``) stay in float32 where
    the target computes in float16, and with ``auto_precision`` so does what float16 would not hold, as found by reading a
    text; that takes the model's size in float32 of memory.

    Of the checkpoint: ``tokenizer`` is a vocabulary file or folder, where there is none beside the checkpoint; ``template``
    one of ``configs/templates``, where not the model's usual one; ``lora`` is a file or PEFT's folder to merge into the
    weights, ``lora_alpha`` what it was trained with, where it does not say that itself; ``state`` is a file of state tuning,
    with which every text begins; ``revision`` a branch, tag or commit of a hub repository; ``random_seed`` draws weights for a
    preset of ``configs/models``.

    Of the library: ``mcpu`` is the CPU to compile for, in LLVM's names; ``family`` how the graph is written, ``fused`` in
    kernels of ours or ``plain`` in Relax's operators; ``abi`` whose functions it has, our engine's (``native``), mlc_llm's
    (``mlc``) or ``both``, where not both for a GPU whose model mlc_llm can run and ours otherwise; ``prefill_activations``
    are those of the products that read prompts, where not the fastest that are as exact as float32; ``system_lib`` asks for
    object files to link into a program; ``debug_dump`` writes the module after every phase to the artifact's ``debug``
    folder."""

    artifact_name: str | None = None
    overwrite: bool = False
    head_size_divisor: int | None = None
    context_length: int | None = None
    rescale_every: int | None = None
    float32_layers: tuple[int, ...] = ()
    float32_values: tuple[str, ...] = ()
    auto_precision: bool = False
    tokenizer: str | Path | None = None
    template: str | None = None
    lora: str | Path | None = None
    lora_alpha: float | None = None
    state: str | Path | None = None
    revision: str | None = None
    random_seed: int | None = None
    mcpu: str | None = None
    family: Family = "fused"
    abi: Abi | None = None
    prefill_activations: Activations | None = None
    system_lib: bool = False
    debug_dump: bool = False

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise UserError(f"The families are {', '.join(get_args(Family))}, not {self.family!r}.")
        if self.abi not in (None, *get_args(Abi)):
            raise UserError(f"The interfaces are {', '.join(get_args(Abi))}, not {quoted(self.abi)}.")
        if self.prefill_activations not in (None, *get_args(Activations)):
            valid = ", ".join(get_args(Activations))
            raise UserError(f"The activations of prefill are {valid}, not {quoted(self.prefill_activations)}.")
        if self.artifact_name is not None:
            try:
                file_name(self.artifact_name)
            except ValueError as error:
                raise UserError(
                    f"--artifact-name must be {error}, not {quoted(self.artifact_name)}; give the folder around it with "
                    "--artifact-path."
                ) from None
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            raise UserError(f"--lora-alpha must be a number above 0, not {self.lora_alpha}.")
        if self.lora_alpha is not None and self.lora is None:
            raise UserError("--lora-alpha is of a LoRA; give its file with --lora.")
        self.model_options()  # refuses numbers that mean nothing

    def model_options(self) -> ModelOptions:
        """Without ``float32``, which needs the model's layers and roles."""
        return ModelOptions(
            head_size_divisor=self.head_size_divisor,
            context_length=self.context_length,
            rescale_every=self.rescale_every,
        )
