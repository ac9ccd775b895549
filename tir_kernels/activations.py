"""What may be applied to each output of a product, on vectors of any width; ``exp(x, width)`` is the device's own."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from .builder import constant


def identity(x, width: int, exp: Callable):
    return x


def sigmoid(x, width: int, exp: Callable):
    return constant(1.0, width) / (constant(1.0, width) + exp(constant(0.0, width) - x, width))


def silu(x, width: int, exp: Callable):
    x = T.bind(x)
    return x * sigmoid(x, width, exp)


def squared_relu(x, width: int, exp: Callable):
    positive = T.bind(T.max(x, constant(0.0, width)))
    return positive * positive


def tanh(x, width: int, exp: Callable):
    one, two = constant(1.0, width), constant(2.0, width)
    return two / (one + exp(constant(0.0, width) - two * x, width)) - one


def exp_minus_exp(x, width: int, exp: Callable):
    """exp(-exp(x)), a decay of RWKV-6."""
    return exp(constant(0.0, width) - exp(x, width), width)


def bounded_decay(x, width: int, exp: Callable):
    """exp(-exp(-1/2) sigmoid(x)), a decay of RWKV-7, which is above 0.545."""
    return exp(constant(-math.exp(-0.5), width) * sigmoid(x, width, exp), width)


ACTIVATIONS = {
    None: identity,
    "sigmoid": sigmoid,
    "silu": silu,
    "squared_relu": squared_relu,
    "tanh": tanh,
    "exp_minus_exp": exp_minus_exp,
    "bounded_decay": bounded_decay,
}
