"""The families of targets, each a class that gives ``models.vocabulary.Ops`` its meaning on them."""

from __future__ import annotations

from .cpu import CPUOps
from .gpu import GPUOps
from .kernels import KernelOps

FAMILIES: dict[str, type[KernelOps]] = {"cpu": CPUOps, "gpu": GPUOps}
"""The operations of every family of targets, by ``GraphTarget.family``."""
