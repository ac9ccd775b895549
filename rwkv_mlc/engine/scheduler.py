"""Which sequences a call of the library moves: many are read and written together, each as it would be alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from ..errors import UserError
from .choice import Chooser
from .sampler import Counts
from .sequence import Reading, Sequence
from .state import Ending, Logits
from .state_pool import StatePool
from .stats import Stats
from .tvm_runtime import synchronize

FEW_TOKENS = 8  # up to here one step a token is faster than a prefill, which expands all weights first


class Scheduler:
    """Runs the sequences of a pool, a call of the library at every ``step``.

    A sequence with more than ``FEW_TOKENS`` pending ids reads a chunk of them with ``prefill``, which takes up to
    ``prefill_chunk`` ids of several sequences at once; the others read one id each with ``batch_decode``, or with
    ``decode``, whose kernels are made for it, where there is one. Steps of the two kinds take turns where both are wanted.

    ``running`` holds the slot of each sequence that has one; those in ``waiting`` get theirs in the order in which they came.
    A slot of the caller's holds the prompt and the text when its sequence has left it, which may be some steps after the
    sequence was finished: its last token is read, and what it has read of a stop string is undone.

    An exception ends the sequences that it concerns, with "error", and leaves ``step``; the next step goes on with the
    others."""

    def __init__(self, pool: StatePool, choose: Chooser, prefill_chunk: int, stats: Stats | None = None):
        self.pool, self.choose, self.prefill_chunk, self.stats = pool, choose, prefill_chunk, stats or Stats()
        self.running: dict[Reading, int] = {}
        self.waiting: deque[Reading] = deque()
        self._allocated: set[int] = set()
        self._news: list[tuple[Reading, str]] = []
        self._prefilled = False

    @property
    def sequences(self) -> list[Reading]:
        """All that run or wait."""
        return [*self.running, *self.waiting]

    def add(self, sequence: Reading, slot: int | None = None) -> None:
        """Take in a sequence; it goes on from what ``slot`` of the pool holds, which stays the caller's, or begins in one that
        it has from the next step at which one is free until its end.

        Raises UserError for ids outside the vocabulary, and for a slot in which another sequence runs."""
        self.pool.runner.check_tokens(sequence.pending)
        if slot is None:
            self.waiting.append(sequence)
            return
        if slot in self.running.values():
            raise UserError(f"Another sequence runs in the state slot {slot}.")
        self.running[sequence] = slot

    def remove(self, sequence: Reading) -> None:
        """Let go of a sequence before its end, whether it runs or waits; one that is finished is gone already."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.running:
            self._leave(sequence)

    def close(self, sequence: Sequence) -> None:
        """Have a running sequence write no more, and its slot read exactly its prompt, its text and what closes that, with the
        next steps. Raises UserError where the vocabulary cannot spell the end of it."""
        slot, state = self.running[sequence], self.pool.state
        if not sequence.closed and (earlier := sequence.close()):
            (earlier.state or self.pool.fresh).copy_slot(0, state, slot)
            ending = state.last.get(slot)
            sequence.last = ending.logits if ending else None
        if not sequence.pending:
            self._leave(sequence)

    def step(self) -> list[tuple[Reading, str]]:
        """Choose the next token of every sequence that has nothing pending, then call the library once.

        Returns the sequences of which more text became certain, with that text, and those that are finished; a sequence with a
        ``Thought`` and more occurs twice. Raises UserError
        where the logits of a sequence are not finite, and where none runs and those that wait can get no slot."""
        self._go_on()
        while self.waiting and self.pool.free_slots:
            self._admit(self.waiting.popleft())
        if self.running:
            self._call()
        elif self.waiting:
            raise UserError("No sequence runs and no state slot is free for one that waits; free a slot of the pool.")
        news, self._news = self._news, []
        return news

    def _admit(self, sequence: Reading) -> None:
        self.running[sequence] = slot = self.pool.allocate()
        self._allocated.add(slot)
        if isinstance(sequence, Sequence):
            sequence.keeps = False

    def _go_on(self) -> None:
        """Finish what is read, and choose the next token of all others that have nothing pending."""
        answers: list[Sequence] = []
        for reading in [sequence for sequence in self.running if not sequence.pending]:
            if not isinstance(reading, Sequence):
                reading.finish("read")
                self._news.append((reading, ""))
                self._leave(reading)
            elif reading.closed:
                self._leave(reading)
            else:
                answers.append(reading)
        if not answers:
            return
        began = time.perf_counter()
        try:
            logits = [answer.last for answer in answers if answer.last]
            tokens = self.choose([answer.sampler for answer in answers], logits)
        except BaseException:
            self._fail(answers)
            raise
        self.stats.add_choice(time.perf_counter() - began)
        faults = [token for token in tokens if isinstance(token, UserError)]
        for answer, token in zip(answers, tokens, strict=True):
            if isinstance(token, UserError):
                self._fail([answer])
                continue
            pieces = answer.take(token) or ([""] if answer.finish_reason else [])
            self._news += [(answer, piece) for piece in pieces]
            if answer.finish_reason:
                self._end(answer)
        if faults:
            raise faults[0]

    def _end(self, answer: Sequence) -> None:
        if not answer.keeps:
            self._leave(answer)
            return
        try:
            self.close(answer)
        except BaseException:
            self._fail([answer])
            raise

    def _call(self) -> None:
        function, parts = self._next_call()
        try:
            began = time.perf_counter()
            slots = [self.running[sequence] for sequence in parts]
            for sequence, slot in zip(parts, slots):
                if isinstance(sequence, Sequence) and sequence.keeps:
                    sequence.remember(self.pool.state, slot)
            logits = self.pool.runner.call(function, list(parts.values()), self.pool.state, slots)
            prompts = sum(len(part) for sequence, part in parts.items() if not sequence.writes)
            if prompts:  # what answers wait for is counted when their tokens are chosen
                synchronize(self.pool.runner.device)
            seconds = time.perf_counter() - began
            self.stats.add(prompts, sum(map(len, parts.values())) - prompts, seconds)
            for row, (sequence, part) in enumerate(parts.items()):
                sequence.advance(len(part), Logits(logits, row))
                self.pool.state.last[slots[row]] = Ending(Logits(logits, row))
        except BaseException:
            self._fail(parts)
            raise

    def _next_call(self) -> tuple[str, dict[Reading, list[int]]]:
        """The function to call, and the ids that each of its sequences reads."""
        many: list[Reading] = []
        single: list[Reading] = []
        for sequence in self.running:
            (many if min(len(sequence.readable), self.prefill_chunk) > FEW_TOKENS else single).append(sequence)
        self._prefilled = bool(many) and not (single and self._prefilled)
        if not self._prefilled:
            return "decode" if len(single) == 1 else "batch_decode", {s: s.pending[:1] for s in single}
        parts, room = {}, self.prefill_chunk
        for sequence in many:
            part = sequence.readable[:room]
            if len(part) > FEW_TOKENS:
                parts[sequence] = part
                room -= len(part)
        return "prefill", parts

    def _fail(self, sequences: Iterable[Reading]) -> None:
        for sequence in sequences:
            sequence.finish_reason = "error"
            self._news.append((sequence, ""))
            self._leave(sequence)

    def _leave(self, sequence: Reading) -> None:
        slot = self.running.pop(sequence)
        if slot in self._allocated:
            self._allocated.remove(slot)
            self.pool.free(slot)
        elif ending := self.pool.state.last.get(slot):
            sequence.last = ending.logits.alone()
            counts = sequence.counts if isinstance(sequence, Sequence) and sequence.closed else Counts()
            self.pool.state.last[slot] = Ending(sequence.last, counts)
