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

from ..errors import UserError
from ..models import ModelOptions, Parameter, model_module, resolve
from ..models.values import LAST_ROW
from ..quantization.schemes import Scheme
from ..weights.checkpoint import Checkpoint, LazyTensor
from ..weights.parameters import read_parameter
from .dump import Dump, Recipe, record
from .reference import header

DIVISOR = 8  # of the heads, as an epsilon of 64e-5 that is written into the package
SWITCHES = ("RWKV_JIT_ON", "RWKV_CUDA_ON")  # read when the package is imported


def dump_chatrwkv(
    checkpoint: Checkpoint, recipe: Recipe, scheme: Scheme | None = None, options: ModelOptions = ModelOptions()
) -> Dump:
    """With the weights rounded by ``scheme`` where one is given, and never with ``rescale_every``. Raises UserError for a checkpoint that the package cannot
    run, and as ``Recipe.check``; ImportError where the package is not installed."""
    config, _, _ = resolve(checkpoint, dataclasses.replace(options, rescale_every=0))
    if config.num_heads and config.head_size_divisor != DIVISOR:
        raise UserError(
            f"The rwkv package divides heads by {DIVISOR} and {checkpoint.name} by {config.head_size_divisor}; "
            "compare it with --reference instead."
        )
    recipe.check(config)
    model = _load(_rounded(checkpoint, scheme) if scheme else checkpoint)
    weights = {id(tensor): name.removesuffix(".weight") for name, tensor in model.w.items()}
    roles = [state.role for state in model_module(config).states(config)]
    states = [f"blocks.{layer}.state.{role}" for layer in range(config.num_hidden_layers) for role in roles]
    state = None

    def step(tokens: Sequence[int], _single: bool) -> dict[str, np.ndarray]:
        nonlocal state
        with Observer(weights) as observer:
            logits, state = model.forward(list(tokens), state)
        found = observer.found | {"logits": logits.numpy().copy()}
        rows = {name: array.reshape(1 if name in LAST_ROW else len(tokens), -1) for name, array in found.items()}
        return rows | {name: tensor.numpy().copy() for name, tensor in zip(states, state)}

    values = record(config, recipe, step)
    made_of = (checkpoint.name, checkpoint.sha256(), scheme.name if scheme else None)
    return Dump(header("rwkv", config, *made_of, np.float32, recipe), values)


def _rounded(checkpoint: Checkpoint, scheme: Scheme) -> Checkpoint:
    """The checkpoint with the matrices that an artifact in ``scheme`` stands for."""
    _, parameters, tensors = resolve(checkpoint)

    def of(p: Parameter) -> LazyTensor:
        tensor = tensors[p.source]

        def read() -> np.ndarray:
            return scheme.dequantize(p, scheme.quantize(p, read_parameter(p, tensor)))

        return dataclasses.replace(tensor, dtype="float32", read=read)

    matrices = {p.source: of(p) for p in parameters if p.role != "vector"}
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **matrices})


def _load(checkpoint: Checkpoint) -> Any:
    """The package's model of a checkpoint of any format: it reads a .pth, so it is given one."""
    os.environ.update(dict.fromkeys(SWITCHES, "0"))
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        arrays = {name: np.array(tensor.read(), np.float32) for name, tensor in checkpoint.tensors.items()}
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path.with_suffix(".pth"))
        return RWKV(model=str(path), strategy="cpu fp32", verbose=False)


class Observer(TorchFunctionMode):
    """While it is active, ``found`` gets every value that it recognises, by name; ``weights`` name the model's tensors by
    their ``id``."""

    def __init__(self, weights: Mapping[int, str]):
        super().__init__()
        self.weights = weights
        self.found: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {}
        self.alive: list[torch.Tensor] = []  # so that no other tensor gets their id
        self.rules = {
            "getitem": self._embedding,
            "matmul": self._product,
            "layer_norm": self._norm,
            "group_norm": self._norm,
            "sigmoid": self._sigmoid,
            "silu": self._silu,
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

    def _name(self, value: Any) -> tuple[str, str]:
        """Block half and role of a value that is known."""
        half, _, role = self.names.get(id(value), "").rpartition(".")
        return half, role

    def _embedding(self, result, table, *_) -> None:
        if self.weights.get(id(table)) == "emb":  # the package has applied ln0 to the table
            self._keep("blocks.0.ln0", result)

    def _product(self, result, x, matrix, *_) -> None:
        name = self.weights.get(id(matrix))
        if name is None:
            return
        half, _, role = name.rpartition(".")
        if role == "output" and self._name(x)[1] != "ln_x":
            self._keep(f"{half}.gated", x)
        elif role == "value" and half.endswith("ffn"):
            self._keep(f"{half}.k_squared", x)
        elif role in ("key", "value", "receptance", "gate"):
            self._keep(f"{half}.mixed_{role}", x)
        if role != "head":
            self._keep(name, result)

    def _norm(self, result, x, *_, weight=None, **__) -> None:
        name = self.weights.get(id(weight))
        if name is None:
            return
        if name.endswith("ln_x"):
            self._keep(name.replace("ln_x", "wkv"), x)
        self._keep(name, result)

    def _sigmoid(self, result, x) -> None:
        half, role = self._name(x)
        if role == "receptance":
            self._keep(f"{half}.receptance_sigmoid", result)

    def _silu(self, result, x, *_, **__) -> None:
        half, role = self._name(x)
        if role == "gate":
            self._keep(f"{half}.gate_silu", result)

    def _gate(self, result, left, right) -> None:
        half, role = self._name(left)
        if role == "receptance_sigmoid":
            self._keep(*((f"{half}.wkv", right) if half.endswith("att") else (f"{half}.gated", result)))

    def _residual(self, result, left, right, **_) -> None:
        half, role = self._name(right)
        if (half.endswith("att") and role == "output") or (half.endswith("ffn") and role == "gated"):
            self._keep(f"{half}.residual", result)
