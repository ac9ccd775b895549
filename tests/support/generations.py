"""Every generation that there is a model of, also those that are not registered before GPUs run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rwkv_mlc import models
from rwkv_mlc.models import GENERATIONS, UNREGISTERED

EVERY = {**GENERATIONS, **UNREGISTERED}


@contextmanager
def registered() -> Iterator[None]:
    """All of them are known meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "UNSUPPORTED", {})
        for name, generation in UNREGISTERED.items():
            patch.setitem(GENERATIONS, name, generation)
        yield
