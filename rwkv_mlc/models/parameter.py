"""Descriptions that a generation's model file gives of its parameters and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import UserError
from ..escaping import listed_problems

ParameterRole = Literal["embedding", "table", "matrix", "kept", "head", "low_rank", "vector"]
Range = tuple[float, float]
Transform = Callable[[np.ndarray], np.ndarray]

NORMS = "norms_and_shifts"
"""``Parameter.part`` of what norms and token shifts read, which other kernels may do beside their own work."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model.

    ``name`` is the one written to the artifact (mlc_llm's style), ``source`` BlinkDL's name in the checkpoint.
    ``shape`` is the parameter's shape; ``source_shape`` the checkpoint's where ``transform`` changes it. ``transform`` maps
    the source array, in float64, to the parameter.

    ``role`` says what may happen to it: a quantization scheme has a form for each of ``embedding``, ``matrix``, ``head``
    and ``low_rank`` (one of two thin matrices in place of a large one); a ``kept`` matrix, of which few bits would leave too
    little, and a ``table``, of which a token reads one row, stay floats of the scheme's type; a ``vector`` (time_*, norms,
    bonus, decay) stays float32 always. ``sparse_input`` says of a matrix that what it multiplies is mostly zero.

    ``part`` names what a kernel does that reads it, for accounts of where time goes. ``drawn`` are the bounds between which
    random weights are drawn uniformly; a matrix has none, as its own shape tells them.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    role: ParameterRole
    part: str
    drawn: Range | None = None
    transform: Transform | None = None
    source_shape: tuple[int, ...] | None = None
    sparse_input: bool = False

    def convert(self, array: np.ndarray, dtype: type = np.float32) -> np.ndarray:
        """The parameter, [*shape] in ``dtype``, from the checkpoint's array."""
        if self.transform is not None:
            array = self.transform(array.astype(np.float64))
        return np.ascontiguousarray(array, dtype).reshape(self.shape)


@dataclass(frozen=True)
class StateTensor:
    """One role of the recurrent state of every layer: float32 [*shape] per sequence, filled with ``initial``."""

    role: str
    shape: tuple[int, ...]
    initial: float = 0.0


def check_tensors(parameters: Iterable[Parameter], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one UserError that lists every missing, surplus and misshapen tensor of a checkpoint.

    Axes of length 1 do not count: a mix may be [C] or [1, 1, C]."""
    parameters = list(parameters)

    def core(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n for n in shape if n != 1)

    problems = [f"missing {p.source}" for p in parameters if p.source not in shapes]
    problems += [f"unknown {name}" for name in sorted(set(shapes) - {p.source for p in parameters})]
    for p in parameters:
        expected, found = p.source_shape or p.shape, shapes.get(p.source)
        if found is not None and core(found) != core(expected):
            problems.append(f"{p.source} is {list(found)}, expected {list(expected)}")
    if problems:
        count = "1 tensor is" if len(problems) == 1 else f"{len(problems)} tensors are"
        raise UserError(f"The checkpoint does not fit its generation, {count} wrong: {listed_problems(problems)}")
