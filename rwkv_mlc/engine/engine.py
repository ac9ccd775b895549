"""An artifact made ready to run: text in, text out, with the recurrent state in the caller's hand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..artifact import Artifact
from ..errors import UserError
from ..tokenizer import END_OF_TEXT, load_tokenizer
from .compatibility import check_library
from .devices import check_name, choose_device, open_device, target_of
from .runner import Runner, State
from .sampler import Sampler, SamplingParams
from .state_file import load_state, save_state
from .stream import TextStream
from .templates import Template

FEW_TOKENS = 8  # up to here one step a token is faster than a prefill, which expands all weights first
SCORE_CHUNK = 64  # positions whose logits are computed at once: 17 MB for a World vocabulary


@dataclass
class Stats:
    """Tokens read and written, and the seconds that took."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

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


@dataclass
class Answer:
    """One generation while it runs and after it.

    Iterating yields text as it becomes certain. ``prompt`` are the ids read before it, ``tokens`` those generated,
    ``fed`` those of them that the state has read; ``finish_reason`` is "stop" (end of text or a stop string), "length" or
    None (not finished); ``seed`` is the one drawn from."""

    engine: Engine
    prompt: Sequence[int]
    logits: np.ndarray
    state: State
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def __post_init__(self):
        self._sampler = Sampler(self.params, self.engine.valid_ids)
        self._stream = TextStream(self.params.stop)
        self._end_ids = {END_OF_TEXT, *self.engine.template.stop_token_ids}
        self.seed = self._sampler.seed

    def __iter__(self) -> Iterator[str]:
        """Raises UserError when the model's logits are not finite."""
        while self.finish_reason is None:
            token = self._sampler.sample(self.logits)
            self.tokens.append(token)
            ended = token in self._end_ids
            text = "" if ended else self._stream.push(self.engine.tokenizer.token_bytes(token))
            if ended or self._stream.stopped:
                self.finish_reason = "stop"
            elif len(self.tokens) >= self.params.max_tokens:
                self.finish_reason = "length"
            else:
                self.logits = self.engine.decode(token, self.state)
                self.fed.append(token)
            yield from self._release(text)
        yield from self._release(self._stream.finish())

    def _release(self, text: str) -> Iterator[str]:
        self.text += text
        if text:
            yield text

    @property
    def released(self) -> bytes:
        """Bytes of ``text``, before the stop string."""
        return bytes(self._stream.released)


