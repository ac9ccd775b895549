"""A Hugging Face folder, through transformers in float32 on the CPU. Importing this module needs PyTorch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ..engine.sequence import Tokens
from ..errors import UserError
from ..escaping import shortened
from ..models import resolve
from ..weights.checkpoint import Checkpoint
from .described import described
from .scorer import Read, Scorer

CHUNK = 1 << 20  # whole texts: how a state is handed back is every model's own affair


@dataclass(frozen=True)
class TransformersScorer(Scorer):
    """What a text has read is read again with what comes next, as no two models hand back their states alike."""

    model: Any

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, vocabulary: Path | None = None, trust_remote_code: bool = False
    ) -> TransformersScorer:
        """Of the folder that a checkpoint was read from. ``trust_remote_code`` runs the Python code in it. Raises UserError
        for one that transformers does not load, and where no vocabulary fits."""
        fields = described(checkpoint, resolve(checkpoint)[0], vocabulary)
        if not Path(checkpoint.source).is_dir():
            raise UserError(
                f"transformers loads folders, and {checkpoint.source} is none; leave --with transformers out."
            )
        try:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.source, dtype=torch.float32, trust_remote_code=trust_remote_code, local_files_only=True
            ).eval()
        except (OSError, ValueError) as error:
            reason = shortened(str(error).partition("\n")[0], 300)
            raise UserError(f"transformers does not load {checkpoint.source}: {reason}") from None
        return cls(**fields, runner="transformers", slots=1, chunk=CHUNK, rows=CHUNK, model=model)

    def start(self, texts: int) -> Read:
        have: list[list[int]] = [[] for _ in range(texts)]

        @torch.no_grad()
        def read(parts: Mapping[int, Tokens], every: bool) -> np.ndarray:
            found = []
            for text, tokens in parts.items():
                have[text] += tokens
                logits = self.model(torch.tensor([have[text]]), use_cache=False).logits[0].float().numpy()
                found.append(logits[-len(tokens) :] if every else logits[-1:])
            return np.concatenate(found)

        return read
