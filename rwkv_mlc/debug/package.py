"""Dumps of the ``rwkv`` package where it is installed."""

from __future__ import annotations

from ..errors import UserError
from ..models import ModelOptions
from ..quantization.schemes import Scheme
from ..weights.checkpoint import Checkpoint
from .dump import Dump
from .recipe import Recipe

INSTALL = "pip install 'rwkv_mlc[rwkv]'"


def dump_package(
    checkpoint: Checkpoint, recipe: Recipe, scheme: Scheme | None = None, options: ModelOptions = ModelOptions()
) -> Dump:
    """As ``chatrwkv.dump_chatrwkv``. Raises UserError where the package is not installed as well."""
    try:
        from .chatrwkv import dump_chatrwkv

        return dump_chatrwkv(checkpoint, recipe, scheme, options)
    except ImportError as error:
        raise UserError(
            f"--with rwkv needs the packages rwkv and torch ({error}); install them with {INSTALL}."
        ) from None
