"""A model's parameters, read off the tensors of a checkpoint."""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from ..models import Parameter
from .checkpoint import LazyTensor


def read_parameter(parameter: Parameter, tensor: LazyTensor) -> np.ndarray:
    """The parameter, float32 [*shape]. Raises UserError for a NaN or infinite weight."""
    return _finite(parameter.convert(_finite(tensor.read(), parameter)), parameter)


def _finite(array: np.ndarray, parameter: Parameter) -> np.ndarray:
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise UserError(
            f"The tensor {parameter.source} holds NaN or infinite values; the checkpoint is damaged, get it again."
        )
    return array
