"""RWKV language models, compiled ahead of time for the device they run on."""

__version__ = "0.1.0"
