"""Artifacts and checkpoints as a model of lm-eval, EleutherAI's harness (``pip install lm-eval``).

    python -m rwkv_mlc.evaluation.harness --model rwkv_mlc --model_args artifact=DIST --tasks lambada_openai

is the command ``lm_eval`` with the model registered: lm-eval (0.4.13) finds models in itself and among those that were imported
before, and knows no entry points. Importing this module needs lm-eval and registers the model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from ..errors import UserError
from ..escaping import quoted
from .answers import answer
from .opening import open_scorer
from .scorer import Request, score

MOST_TOKENS = 256  # of an answer, where a task does not say


@register_model("rwkv_mlc")
class RwkvMlc(TemplateLM):
    """``artifact`` is an artifact's folder, or a checkpoint that ``runner`` runs, as ``open_scorer`` says. ``batch_size`` texts
    are read at a time, but as many as their states allow where it is "auto" or 1, which the harness says where nobody does.
    ``run_on`` is the engine's device: what the harness calls ``device`` is "cuda" where nobody says."""

    def __init__(
        self,
        artifact: str,
        runner: Any = None,
        run_on: str = "auto",
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """Raises UserError as ``open_scorer``, and for a batch size that is no positive number."""
        super().__init__()
        scorer = open_scorer(str(artifact), runner, device=run_on, threads=threads)
        if batch_size not in (None, "auto"):
            if not str(batch_size).isdecimal() or int(batch_size) < 1:
                raise UserError(f"batch_size must be a number of texts or auto, not {quoted(batch_size)}.")
            if int(batch_size) > 1:
                scorer = dataclasses.replace(scorer, slots=min(scorer.slots, int(batch_size)))
        self.scorer = scorer

    @property
    def eot_token_id(self) -> int:
        return self.scorer.begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.scorer.tokenizer.encode(string))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = (Request(context, continuation) for _, context, continuation in requests)
        return [
            (float(found.log_probabilities.sum()), bool(found.likeliest.all())) for found in score(self.scorer, asked)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Every text is read as one stream."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        found = score(self.scorer, (Request([self.scorer.begin], text) for text in texts if text))
        return [float(next(found).log_probabilities.sum()) if text else 0.0 for text in texts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest texts. Raises UserError for requests that are to be drawn."""
        texts: list[str] = []
        for stop, same in groupby(requests, key=lambda request: _stop_strings(request.args[1])):
            asked = list(same)
            prompts = [self.tok_encode(request.args[0]) or [self.scorer.begin] for request in asked]
            most = [int(request.args[1].get("max_gen_toks", MOST_TOKENS)) for request in asked]
            for found in answer(self.scorer, prompts, most, stop):
                texts.append(_before(self.scorer.tokenizer.decode(found.tokens), stop))
        return texts


def _stop_strings(settings: dict[str, Any]) -> tuple[str, ...]:
    if settings.get("do_sample") and settings.get("temperature", 1):
        raise UserError(
            "A task wants answers to be drawn; of this model the harness gets the likeliest: set do_sample=False."
        )
    until = settings.get("until") or ()
    return tuple(text for text in ([until] if isinstance(until, str) else until) if text)


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the ``stop`` strings."""
    return text[: min((at for end in stop if (at := text.find(end)) >= 0), default=len(text))]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")
