"""A model's parameters, read off the tensors of a checkpoint, and work that takes them one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..models import Parameter
from .checkpoint import LazyTensor

THREADS = 4  # each holds a matrix in float32, some beside its stored form

Result = TypeVar("Result")


def read_parameter(parameter: Parameter, tensor: LazyTensor) -> np.ndarray:
    """The parameter, float32 [*shape]. Raises UserError for a NaN or infinite weight."""
    return _finite(parameter.convert(_finite(tensor.read(), parameter)), parameter)


def map_parameters(
    job: Callable[[Parameter], Result],
    parameters: Sequence[Parameter],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """The results of ``job`` in the order of ``parameters``, computed by a few threads. ``progress(done, total)`` is called
    after each; an exception from either ends the work."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    results = []
    try:
        for result in pool.map(job, parameters):
            results.append(result)
            progress(len(results), len(parameters))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def _finite(array: np.ndarray, parameter: Parameter) -> np.ndarray:
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise UserError(
            f"The tensor {parameter.source} holds NaN or infinite values; the checkpoint is damaged, get it again."
        )
    return array