class Engine:
    """A model with its tokenizer and prompt template.

        engine = Engine("dist/rwkv-5-village-q4f16_1")
        print(engine.generate("Tom the cat", max_tokens=20).text)

    ``artifact``, ``library``, ``config``, ``tokenizer``, ``template`` and ``defaults`` (sampling) describe the model;
    ``stats`` adds up over all calls. A ``State`` belongs to the caller: calls update the one they are given in place.
    """

    def __init__(self, path: Path | str, device: str = "auto", progress: Callable[[int, int], None] | None = None):
        """Load ``dist/<model>-<quantization>`` for ``device``: "cpu", "cuda", "metal", "vulkan", "opencl", or one of
        several such as "cuda:1". "auto" takes the best that this machine has and the artifact a library for.

        ``progress(read, total)`` is called after each chunk of a prompt; an exception from it ends the reading. Raises
        UserError for a device that is not there, a damaged artifact, one without a library for the device, and a library
        that this CPU or this version of TVM cannot run."""
        check_name(device)
        self.progress = progress
        self.artifact = Artifact.open(path)
        self.tokenizer = load_tokenizer(self.artifact.tokenizer_files)
        device = choose_device(device, self.artifact.libraries())
        self.library = self.artifact.library(target_of(device))
        check_library(self.library)
        self.runner = Runner(self.library.path, self.artifact.tensors(), open_device(device))
        config = self.artifact.config
        compiled = dataclasses.replace(self.runner.config, context_length=config.context_length, float32=config.float32)
        if compiled != config:
            raise UserError(f"{self.library.path} was compiled for another model than its parameters; build it again.")
        self.config = self.artifact.config
        self.valid_ids = self.tokenizer.valid_ids(self.config.vocab_size)
        settings = self.artifact.chat_config
        self.template = Template.of(settings.conv_template)
        self.prefill_chunk = settings.prefill_chunk_size
        self.defaults = SamplingParams(**settings.sampling)
        self.stats = Stats()

    @property
    def name(self) -> str:
        return self.artifact.name

    def new_state(self) -> State:
        """The state before the first token."""
        return self.runner.new_state()

    def prefill(self, tokens: Sequence[int], state: State) -> np.ndarray:
        """Read tokens, in chunks; returns the logits after the last, float32 [V]. Raises UserError for no tokens or an id
        outside the vocabulary."""
        if not len(tokens):
            raise UserError("There is nothing to read: give at least one token.")
        began = time.perf_counter()
        for start in range(0, len(tokens), self.prefill_chunk):
            logits = self._read(tokens[start : start + self.prefill_chunk], state)
            if self.progress:
                self.progress(min(start + self.prefill_chunk, len(tokens)), len(tokens))
        self.stats.prefill_tokens += len(tokens)
        self.stats.prefill_seconds += time.perf_counter() - began
        return logits[0]

    def _read(self, tokens: Sequence[int], state: State) -> np.ndarray:
        if len(tokens) > FEW_TOKENS:
            return self.runner.run("prefill", [tokens], state)
        for token in tokens:
            logits = self.runner.run("decode", [[token]], state)
        return logits

    def decode(self, token: int, state: State) -> np.ndarray:
        """Read one token; returns the logits after it, float32 [V]."""
        began = time.perf_counter()
        logits = self.runner.run("decode", [[token]], state)[0]
        self.stats.decode_tokens += 1
        self.stats.decode_seconds += time.perf_counter() - began
        return logits

    def score(self, tokens: Sequence[int], state: State) -> Iterator[np.ndarray]:
        """Read tokens; yields the logits at every position in order, float32 [up to SCORE_CHUNK, V] at a time."""
        for start in range(0, len(tokens), SCORE_CHUNK):
            yield self.runner.run("score", [tokens[start : start + SCORE_CHUNK]], state)

    def stream(
        self,
        prompt: str | bytes | Sequence[int],
        params: SamplingParams | None = None,
        state: State | None = None,
        **changes,
    ) -> Answer:
        """Read a prompt and return the running ``Answer`` to iterate over.

        ``params`` (the artifact's defaults where None) with ``changes`` applied, such as ``temperature=0``; ``state``
        goes on from an earlier call. The end-of-text token stands for an empty prompt, as in training."""
        params = dataclasses.replace(params or self.defaults, **changes)
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, (str, bytes)) else prompt
        tokens = tokens if len(tokens) else [END_OF_TEXT]
        state = self.new_state() if state is None else state
        return Answer(self, tokens, self.prefill(tokens, state), state, params)

    def generate(
        self,
        prompt: str | bytes | Sequence[int],
        params: SamplingParams | None = None,
        state: State | None = None,
        **changes,
    ) -> Answer:
        """As ``stream``, run to its end."""
        answer = self.stream(prompt, params, state, **changes)
        for _ in answer:
            pass
        return answer

    def save_state(self, state: State, path: Path | str) -> None:
        """Write a state with the model's identity beside it. Raises UserError when the file cannot be written."""
        save_state(path, self.artifact, self.runner.state_names(), state.arrays())

    def load_state(self, path: Path | str) -> State:
        """Raises UserError for a file that holds no state, or that of another model."""
        template = self.new_state()
        shapes = [tuple(tensor.shape) for tensor in template.tensors]
        return self.runner.state_from(load_state(path, self.artifact, self.runner.state_names(), shapes))
