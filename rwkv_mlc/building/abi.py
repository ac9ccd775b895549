"""Whose functions a library gets: our engine's, mlc_llm's, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact import BuildRecord
from ..artifact.names import BUILD_RECORD, INITIAL_STATE, PARAMS
from ..config import RWKVConfig
from ..errors import UserError
from ..models import generation_of
from ..quantization.schemes import GroupForm, Scheme
from ..schema import Abi
from .options import BuildOptions

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget

OWN_STATE = "it begins with the library's state, and this artifact has one of its own (--state)"


@dataclass(frozen=True)
class ChosenAbi:
    """``without_mlc`` is why mlc_llm's functions, which the target's libraries have otherwise, are left out."""

    abi: Abi
    without_mlc: str | None = None


def choose_abi(
    config: RWKVConfig, scheme: Scheme, target: CompileTarget, tuned_state: bool, options: BuildOptions
) -> ChosenAbi:
    """What the options name, else both for a GPU where mlc_llm could run the model, which a ``tuned_state`` is part of. Raises
    UserError where its functions are asked for and it could not."""
    reason = _no_mlc(config, scheme, options)
    if reason is None and tuned_state:
        reason = OWN_STATE
    if options.abi is None:
        usual = target.device == "gpu"
        return ChosenAbi("both" if usual and reason is None else "native", reason if usual else None)
    if options.abi != "native" and reason is not None:
        raise UserError(f"mlc_llm cannot run this model: {reason}; leave --abi out, or give --abi native.")
    return ChosenAbi(options.abi)


def _no_mlc(config: RWKVConfig, scheme: Scheme, options: BuildOptions) -> str | None:
    """Why its engine has no use for a library of the model, None where it has."""
    if any(parameter.role == "table" for parameter in generation_of(config).parameters(config)):
        return f"every layer of RWKV-{config.generation} reads the token, of which that engine hands on the embedding alone"
    if isinstance(scheme.matrix, GroupForm) and scheme.matrix.transposed:
        return f"{scheme.name} stores matrices transposed, and that engine loads them as they are stored; take q4f16_1"
    if options.family != "fused":
        return f"the {options.family} family has no functions for it"
    return None


def check_state(folder: Path) -> None:
    """Raises UserError for an artifact with a state of its own whose libraries have mlc_llm's functions."""
    if not (folder / PARAMS / INITIAL_STATE).exists() or not (folder / BUILD_RECORD).exists():
        return
    libraries = BuildRecord.read(folder).libraries
    if targets := [name for name, library in libraries.items() if library.abi != "native"]:
        raise UserError(
            f"The library for {targets[0]} has mlc_llm's functions. That engine cannot run this model: {OWN_STATE}; compile "
            "the library with --abi native."
        )
