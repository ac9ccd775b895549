"""Looking into compiled libraries of every target, and checking all that this machine can check of them."""

from __future__ import annotations

from .verify import verify

__all__ = ["verify"]
