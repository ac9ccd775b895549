"""The float64 reference in NumPy, of a checkpoint's weights or of those that an artifact stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import reference
from ..artifact import Artifact
from ..config import RWKVConfig
from ..engine.sequence import Tokens
from ..engine.templates import Template
from ..inspection import bits_per_weight
from ..models import Parameter, resolve
from ..tokenizer import load_tokenizer
from ..weights.checkpoint import Checkpoint
from .compiled import beginning
from .described import described
from .scorer import Read, Scorer

CHUNK = 256


@dataclass(frozen=True)
class ReferenceScorer(Scorer):
    config: RWKVConfig
    parameters: Mapping[str, np.ndarray]
    initial: Mapping[tuple[int, str], np.ndarray]

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, vocabulary: Path | None = None) -> ReferenceScorer:
        """Raises UserError for a checkpoint of no known generation, and where no vocabulary fits."""
        config, listed, tensors = resolve(checkpoint)
        parameters = {p.name: p.convert(tensors[p.source].read(), _widest(p)) for p in listed}
        return cls(
            **described(checkpoint, config, vocabulary),
            runner="reference",
            slots=1,
            chunk=CHUNK,
            rows=CHUNK,
            config=config,
            parameters=parameters,
            initial=reference.initial_state(config),
        )

    @classmethod
    def of_artifact(cls, artifact: Artifact) -> ReferenceScorer:
        """With the weights that it stores. Raises UserError for a damaged artifact."""
        settings, tokenizer = artifact.chat_config, load_tokenizer(artifact.tokenizer_files)
        initial = reference.initial_state(artifact.config)
        for name, array in artifact.initial_state().items():
            _, layer, role = name.split(".", 2)
            initial[int(layer), role] = array
        template = Template.of(settings.conv_template)
        return cls(
            name=artifact.name,
            runner="reference",
            tokenizer=tokenizer,
            vocab_size=artifact.config.vocab_size,
            begin=beginning(artifact),
            ends=tokenizer.end_ids.union(settings.eos_token_ids, template.stop_token_ids),
            template=template,
            quantization=artifact.scheme.name,
            bits_per_weight=bits_per_weight(artifact),
            slots=1,
            chunk=CHUNK,
            rows=CHUNK,
            config=artifact.config,
            parameters=artifact.dequantized_parameters(),
            initial=initial,
        )

    def start(self, texts: int) -> Read:
        states = [self.initial] * texts

        def read(parts: Mapping[int, Tokens], every: bool) -> np.ndarray:
            found = []
            for text, tokens in parts.items():
                logits, states[text] = reference.forward(self.config, self.parameters, tokens, states[text])
                found.append(logits if every else logits[-1:])
            return np.concatenate(found)

        return read


def _widest(parameter: Parameter) -> type:
    """Matrices stay in float32, which holds what checkpoints do: the products widen one at a time."""
    return np.float64 if parameter.role == "vector" else np.float32
