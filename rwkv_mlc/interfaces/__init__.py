"""What a library offers its caller, one file an interface: its functions, their arguments, and how state reaches kernels."""

from __future__ import annotations

from .interface import Interface
from .mlc import Mlc
from .native import Native

__all__ = ["INTERFACES", "Interface"]

INTERFACES: dict[str, Interface] = {interface.name: interface for interface in (Native(), Mlc())}
"""By the name that a library's metadata gives."""
