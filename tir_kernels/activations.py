"""What may be applied to each output of a product, on vectors of any width; ``exp(x, width)`` is the device's own."""

from __future__ import annotations

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


ACTIVATIONS = {None: identity, "sigmoid": sigmoid, "silu": silu, "squared_relu": squared_relu}
