"""The families, each a class that gives ``models.vocabulary.Ops`` its meaning on a kind of device."""

from __future__ import annotations

from ...schema import Family
from .cpu import CPUOps
from .gpu import GPUOps
from .kernels import KernelOps
from .plain import PlainCPUOps, PlainGPUOps

FAMILIES: dict[Family, dict[str, type[KernelOps]]] = {
    "fused": {"cpu": CPUOps, "gpu": GPUOps},
    "plain": {"cpu": PlainCPUOps, "gpu": PlainGPUOps},
}
"""The operations of every family by the kind of device, ``GraphTarget.device``."""
