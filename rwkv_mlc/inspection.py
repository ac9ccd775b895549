"""What a checkpoint or an artifact holds, and what quantization costs it, as plain data for ``rwkv-mlc inspect``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import Artifact, LibraryRecord
from .config import RWKVConfig
from .engine.compatibility import check_library, read_metadata
from .engine.devices import device_of, open_device
from .errors import UserError
from .models import ModelOptions, Parameter, generation_of, resolve
from .models.parameter import ParameterRole
from .quantization.schemes import FloatForm, Scheme
from .schema import LibraryMetadata
from .tokenizer import find_vocabulary, load_tokenizer
from .weights import open_checkpoint
from .weights.checkpoint import Checkpoint, LazyTensor
from .weights.ggml import FORMATS
from .weights.lora import merged
from .weights.parameters import map_parameters, read_parameter

BLOCKS = {"float64": (1, 8)} | {form.name: (form.block, form.block_bytes) for form in FORMATS.values()}
"""Elements and bytes of a block, by ``LazyTensor.dtype``."""

KEPT: dict[ParameterRole, str] = {
    "kept": "in trained models one of its inputs has millions of times the energy of the others, and enlarges errors as much",
    "low_rank": "thin ones, which few bits would harm more than make smaller",
    "table": "a token reads one row",
}
"""Why a scheme of few bits leaves matrices as floats, by their role."""

Progress = Callable[[int, int], None]


def checkpoint_summary(checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> dict[str, Any]:
    """Model, tokenizer, and parameters and bytes by group, as stored. Raises UserError for another checkpoint."""
    config, parameters, tensors = resolve(checkpoint, options)
    sources = {p.source: tensors[p.source] for p in parameters}
    sizes = {p: math.prod(sources[p.source].shape) for p in parameters}
    nbytes = {p: _stored_bytes(sources[p.source]) for p in parameters}
    return {
        "kind": "checkpoint",
        "name": checkpoint.name,
        "source": checkpoint.source,
        "format": checkpoint.format,
        "dtypes": sorted({tensor.dtype for tensor in sources.values()}),
        "files": [{"file": str(file), "bytes": file.stat().st_size} for file in checkpoint.files],
        "model": _model(config),
        "tokenizer": _tokenizer(lambda: find_vocabulary(checkpoint, config)),
        **_sizes(parameters, sizes, nbytes),
    }


def artifact_row(path: Path) -> dict[str, Any]:
    """What tells an artifact from the others in its folder; for a damaged one the ``problem``."""
    try:
        artifact = Artifact.open(path)
        config = artifact.config
        return {
            "path": str(path),
            "model": f"RWKV-{config.generation}, {config.num_hidden_layers} layers of {config.hidden_size}",
            "quantization": artifact.scheme.name,
            "bytes": sum(shard.nbytes for shard in artifact.shards),
            "libraries": list(artifact.libraries()),
            "problem": None,
        }
    except UserError as error:
        return {"path": str(path), "problem": str(error)}


def artifact_summary(artifact: Artifact) -> dict[str, Any]:
    """Model, tokenizer, scheme, parameters and bytes by group, what it was built from, and its libraries, each with
    whether this machine can run it. Raises UserError for a damaged artifact."""
    parameters, record = artifact.model_parameters, artifact.record
    artifact.parameters()
    sizes = {p: math.prod(p.shape) for p in parameters}
    nbytes = {p: stored_bytes(artifact.scheme, p) for p in parameters}
    return {
        "kind": "artifact",
        "name": artifact.name,
        "path": str(artifact.path),
        "model": _model(artifact.config),
        "tokenizer": _tokenizer(lambda: artifact.tokenizer_files),
        "template": artifact.chat_config.conv_template.name,
        "initial_state": state.to_dict() if (state := artifact.chat_config.initial_state) else None,
        "quantization": artifact.scheme.name,
        "kept": _kept(artifact),
        **_sizes(parameters, sizes, nbytes),
        "bits_per_weight": bits_per_weight(artifact),
        "source": {"source": record.source, "format": record.source_format, "sha256": record.source_sha256},
        "lora": record.lora.to_dict() if record.lora else None,
        "time": record.time,
        "versions": record.versions,
        "libraries": [_library(artifact, target, library) for target, library in record.libraries.items()],
    }


def _stored_bytes(tensor: LazyTensor) -> int:
    if tensor.packed:
        form = tensor.packed.form
        words, scales = form.shapes(tensor.shape)
        return 4 * math.prod(words) + np.dtype(form.scale_dtype).itemsize * math.prod(scales)
    elements, nbytes = BLOCKS[tensor.dtype]
    return math.prod(tensor.shape) * nbytes // elements


def artifact_errors(artifact: Artifact, source: str | None, progress: Progress) -> list[dict[str, Any]]:
    """What every quantized tensor of an artifact lost against the checkpoint ``source``; where None, against the one it
    was built from.

    Raises UserError when that is not there or has changed, and for a checkpoint of another shape."""
    record = artifact.record
    if source is None and not Path(record.source).exists():
        raise UserError(
            f"The errors are measured against {record.source}, which is not here; name the checkpoint: --errors PATH."
        )
    checkpoint = open_checkpoint(source or record.source)
    if record.lora:
        checkpoint = merged(checkpoint, Path(record.lora.file), record.lora.alpha)
    if source is None and checkpoint.sha256() != record.source_sha256:
        raise UserError(f"{record.source} has changed since {artifact.path} was built; build it again.")
    config, parameters, tensors = resolve(checkpoint, _options_of(artifact))
    if dataclasses.replace(config, context_length=artifact.config.context_length) != artifact.config:
        raise UserError(
            f"{checkpoint.source} is of another shape than {artifact.path}; name the checkpoint it was built from."
        )
    stored = artifact.parameters()

    def measure(parameter: Parameter) -> dict[str, Any]:
        array = read_parameter(parameter, tensors[parameter.source])
        return _error(artifact.scheme, parameter, array, stored)

    return map_parameters(measure, _quantized(parameters), progress)


def chat_memory(metadata: LibraryMetadata, chunk: int, thinks: bool = False) -> dict[str, int]:
    """Bytes that a chat takes at most of the device's memory, by what they are for: the ``parameters``, two ``states``, as a
    chat keeps the one before the last message, or three where a model ``thinks``, as later turns do not go on from its
    thoughts, and the largest ``call``, which reads ``chunk`` tokens. On a CPU the program itself comes on top: Python, TVM's
    runtime and the vocabulary. Raises UserError where the library does not say."""
    prefill, decode = (metadata.functions.get(name) for name in ("prefill", "decode"))
    if prefill is None or decode is None or prefill.memory is None or decode.memory is None:
        raise UserError("The library does not say what its calls allocate; build it again.")
    memory = {
        "parameters": metadata.parameter_bytes,
        "states": (3 if thinks else 2) * metadata.state_bytes,
        "call": prefill.allocated(T=chunk, B=1) + decode.allocated(),
    }
    return memory | {"total": sum(memory.values())}


def _options_of(artifact: Artifact) -> ModelOptions:
    """Those that give its parameters once more."""
    record = artifact.record
    return ModelOptions(
        head_size_divisor=record.head_size_divisor,
        rescale_every=record.rescale_every,
        float32=artifact.config.float32,
    )


def scheme_cost(checkpoint: Checkpoint, scheme: Scheme, progress: Progress) -> dict[str, Any]:
    """Bytes, bits per weight and errors of a checkpoint in a scheme; nothing is written.

    ``relative_rms`` is the root mean square of the tensors' own over all quantized weights. Raises UserError for
    weights that are not finite or that the scheme cannot hold."""
    _, parameters, tensors = resolve(checkpoint)

    def measure(parameter: Parameter) -> dict[str, Any]:
        array = read_parameter(parameter, tensors[parameter.source])
        return _error(scheme, parameter, array, scheme.quantize(parameter, array))

    errors = map_parameters(measure, _quantized(parameters), progress)
    nbytes = sum(stored_bytes(scheme, p) for p in parameters)
    weights = sum(math.prod(error["shape"]) for error in errors)
    squares = sum(math.prod(error["shape"]) * error["relative_rms"] ** 2 for error in errors)
    return {
        "quantization": scheme.name,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / sum(math.prod(p.shape) for p in parameters),
        "relative_rms": math.sqrt(squares / weights),
        "worst_group": max(error["worst_group"] for error in errors),
        "tensors": errors,
    }


def bits_per_weight(artifact: Artifact) -> float:
    """Of all parameters of an artifact, those that stay floats among them."""
    parameters = artifact.model_parameters
    return 8 * sum(stored_bytes(artifact.scheme, p) for p in parameters) / sum(math.prod(p.shape) for p in parameters)


def stored_bytes(scheme: Scheme, parameter: Parameter) -> int:
    """Bytes of a parameter in an artifact."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in scheme.stored(parameter).values())


