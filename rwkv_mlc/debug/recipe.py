"""What a model is fed for a dump."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifact import Artifact
from ..config import RWKVConfig
from ..errors import UserError
from ..models import resolve
from ..tokenizer import END_OF_TEXT, find_vocabulary, load_tokenizer
from ..weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Recipe:
    """What is fed: ``tokens`` in prefills of up to ``chunk``, then ``decodes`` single tokens: the same again from the first
    on, so that they do not depend on what a model answers."""

    tokens: Sequence[int] = (1,) * 10
    decodes: int = 2
    chunk: int = 512

    @classmethod
    def of(
        cls,
        model: Artifact | Checkpoint,
        tokens: Sequence[int] | None = None,
        prompt: str | None = None,
        decodes: int = decodes,
        chunk: int | None = None,
    ) -> Recipe:
        """With the ids of ``prompt`` where there are no ``tokens``, and with an artifact's own chunk, where that is shorter.
        Raises UserError where a prompt needs a tokenizer that is not there."""
        if not tokens and prompt is not None:
            tokens = load_tokenizer(_vocabulary(model)).encode(prompt) or [END_OF_TEXT]
        if chunk is None:
            own = model.chat_config.prefill_chunk_size if isinstance(model, Artifact) else cls.chunk
            chunk = min(own, cls.chunk)
        return cls(tuple(tokens or cls.tokens), decodes, chunk)

    @property
    def decoded(self) -> list[int]:
        return [self.tokens[i % len(self.tokens)] for i in range(self.decodes)]

    def check(self, config: RWKVConfig) -> None:
        """Raises UserError for no tokens, or ids outside the vocabulary."""
        if not self.tokens or not 0 <= min(self.tokens) <= max(self.tokens) < config.vocab_size:
            found = f"{min(self.tokens)} to {max(self.tokens)}" if self.tokens else "none"
            raise UserError(f"A dump needs token ids between 0 and {config.vocab_size - 1}, found {found}.")
        if self.decodes < 0 or self.chunk < 1:
            raise UserError(
                f"A dump cannot have {self.decodes} decodes after chunks of {self.chunk} tokens; give at least 0 and 1."
            )


def _vocabulary(model: Artifact | Checkpoint) -> list[Path]:
    return model.tokenizer_files if isinstance(model, Artifact) else find_vocabulary(model, resolve(model)[0])
