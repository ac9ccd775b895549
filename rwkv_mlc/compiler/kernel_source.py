"""A switch of TVM's: its code generators give the kernels of a GPU as source."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

AS_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"


@contextlib.contextmanager
def kernels_as_source() -> Iterator[None]:
    """Have TVM's code generators give source. On a machine with the device they would compile for it alone."""
    before = os.environ.get(AS_SOURCE)
    os.environ[AS_SOURCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(AS_SOURCE) if before is None else os.environ.update({AS_SOURCE: before})