def group_of(parameter: Parameter) -> str:
    """The part of a model that a parameter belongs to."""
    if parameter.role in ("embedding", "head"):
        return parameter.role
    if parameter.role == "vector":
        return "vectors"
    (room,) = {"attention", "feed_forward"} & set(parameter.name.split("."))
    return {"attention": "attention matrices", "feed_forward": "feed-forward matrices"}[room]


def _error(scheme: Scheme, parameter: Parameter, array: np.ndarray, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    error = dataclasses.asdict(scheme.error(parameter, array, stored))
    form = scheme.form(parameter.role)
    how = form.dtype if isinstance(form, FloatForm) else f"{form.bits} bits / {form.group}"
    return {"name": parameter.name, "shape": list(parameter.shape), "stored": how, **error}


def _quantized(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Those that a scheme may change."""
    return [p for p in parameters if p.role != "vector"]


def _kept(artifact: Artifact) -> list[dict[str, Any]]:
    """The matrices that the artifact holds as floats beside its quantized ones, by their role, and why."""
    if isinstance(artifact.scheme.matrix, FloatForm):
        return []
    stored, kept = artifact.tensors(), []
    for role, reason in KEPT.items():
        names = [p.name for p in artifact.model_parameters if p.role == role and p.name in stored]
        if names:
            kept.append({"role": role, "dtype": stored[names[0]].dtype, "reason": reason, "tensors": names})
    return kept


def _model(config: RWKVConfig) -> dict[str, Any]:
    states = generation_of(config).states(config)
    per_layer = sum(math.prod(state.shape) for state in states)
    return {
        **config.to_dict(),
        "num_heads": config.num_heads,
        "state_bytes": 4 * config.num_hidden_layers * per_layer,
    }


def _tokenizer(find: Callable[[], list[Path]]) -> dict[str, Any]:
    try:
        tokenizer = load_tokenizer(find())
    except UserError as error:
        return {"problem": str(error)}
    return {"kind": tokenizer.kind, "tokens": len(tokenizer.tokens), "file": str(tokenizer.files[0])}


def _sizes(parameters: list[Parameter], sizes: dict[Parameter, int], nbytes: dict[Parameter, int]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for p in parameters:
        group = groups.setdefault(group_of(p), {"name": group_of(p), "tensors": 0, "parameters": 0, "bytes": 0})
        group["tensors"] += 1
        group["parameters"] += sizes[p]
        group["bytes"] += nbytes[p]
    return {
        "groups": list(groups.values()),
        "parameters": sum(sizes.values()),
        "bytes": sum(nbytes.values()),
    }


def _library(artifact: Artifact, target: str, library: LibraryRecord) -> dict[str, Any]:
    problem = memory = None
    try:
        check_library(artifact.library(target), target)
        open_device(device_of(target))
        metadata = read_metadata(library.path)
        settings = artifact.chat_config
        thinks = settings.conv_template.think is not None
        memory = chat_memory(metadata, metadata.prefill_chunk(settings.prefill_chunk_size), thinks)
    except UserError as error:
        problem = str(error)
    return {
        "target": target,
        "file": library.path.name,
        "bytes": library.path.stat().st_size if library.path.is_file() else 0,
        "triple": library.triple,
        "cpu": library.target.get("mcpu"),
        "cpu_features": library.cpu_features,
        "family": library.family,
        "abi": library.abi,
        "prefill_activations": library.prefill_activations,
        "versions": library.versions,
        "time": library.time,
        "runs_here": problem is None,
        "problem": problem,
        "memory": memory,
    }
