"""The vocabulary in which a generation's graph is written, one class a family of targets.

Every family has the same methods; values are Relax expressions, activations [1, T, C] with the tokens of all sequences of a
call one after the other, float32 but for what matrices read on GPUs (``gpu.GPUOps``):

    embedding(tokens, table)                                -> [1, T, C]
    layer_norm(x, (weight, bias))                           -> [1, T, C]
    norm_shift_mix(x, (weight, bias), mixes, state)         -> a mixed input by target, for ``linears``
    linears([(mixed input, matrix, activation), ...])       -> one [1, T, N] a matrix
    linear(x, matrix, gate=None, residual=None)             -> [1, T, N]
    recurrence(inputs, states, role)                        -> [1, T, C]
    group_norm(x, (weight, bias), groups, epsilon, gate=None) -> [1, T, C]
    halve(x)                                                -> [1, T, C]
    last_rows(x)                                            -> [1, B, C]

A state is named by layer and role (``state.StateRef``); what an operation makes of it is there for the next call.
"""

from __future__ import annotations

from .cpu import CPUOps
from .gpu import GPUOps
from .kernels import KernelOps

FAMILIES: dict[str, type[KernelOps]] = {"cpu": CPUOps, "gpu": GPUOps}
"""The operations of every family of targets, by ``GraphTarget.family``."""
