"""An artifact made ready to run: text in, text out, with the recurrent state in the caller's hand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..errors import UserError
from ..tokenizer import END_OF_TEXT, load_tokenizer
from .choice import Chooser
from .compatibility import check_library
from .devices import check_name, choose_device, open_device, target_of
from .integers import integers
from .runner import Runner
from .sampler import Counts, SamplingParams
from .scheduler import Scheduler
from .sequence import Reading, Sequence, Tokens, nothing
from .state import Ending, Logits, State
from .state_file import SavedState, load_state, save_state
from .state_pool import StatePool
from .stats import Stats
from .templates import Template
from .thoughts import ThinkingTurn
from .tvm_runtime import tensor

SCORE_CHUNK = 64  # positions whose logits are computed at once: 17 MB for a World vocabulary


class Answer(Sequence):
    """A sequence alone in a state, while it runs and after it.

    Iterating yields text as it becomes certain, and goes on where an earlier iteration stopped; an exception ends it. Pieces of
    ``reasoning``, which a chat tells from ``text``, are ``Thought``, a kind of str. When the last piece comes, a state of the
    caller's has read exactly the prompt and the text, and in a chat what later turns have of both. Where an answer is left
    before its end, ``settle`` does that, and nothing more is written."""

    def __init__(
        self,
        engine: Engine,
        prompt: str | bytes | Tokens,
        params: SamplingParams,
        state: State | None,
        closing: Callable[[bytes], bytes] = nothing,
        thinking: ThinkingTurn | None = None,
    ):
        self.engine, self._state = engine, engine.new_state() if state is None else state
        tokens = engine.encode(prompt, self._state)
        ending = None if len(tokens) else self._state.last[0]
        counts = ending.counts if ending else Counts()
        rules = engine.tokenizer, engine.valid_ids, engine.end_ids
        super().__init__(tokens, params, *rules, closing, keeps=state is not None, counts=counts, thinking=thinking)
        if ending:
            self.last = ending.logits
        else:
            engine.read(self, self._state)

    def __iter__(self) -> Iterator[str]:
        """Raises UserError when the model's logits are not finite."""
        scheduler = self.engine.alone(
            self, self._state
        )  # not kept: it has the answer, which then outlived its last user
        while self.finish_reason is None and not self.closed:
            pieces = [text for _, text in scheduler.step() if text]
            if self.finish_reason and self.keeps:
                self.settle()
            yield from pieces

    @property
    def state(self) -> State:
        """After the prompt and the text, exactly; who asks for it before the end of an answer ends it."""
        self.settle()
        return self._state

    def settle(self) -> None:
        """Write no more, and have the state read exactly the prompt, the text and what closes it."""
        scheduler = self.engine.alone(self, self._state)
        scheduler.close(self)
        while scheduler.running:
            scheduler.step()


