"""Known patterns of a wrong product, tried on the weights that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ..models import Parameter
from ..models.values import Value
from ..quantization.schemes import FloatForm, GroupForm
from ..reference.layers import sigmoid
from .weights import StoredWeights

OPERATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": sigmoid,
    "SiLU": lambda x: x * sigmoid(x),
    "squared ReLU": lambda x: np.maximum(x, 0) ** 2,
}
"""What is done with a product alone, by ``Value.operation``."""


def matrix_guesses(
    value: Value, graph: Mapping[str, Value], right: Callable[[str], np.ndarray | None], weights: StoredWeights
) -> Iterator[tuple[str, np.ndarray]]:
    """What a product, or an activation of one, is with a matrix that is read wrongly: a sentence and a value. ``right``
    gives the value of a name that is right."""
    product = graph[value.inputs[0]] if value.operation in OPERATIONS else value
    if product.operation != "matrix product" or (x := right(product.inputs[0])) is None:
        return
    (name,) = product.parameters
    activation = OPERATIONS.get(value.operation, lambda product: product)
    for text, weight in _guesses(weights.by_source(name), weights):
        yield f"it is what {name} gives with {text}", activation(x.astype(np.float64) @ weight.T)


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
