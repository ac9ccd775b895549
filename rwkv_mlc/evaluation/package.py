"""The ``rwkv`` package (ChatRWKV), in float32 on the CPU. Importing this module needs PyTorch and the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..debug.chatrwkv import load_model, supported
from ..engine.sequence import Tokens
from ..weights.checkpoint import Checkpoint
from .described import described
from .scorer import Read, Scorer

CHUNK = 256  # of its prompts and of its logits


@dataclass(frozen=True)
class PackageScorer(Scorer):
    model: Any

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, vocabulary: Path | None = None) -> PackageScorer:
        """Raises UserError for a checkpoint that the package cannot run, and where no vocabulary fits."""
        config, checkpoint, hooks = supported(checkpoint)
        fields = described(checkpoint, config, vocabulary)
        model = load_model(checkpoint, hooks)
        return cls(**fields, runner="rwkv", slots=1, chunk=CHUNK, rows=CHUNK, model=model)

    def start(self, texts: int) -> Read:
        states: list[Any] = [None] * texts

        @torch.no_grad()
        def read(parts: Mapping[int, Tokens], every: bool) -> np.ndarray:
            found = []
            for text, tokens in parts.items():
                logits, states[text] = self.model.forward(list(tokens), states[text], full_output=every)
                found.append(logits.float().numpy().reshape(-1, self.vocab_size))
            return np.concatenate(found)

        return read
