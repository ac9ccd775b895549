"""Conversion of a checkpoint into the quantized shards of an artifact, one tensor at a time."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artifact import PARAMS, BuildRecord
from ..artifact.shards import ShardWriter, read_index, verify
from ..config import RWKVConfig
from ..errors import UserError
from ..models import ModelOptions, Parameter, resolve
from ..quantization.schemes import Scheme
from ..weights.checkpoint import Checkpoint
from ..weights.parameters import read_parameter
from .source import Source

MEMORY_BUDGET = 1 << 30

Stored = dict[str, np.ndarray]
Progress = Callable[[int, int, str, int], None]


@dataclass(frozen=True)
class Conversion:
    """What ``convert_weights`` has written: stored tensors, shards and bytes; ``parameters`` counts weights."""

    config: RWKVConfig
    tensors: int
    shards: int
    nbytes: int
    parameters: int


def matching_parameters(folder: Path, source: Source, scheme: Scheme) -> bool:
    """Whether an artifact in ``folder`` already holds this checkpoint's parameters in this scheme, undamaged."""
    try:
        record = BuildRecord.read(folder)
        verify(folder / PARAMS, read_index(folder / PARAMS))
    except UserError:
        return False
    return record.params_match(source.sha256, source.config, scheme)


def write_parameters(
    source: Source, scheme: Scheme, name: str, folder: Path, progress: Progress | None = None
) -> Conversion:
    """Write the shards and a build record into ``folder``. Raises UserError for a NaN or infinite weight."""
    conversion = convert_weights(source.checkpoint, scheme, folder / PARAMS, source.options, progress=progress)
    BuildRecord.of(name, source.checkpoint, source.sha256, source.config, scheme).write(folder)
    return conversion


def convert_weights(
    checkpoint: Checkpoint,
    scheme: Scheme,
    params_dir: Path,
    options: ModelOptions = ModelOptions(),
    *,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Conversion:
    """Quantize every parameter of a checkpoint and write the shards and their index into ``params_dir``.

    ``progress(i, n, name, nbytes)`` is called after each of the ``n`` stored tensors, ``i`` from 1. Raises UserError
    for a checkpoint of no known generation, for tensors that do not fit it, and for a NaN or infinite weight."""
    config, parameters, tensors = resolve(checkpoint, options)
    total = sum(len(scheme.stored(parameter)) for parameter in parameters)
    params_dir.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(params_dir)

    def quantize(parameter: Parameter) -> Stored:
        tensor = tensors[parameter.source]
        if tensor.packed and tensor.packed.form == scheme.form(parameter.role):
            return scheme.take_over(parameter, *tensor.packed.read())
        return scheme.quantize(parameter, read_parameter(parameter, tensor))

    pool = ThreadPoolExecutor(threads or os.cpu_count())
    count = 0
    try:
        for stored in _in_order(pool, quantize, parameters):
            for name, array in stored.items():
                writer.add(name, array)
                count += 1
                if progress is not None:
                    progress(count, total, name, array.nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
    weights = sum(math.prod(parameter.shape) for parameter in parameters)
    writer.finish(weights)
    return Conversion(config, total, len(writer.shards), writer.nbytes, weights)


def _in_order(pool: Executor, job: Callable[[Parameter], Stored], parameters: list[Parameter]) -> Iterator[Stored]:
    """The results of ``job`` in the order of ``parameters``, computed ahead as far as ``MEMORY_BUDGET`` holds the
    float32 tensors whose results have not been taken; one larger than that is computed alone."""
    pending: deque[tuple[int, Future[Stored]]] = deque()
    held = 0
    for parameter in parameters:
        nbytes = 4 * math.prod(parameter.shape)
        while pending and held + nbytes > MEMORY_BUDGET:
            held -= pending[0][0]
            yield pending.popleft()[1].result()
        pending.append((nbytes, pool.submit(job, parameter)))
        held += nbytes
    while pending:
        yield pending.popleft()[1].result()
