"""Dumps of the ``rwkv`` package (ChatRWKV), the generation's own implementation, in float32 on the CPU.

PyTorch shows every operation that runs. A value is known by what it meets: what a product multiplies with
``blocks.0.att.key.weight`` is ``att.mixed_key``, and what comes out is ``att.key``. Importing this module needs PyTorch.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..config import RWKVConfig
from ..errors import UserError
from ..models import ModelOptions, PackageHooks, Parameter, generation_of, resolve
from ..models.values import LAST_ROW, Value
from ..quantization.schemes import FloatForm, Scheme
from ..weights.checkpoint import Checkpoint, LazyTensor
from ..weights.parameters import read_parameter
from .dump import Dump, record
from .recipe import Recipe
from .reference import header

INSTEAD = "compare with the reference instead (dump --reference, or debug without --with)"
SWITCHES = ("RWKV_JIT_ON", "RWKV_CUDA_ON")  # read when the package is imported


def dump_chatrwkv(
    checkpoint: Checkpoint, recipe: Recipe, scheme: Scheme | None = None, options: ModelOptions = ModelOptions()
) -> Dump:
    """With the weights rounded by ``scheme`` where one is given, and never with ``rescale_every``. Raises UserError for
    a checkpoint that the package cannot run, and as ``Recipe.check``; ImportError where the package is not
    installed."""
    config, checkpoint, hooks = supported(checkpoint, options)
    generation = generation_of(config)
    recipe.check(config)
    model = load_model(_rounded(checkpoint, scheme) if scheme else checkpoint, hooks)
    weights = {id(tensor): name for name, tensor in model.w.items()}
    states = [f"blocks.{layer}.state.{role}" for layer in range(config.num_hidden_layers) for role in hooks.states]
    state = None

    def step(tokens: Sequence[int], _single: bool) -> dict[str, np.ndarray]:
        nonlocal state
        with Observer(weights, generation.values(config)) as observer:
            logits, state = model.forward(list(tokens), state)
        found = observer.found | {"logits": logits.numpy().copy()}
        rows = {name: array.reshape(1 if name in LAST_ROW else len(tokens), -1) for name, array in found.items()}
        return rows | {name: tensor.numpy().copy() for name, tensor in zip(states, state)}

    values = record(config, recipe, step)
    made_of = (checkpoint.name, checkpoint.sha256(), scheme.name if scheme else None)
    return Dump(header("rwkv", config, *made_of, np.float32, recipe), values)


def supported(
    checkpoint: Checkpoint, options: ModelOptions = ModelOptions()
) -> tuple[RWKVConfig, Checkpoint, PackageHooks]:
    """The config without ``rescale_every``, the checkpoint with the tensors that the generation makes of it, whose names tell
    the package what the values are, and how it runs them. Raises UserError for a checkpoint that the package cannot run."""
    config, _, tensors = resolve(checkpoint, dataclasses.replace(options, rescale_every=0))
    hooks = generation_of(config).package
    if hooks is None:
        raise UserError(f"The rwkv package shows nothing of what it computes of RWKV-{config.generation}; {INSTEAD}.")
    if hooks.head_size_divisor not in (None, config.head_size_divisor):
        raise UserError(
            f"The rwkv package divides heads by {hooks.head_size_divisor} and {checkpoint.name} by "
            f"{config.head_size_divisor}; {INSTEAD}."
        )
    if config.layer_norm_epsilon != config.norm_epsilon("ln_out"):
        raise UserError(f"The rwkv package knows no layer norms of epsilon {config.layer_norm_epsilon}; {INSTEAD}.")
    if config.attention_size != config.hidden_size:
        raise UserError(
            f"The rwkv package reads no prompts of a time mixing of {config.attention_size} channels in a model of "
            f"{config.hidden_size}; {INSTEAD}."
        )
    if config.num_heads and config.num_hidden_layers == 1:
        raise UserError(f"The rwkv package finds no heads in a model of one layer; {INSTEAD}.")
    return config, dataclasses.replace(checkpoint, tensors=tensors), hooks


def _rounded(checkpoint: Checkpoint, scheme: Scheme) -> Checkpoint:
    """The checkpoint with the matrices that an artifact in ``scheme`` stands for, not halved."""
    _, parameters, tensors = resolve(checkpoint, ModelOptions(rescale_every=0))

    def of(p: Parameter) -> LazyTensor:
        tensor = tensors[p.source]

        def read() -> np.ndarray:
            if isinstance(form := scheme.form(p.role), FloatForm):
                return tensor.read().astype(
                    form.dtype
                )  # of the checkpoint's layout, which is not always the parameter's
            return scheme.dequantize(p, scheme.quantize(p, read_parameter(p, tensor)))

        return dataclasses.replace(tensor, dtype="float32", read=read)

    matrices = {p.source: of(p) for p in parameters if p.role != "vector"}
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **matrices})


def load_model(checkpoint: Checkpoint, hooks: PackageHooks) -> Any:
    """The package's model of a checkpoint of any format: it reads a .pth, so it is given one."""
    os.environ.update(dict.fromkeys(SWITCHES, "0") | hooks.environment)
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        arrays = {name: np.array(tensor.read(), np.float32) for name, tensor in checkpoint.tensors.items()}
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path.with_suffix(".pth"))
        return RWKV(model=str(path), strategy="cpu fp32", verbose=False)


