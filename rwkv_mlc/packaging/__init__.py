"""An artifact as one program that needs nothing of the machine it runs on."""

from .executable import Packaged, package
from .systems import SYSTEMS

__all__ = ["SYSTEMS", "Packaged", "package"]
