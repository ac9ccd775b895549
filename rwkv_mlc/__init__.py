"""RWKV language models, compiled ahead of time for the device they run on.

from rwkv_mlc import Engine, build

build("configs/demo/rwkv-5-village")
engine = Engine("dist/rwkv-5-village-q4f16_1")
for text in engine.stream("Once upon a time", temperature=0):
    print(text, end="")
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes 30 ms to import, in which Ctrl-C would be a traceback

__version__ = "0.1.0"
__all__ = ["BuildOptions", "Chat", "Engine", "SamplingParams", "Thought", "UserError", "build"]

if TYPE_CHECKING:
    from typing import Any

    from .building import BuildOptions, build
    from .engine.chat import Chat
    from .engine.engine import Engine
    from .engine.sampler import SamplingParams
    from .engine.thoughts import Thought
    from .errors import UserError

_HOMES = {
    "BuildOptions": "building",
    "Chat": "engine.chat",
    "Engine": "engine.engine",
    "SamplingParams": "engine.sampler",
    "Thought": "engine.thoughts",
    "UserError": "errors",
    "build": "building",
}


def __getattr__(name: str) -> Any:
    """Import on first use: converting a checkpoint needs no runtime, and `rwkv-mlc --help` should not wait for one."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