class Observer(TorchFunctionMode):
    """While it is active, ``found`` gets every value that it recognizes, by name; ``weights`` name the model's tensors by
    their ``id``, and ``graph`` tells what is computed from what."""

    def __init__(self, weights: Mapping[int, str], graph: Mapping[str, Value]):
        super().__init__()
        self.weights = weights
        self.found: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {}
        self.alive: list[torch.Tensor] = []  # so that no other tensor gets their id
        self.by_parameter = {parameter: value for value in graph.values() for parameter in value.parameters[:1]}
        self.by_inputs = {(value.operation, value.inputs): value for value in graph.values()}
        self.gates = {value.inputs[0]: value for value in graph.values() if value.operation == "gate"}
        self.sums = {value.inputs[1]: value for value in graph.values() if value.operation == "sum"}
        self.rules = {
            "getitem": self._embedding,
            "matmul": self._product,
            "layer_norm": self._norm,
            "group_norm": self._norm,
            "sigmoid": self._activation,
            "silu": self._activation,
            "tanh": self._activation,
            "mul": self._gate,
            "add": self._residual,
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if rule := self.rules.get(function.__name__.strip("_")):
            rule(result, *args, **(kwargs or {}))
        return result

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        self.found.setdefault(name, tensor.numpy().copy())
        self.names[id(tensor)] = name
        self.alive.append(tensor)

    def _reader(self, weight: Any) -> Value | None:
        """The value that is computed with a weight of the model."""
        return self.by_parameter.get(self.weights.get(id(weight), ""))

    def _embedding(self, result, table, *_) -> None:
        if self.weights.get(id(table)) == "emb.weight":  # the package has applied ln0 to the table
            self._keep("blocks.0.ln0", result)

    def _product(self, result, x, matrix, *_) -> None:
        value = self._reader(matrix)
        if value is None:
            return
        if id(x) not in self.names:
            self._keep(value.inputs[0], x)
        if value.name != "logits":
            self._keep(value.name, result)

    def _norm(self, result, x, *_, weight=None, **__) -> None:
        value = self._reader(weight)
        if value is None:
            return
        if value.operation == "group norm":
            self._keep(value.inputs[0], x)
        self._keep(value.name, result)

    def _activation(self, result, x, *_, **__) -> None:
        inputs = (self.names.get(id(x), ""),)
        for operation in ("sigmoid", "SiLU", "tanh"):
            if value := self.by_inputs.get((operation, inputs)):
                self._keep(value.name, result)

    def _gate(self, result, left, right) -> None:
        value = self.gates.get(self.names.get(id(left), ""))
        if value is None:
            return
        if id(right) not in self.names:
            self._keep(value.inputs[1], right)
        self._keep(value.name, result)

    def _residual(self, result, left, right, **_) -> None:
        added = self.names.get(id(right), "")
        if value := self.sums.get(added):
            self._keep(value.name, result)
