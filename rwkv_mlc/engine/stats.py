"""How fast an engine reads and writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """Tokens read and written, and the seconds that took; those of writing include choosing, ``choice_seconds``."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    choice_seconds: float = 0.0

    def add(self, prefill_tokens: int, decode_tokens: int, seconds: float) -> None:
        """Count a call that read so many tokens of prompts and of answers; each took its part of the time."""
        part = seconds / (prefill_tokens + decode_tokens)
        self.prefill_tokens += prefill_tokens
        self.prefill_seconds += prefill_tokens * part
        self.decode_tokens += decode_tokens
        self.decode_seconds += decode_tokens * part

    def add_choice(self, seconds: float) -> None:
        """Count what choosing tokens from logits took."""
        self.decode_seconds += seconds
        self.choice_seconds += seconds

    @property
    def prefill_rate(self) -> float:
        """Tokens a second, 0 before the first."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second, 0 before the first."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def __str__(self) -> str:
        return f"prefill: {self.prefill_rate:.1f} tok/s, decode: {self.decode_rate:.1f} tok/s"
