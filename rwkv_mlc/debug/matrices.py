"""Known patterns of a wrong product, tried on the weights that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..models import Parameter
from ..quantization.schemes import FloatForm, GroupForm
from .weights import StoredWeights

if TYPE_CHECKING:
    from .hints import Case

READ = {  # the value: its matrix, what that multiplies, and what is done with the product
    "att.key": ("att.key", "att.mixed_key", None),
    "att.value": ("att.value", "att.mixed_value", None),
    "att.receptance": ("att.receptance", "att.mixed_receptance", None),
    "att.receptance_sigmoid": ("att.receptance", "att.mixed_receptance", "sigmoid"),
    "att.gate_silu": ("att.gate", "att.mixed_gate", "silu"),
    "ffn.k_squared": ("ffn.key", "ffn.mixed_key", "squared_relu"),
    "ffn.receptance_sigmoid": ("ffn.receptance", "ffn.mixed_receptance", "sigmoid"),
    "logits": ("head", "ln_out", None),
}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


ACTIVATIONS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda x: x,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
}


def matrix_hints(case: Case, weights: StoredWeights) -> Iterator[str]:
    if case.role not in READ:
        return
    matrix, source, activation = READ[case.role]
    x = case.beside(source)
    if x is None:
        return
    name = f"{case.value.removesuffix(case.role)}{matrix}.weight"
    guesses = _guesses(weights.by_source(name), weights)
    results = ((text, ACTIVATIONS[activation](x.astype(np.float64) @ weight.T)) for text, weight in guesses)
    yield from case.best((f"it is what {name} gives with {text}", result) for text, result in results)


def _guesses(parameter: Parameter, weights: StoredWeights) -> Iterator[tuple[str, np.ndarray]]:
    scheme = weights.scheme
    names, form = list(scheme.stored(parameter)), scheme.form(parameter.role)
    stored = [weights.stored[name] for name in names]

    def weight(*tensors: np.ndarray) -> np.ndarray:
        return scheme.dequantize(parameter, dict(zip(names, tensors)))

    if parameter.shape[0] == parameter.shape[1]:
        yield "the matrix transposed", weight(*stored).T
    if isinstance(form, FloatForm):
        return
    words, scales = stored
    groups = 0 if form.transposed else 1
    for shift, which in ((-1, "next"), (1, "previous")):
        yield f"the scales of the {which} group", weight(words, np.roll(scales, shift, groups))
    if form.bits == 4:
        low, four = np.uint32(0x0F0F0F0F), np.uint32(4)
        yield "the nibbles of each byte in the wrong order", weight((words & low) << four | words >> four & low, scales)
    yield "a zero point of 0", weight(words, scales) + form.max_int * _spread(parameter, form, scales)


def _spread(parameter: Parameter, form: GroupForm, scales: np.ndarray) -> np.ndarray:
    """The scale of every weight, [out, in]."""
    by_row = scales.T if form.transposed else scales
    return np.repeat(by_row.astype(np.float32), form.group, axis=1)[:, : parameter.shape[1]]