class Engine:
    """A model with its tokenizer and prompt template.

        engine = Engine("dist/rwkv-7-village-q4f16_1")
        print(engine.generate("Tom the cat", max_tokens=20).text)

    ``artifact``, ``library``, ``config``, ``tokenizer``, ``template`` and ``defaults`` (sampling) describe the model;
    ``stats`` adds up over all calls. A ``State`` belongs to the caller: calls update the one they are given in place.
    """

    def __init__(
        self,
        path: Path | str,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
        threads: int | None = None,
    ):
        """Load ``dist/<model>-<quantization>`` for ``device``: "cpu", "cuda", "metal", "vulkan", "opencl", or one of
        several such as "cuda:1". "auto" takes the best that this machine has and the artifact a library for.

        ``progress(read, total)`` is called after each chunk of a prompt; an exception from it ends the reading. ``threads``
        run the kernels on a CPU, in all engines of the process; where not given, as many as ``start_threads`` says. Raises
        UserError for a device that is not there, a damaged artifact, one without a library for the device, a library that
        this CPU or this version of TVM cannot run, and a number of threads that cannot be."""
        check_name(device)
        self.progress = progress
        self.artifact = Artifact.open(path)
        self.tokenizer = load_tokenizer(self.artifact.tokenizer_files)
        device = choose_device(device, self.artifact.libraries())
        target = target_of(device)
        self.library = self.artifact.library(target)
        check_library(self.library, target)
        settings = self.artifact.chat_config
        stored = self.artifact.stored_tensors()
        self.runner = Runner(
            self.library.path,
            stored,
            open_device(device),
            settings.prefill_chunk_size,
            threads,
            self.artifact.initial_state(),
        )
        self.prefill_chunk = self.runner.prefill_chunk
        config = self.artifact.config
        compiled = dataclasses.replace(self.runner.config, context_length=config.context_length, float32=config.float32)
        if compiled != config:
            raise UserError(f"{self.library.path} was compiled for another model than its parameters; build it again.")
        self.config = self.artifact.config
        self.template = Template.of(settings.conv_template)
        if foreign := [token for token in self.end_ids if token >= self.config.vocab_size]:
            raise UserError(
                f"The chat configuration of {self.artifact.path} ends answers with token {foreign[0]}, but the model has "
                f"{self.config.vocab_size} tokens; correct eos_token_id or stop_token_ids in it."
            )
        self.valid_ids = self.tokenizer.valid_ids(self.config.vocab_size)
        self.valid_ids[list(self.end_ids)] = True
        self.choose = Chooser(self.runner, self.valid_ids)
        self.defaults = SamplingParams(**settings.sampling)
        self.stats = Stats()

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the vocabulary's, and those of the model's and the template's configuration."""
        settings = self.artifact.chat_config
        return self.tokenizer.end_ids.union(settings.eos_token_ids, self.template.stop_token_ids)

    def new_state(self) -> State:
        """The state before the first token: the one that the artifact was built with (``build --state``), else the model's
        own."""
        return self.runner.new_state()

    def prefill(self, tokens: Tokens, state: State) -> np.ndarray:
        """Read tokens, in chunks; returns the logits after the last, float32 [V]. Raises UserError for no tokens or an id
        outside the vocabulary."""
        reading = Reading(tokens)
        self.read(reading, state)
        return reading.logits

    def alone(self, sequence: Reading, state: State) -> Scheduler:
        """A scheduler that has one sequence, in a state of the caller's."""
        scheduler = Scheduler(StatePool(self.runner, state), self.choose, self.prefill_chunk, self.stats)
        scheduler.add(sequence, slot=0)
        return scheduler

    def read(self, sequence: Reading, state: State) -> None:
        """Have a state read what is pending of a sequence. Raises UserError as ``prefill``."""
        if not sequence.pending:
            raise UserError("There is nothing to read: give at least one token.")
        scheduler = self.alone(sequence, state)
        total = sequence.read + len(sequence.pending)
        while sequence.pending:
            scheduler.step()
            if self.progress and (sequence.read % self.prefill_chunk == 0 or not sequence.pending):
                self.progress(sequence.read, total)

    def decode(self, token: int, state: State) -> np.ndarray:
        """Read one token; returns the logits after it, float32 [V]."""
        began = time.perf_counter()
        logits = Logits(self.runner.call("decode", [[token]], state), 0)
        state.last[0] = Ending(logits)
        array = logits.array()
        self.stats.add(0, 1, time.perf_counter() - began)
        return array

    def score(self, tokens: Tokens, state: State) -> Iterator[np.ndarray]:
        """Read tokens; yields the logits at every position in order, float32 [up to SCORE_CHUNK, V] at a time."""
        tokens = integers(tokens, "Token ids")
        for start in range(0, len(tokens), SCORE_CHUNK):
            logits = self.runner.run("score", [tokens[start : start + SCORE_CHUNK]], state)
            state.last[0] = Ending(self._logits(logits[-1]))
            yield logits

    def encode(self, prompt: str | bytes | Tokens, state: State | None = None) -> Tokens:
        """The ids of a prompt. The token that begins a text, for RWKV's own models the end of text, stands for an empty one, as
        in training; where ``state`` has read something, an empty one goes on from there and has no ids.

        Raises UserError for text that the vocabulary cannot spell, and for an empty prompt after a state without its logits."""
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, (str, bytes)) else integers(prompt, "Token ids")
        if len(tokens):
            return tokens
        if state is None or 0 not in state.last:
            return [self.artifact.chat_config.bos_token_id or END_OF_TEXT]
        if state.last[0] is None:
            raise UserError(
                "This state came without the logits that an empty prompt goes on from, as those that earlier versions saved; "
                "give a prompt of some text, or save the state again with this version."
            )
        return []

    def scheduler(self, slots: int) -> Scheduler:
        """Runs up to ``slots`` sequences at a time, each in a state of its own; more wait their turn."""
        return Scheduler(StatePool.of_slots(self.runner, slots), self.choose, self.prefill_chunk, self.stats)

    def sequence(self, prompt: str | bytes | Tokens, params: SamplingParams | None = None, **changes: Any) -> Sequence:
        """A prompt and its answer for a scheduler; arguments as for ``stream``."""
        params = dataclasses.replace(params or self.defaults, **changes)
        return Sequence(self.encode(prompt), params, self.tokenizer, self.valid_ids, self.end_ids)

    def turn(
        self, message: str, params: SamplingParams | None = None, think: str | None = None, **changes: Any
    ) -> Sequence:
        """A message of a chat and its answer for a scheduler, as in a ``Chat``: with the template around both, its stop strings
        among ``params`` (``chat_params`` where None), and thoughts apart from the text, ``think`` being their mode. A slot
        of the caller's has read what later turns have of it when it has left the scheduler; the system prompt is the
        caller's to be read before. Raises UserError for a mode that the template has not."""
        template, mode = self.template, self.template.think_mode(think)
        params = dataclasses.replace(params, **changes) if params else self.chat_params(**changes)
        tokens, rules = self.encode(template.user_turn(message, mode)), (self.tokenizer, self.valid_ids, self.end_ids)
        return Sequence(tokens, params, *rules, template.after_answer, thinking=template.thinking_turn(message, mode))

    def chat_params(self, **settings: Any) -> SamplingParams:
        """The model's defaults with ``settings``; the template's stop strings come before those of ``settings``. Raises
        UserError for a value outside its range."""
        stop = dict.fromkeys((*self.template.stop_str, *settings.get("stop", ())))
        return dataclasses.replace(self.defaults, **{**settings, "stop": tuple(stop)})

    def stream(
        self,
        prompt: str | bytes | Tokens,
        params: SamplingParams | None = None,
        state: State | None = None,
        **changes: Any,
    ) -> Answer:
        """Read a prompt and return the running ``Answer`` to iterate over.

        ``params`` (the artifact's defaults where None) with ``changes`` applied, such as ``temperature=0``. A ``state``
        goes on from an earlier call, and after the answer has read exactly the prompt and the text: an empty prompt goes on
        with the next token."""
        params = dataclasses.replace(params or self.defaults, **changes)
        return Answer(self, prompt, params, state)

    def generate(
        self,
        prompt: str | bytes | Tokens,
        params: SamplingParams | None = None,
        state: State | None = None,
        **changes: Any,
    ) -> Answer:
        """Run ``stream`` to its end and return the answer. Raises what ``stream`` raises."""
        answer = self.stream(prompt, params, state, **changes)
        for _ in answer:
            pass
        return answer

    def save_state(self, state: State, path: Path | str) -> None:
        """Write a state and what comes after it, with the model's identity beside them. Raises UserError when the file cannot
        be written."""
        arrays = dict(zip(self.runner.state_names(), state.arrays(), strict=True))
        ending = state.last.get(0)
        length = state.lengths.get(0, 0)
        saved = SavedState(arrays, length=length)
        if ending:
            saved = SavedState(arrays, ending.logits.array(), ending.counts, length)
        save_state(path, self.artifact, saved)

    def load_state(self, path: Path | str) -> State:
        """Raises UserError for a file that holds no state, or that of another model."""
        shapes = {spec.name: (1, *spec.shape) for spec in self.runner.metadata.states}
        saved = load_state(path, self.artifact, shapes, self.config.vocab_size)
        state = self.runner.state_from(saved.arrays.values())
        state.last[0], state.lengths[0] = None, saved.length
        if saved.logits is not None:
            state.last[0] = Ending(self._logits(saved.logits), saved.counts)
        return state

    def _logits(self, array: np.ndarray) -> Logits:
        """A copy of float32 [V] on the device."""
        return Logits(tensor(array[None, None], self.runner.device), 0)
