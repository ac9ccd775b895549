"""A compiled artifact, through the engine's runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..artifact import Artifact
from ..engine.engine import Engine
from ..engine.sequence import Tokens
from ..inspection import bits_per_weight
from ..tokenizer import END_OF_TEXT
from .scorer import Read, Scorer

ROWS = 128  # of logits at a time: 34 MB for a World vocabulary
SLOTS, STATE_BYTES = 32, 256 << 20  # texts at a time, as far as their states take no more


@dataclass(frozen=True)
class CompiledScorer(Scorer):
    engine: Engine

    @classmethod
    def open(cls, path: Path, device: str = "auto", threads: int | None = None) -> CompiledScorer:
        """Raises UserError as ``Engine``."""
        engine = Engine(path, device, threads=threads)
        metadata = engine.runner.metadata
        return cls(
            name=engine.name,
            runner=metadata.target,
            tokenizer=engine.tokenizer,
            vocab_size=engine.config.vocab_size,
            begin=beginning(engine.artifact),
            ends=engine.end_ids,
            template=engine.template,
            quantization=engine.artifact.scheme.name,
            bits_per_weight=bits_per_weight(engine.artifact),
            slots=min(SLOTS, max(1, STATE_BYTES // metadata.state_bytes)),
            chunk=engine.prefill_chunk,
            rows=ROWS,
            engine=engine,
        )

    def start(self, texts: int) -> Read:
        runner = self.engine.runner
        state = runner.new_state(texts)

        def read(parts: Mapping[int, Tokens], every: bool) -> np.ndarray:
            single = not every and all(len(part) == 1 for part in parts.values())
            one_each = "decode" if len(parts) == 1 else "batch_decode"
            function = "score" if every else one_each if single else "prefill"
            return runner.run(function, list(parts.values()), state, list(parts))

        return read


def beginning(artifact: Artifact) -> int:
    """The token that begins a text of an artifact's model."""
    return artifact.chat_config.bos_token_id or END_OF_TEXT
