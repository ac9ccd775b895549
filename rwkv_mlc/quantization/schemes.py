"""Quantization schemes: how a weight of each role is stored, under mlc_llm's names.

``qAfB_N``: A bits for a weight, B for what stays a float, N the layout: 0 for transposed matrices, 1 for the
plain layout, 2 for the plain layout with embedding and head left as floats. A new scheme is an entry in ``SCHEMES``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .group import GroupForm, cast_finite, row_blocks

if TYPE_CHECKING:
    from ..models.parameter import Parameter, ParameterRole


@dataclass(frozen=True)
class FloatForm:
    """A parameter stored as it is, in ``dtype``."""

    dtype: str


Form = FloatForm | GroupForm


@dataclass(frozen=True)
class QuantizationError:
    """What a stored tensor lost: errors are root mean squares as parts of the tensor's own root mean square.

    ``relative_rms`` is that of the whole tensor, ``worst_group`` that of its worst group (a row, where the form has no
    groups), which starts at ``worst_row``, ``worst_column`` of the matrix [out, in]."""

    relative_rms: float
    worst_group: float
    worst_row: int
    worst_column: int


@dataclass(frozen=True)
class Scheme:
    """How every role is stored; vectors (time_*, norms, bonus, decay) are float32 in every scheme."""

    name: str
    matrix: Form
    embedding: Form
    head: Form
    low_rank: Form

    @property
    def float_dtype(self) -> str:
        """The dtype of what stays a float in matrices: weights or their scales."""
        return self.matrix.dtype if isinstance(self.matrix, FloatForm) else self.matrix.scale_dtype

    def form(self, role: ParameterRole) -> Form:
        forms = {"matrix": self.matrix, "embedding": self.embedding, "head": self.head, "low_rank": self.low_rank}
        kept = FloatForm(self.float_dtype)
        return {**forms, "kept": kept, "table": kept, "vector": FloatForm("float32")}[role]

    def stored(self, parameter: Parameter) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, dtype) of every stored tensor by name: the parameter itself, or ``.q_weight`` and ``.q_scale``."""
        form = self.form(parameter.role)
        if isinstance(form, FloatForm):
            return {parameter.name: (parameter.shape, form.dtype)}
        weight, scale = form.shapes(parameter.shape)
        weight_name, scale_name = _group_names(parameter)
        return {weight_name: (weight, "uint32"), scale_name: (scale, form.scale_dtype)}

    def quantize(self, parameter: Parameter, array: np.ndarray) -> dict[str, np.ndarray]:
        """The stored tensors of a parameter, float32 ``array`` of its shape.

        Raises UserError for a value that the scheme's float type cannot hold."""
        form = self.form(parameter.role)
        try:
            if isinstance(form, FloatForm):
                if array.dtype == form.dtype:
                    return {parameter.name: np.ascontiguousarray(array)}
                return {parameter.name: cast_finite(array, np.dtype(form.dtype))}
            return dict(zip(_group_names(parameter), form.quantize(array)))
        except OverflowError as error:
            raise UserError(f"{parameter.source} holds {error}; use q0f32 or q4f32_1 instead of {self.name}.") from None

    def take_over(self, parameter: Parameter, q_weight: np.ndarray, q_scale: np.ndarray) -> dict[str, np.ndarray]:
        """The stored tensors of a parameter that is quantized in its form already. Raises UserError for a NaN or infinite
        scale."""
        if not np.isfinite(q_scale).all():
            raise UserError(
                f"The scales of {parameter.source} are NaN or infinite; the parameters are damaged, get them again."
            )
        return dict(zip(_group_names(parameter), (q_weight, q_scale)))

    def dequantize(self, parameter: Parameter, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """The float32 parameter, [*shape], that its stored tensors stand for."""
        form = self.form(parameter.role)
        if isinstance(form, FloatForm):
            return stored[parameter.name].astype(np.float32)
        weight, scale = (stored[name] for name in _group_names(parameter))
        return form.dequantize(weight, scale, parameter.shape)

    def error(self, parameter: Parameter, array: np.ndarray, stored: Mapping[str, np.ndarray]) -> QuantizationError:
        """What the stored tensors of a matrix lost against its float32 ``array`` [out, in]."""
        form = self.form(parameter.role)
        columns = array.shape[1]
        group = form.group if isinstance(form, GroupForm) else columns
        starts = np.arange(0, columns, group)
        sizes = np.minimum(columns - starts, group)
        lost, total, worst, worst_at = 0.0, 0.0, 0.0, (0, 0)
        for rows in row_blocks(array.shape):
            block = array[rows].astype(np.float64)
            if isinstance(form, GroupForm):
                weight, scale = (stored[name] for name in _group_names(parameter))
                approximation = form.dequantize_rows(weight, scale, rows, columns)
            else:
                approximation = stored[parameter.name][rows]
            sums = np.add.reduceat((block - approximation) ** 2, starts, axis=1)
            lost, total = lost + sums.sum(), total + (block**2).sum()
            row, column = np.unravel_index(np.argmax(sums / sizes), sums.shape)
            if sums[row, column] / sizes[column] > worst:
                worst = sums[row, column] / sizes[column]
                worst_at = (rows.start + int(row), int(starts[column]))
        mean = total / array.size or 1.0
        return QuantizationError(math.sqrt(lost / array.size / mean), math.sqrt(worst / mean), *worst_at)


def _group_names(parameter: Parameter) -> tuple[str, str]:
    stem = parameter.name.removesuffix(".weight")
    return f"{stem}.q_weight", f"{stem}.q_scale"


def _uniform(name: str, form: Form) -> Scheme:
    return _scheme(name, form, embedding=form, head=form)


def _scheme(name: str, matrix: Form, embedding: Form, head: Form) -> Scheme:
    """With low-rank pairs, of which four bits would leave too little, as floats."""
    dtype = matrix.dtype if isinstance(matrix, FloatForm) else matrix.scale_dtype
    return Scheme(name, matrix, embedding, head, low_rank=FloatForm(dtype))


_Q4F16 = GroupForm(4, 32, "float16")
_Q4F16_TRANSPOSED = GroupForm(4, 32, "float16", transposed=True)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _uniform("q0f32", FloatForm("float32")),
        _uniform("q0f16", FloatForm("float16")),
        _uniform("q3f16_1", GroupForm(3, 40, "float16")),
        _scheme("q4f16_0", _Q4F16_TRANSPOSED, embedding=_Q4F16, head=_Q4F16_TRANSPOSED),
        _uniform("q4f16_1", _Q4F16),
        _scheme("q4f16_2", _Q4F16, embedding=FloatForm("float16"), head=FloatForm("float16")),
        _uniform("q4f32_1", GroupForm(4, 32, "float32")),
        _uniform("q8f16_1", GroupForm(8, 32, "float16")),
    )
}
DEFAULT_SCHEME = "q4f16_1"


def get_scheme(name: str) -> Scheme:
    """The scheme of this name. Raises UserError that lists the names and suggests the nearest."""
    if name not in SCHEMES:
        raise UserError(
            f"Unknown quantization {name!r}; did you mean {_near(name.lower())}? Valid are {', '.join(SCHEMES)}."
        )
    return SCHEMES[name]


def _near(name: str) -> str:
    """Of what begins so the default, or else the first; where nothing does, what resembles it most."""
    begun = [scheme for scheme in SCHEMES if scheme.startswith(name)]
    return DEFAULT_SCHEME if DEFAULT_SCHEME in begun else [*begun, *difflib.get_close_matches(name, SCHEMES, 1, 0.0)][0]
