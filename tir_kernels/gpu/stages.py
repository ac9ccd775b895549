"""The tokens of a sequence, some of them in shared memory while the next ones are on their way there: by asynchronous copies
where the device has them, otherwise through registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm.script.ir_builder import tirx as T

from ..builder import span
from .tensor_core import call
from .threads import barrier, each, registers, shared, vector_of

COPIED = 4  # float32 in 16 bytes
MOST_TOKENS = {True: 8, False: 4}  # of a stage, with asynchronous copies and without
SHARED_BYTES = {True: 48 << 10, False: 16 << 10}


def tokens_of_a_stage(each_bytes: int, further_bytes: int, copies: bool) -> int:
    """As many as shared memory has room for."""
    room = SHARED_BYTES[copies] - further_bytes
    return next(n for n in (8, 4, 2, 1) if n <= MOST_TOKENS[copies] and n * each_bytes <= room)


def token_bytes(sources: int, extent: int, copies: bool) -> int:
    """Shared memory that ``Stages.staged`` takes for a token."""
    return (2 if copies else 1) * sources * extent * 4


class Stages:
    """The rows ``first`` to ``first + length`` of a sequence, ``tokens`` at a time, as a block of ``threads`` reads them;
    ``sequence`` and ``channel`` are (of how many, which) the thread runs."""

    def __init__(self, sequence: tuple, channel: tuple, first, length, tokens: int, thread, threads: int, copies: bool):
        self.sequence, self.channel = sequence, channel
        self.first, self.length, self.tokens = first, T.cast(length, "int32"), tokens
        self.thread, self.threads, self.copies = thread, threads, copies
        self.single = isinstance(length, int) and length <= tokens
        self.inputs: list[Staged] = []

    def staged(self, sources: Sequence, start, extent: int) -> Staged:
        """``extent`` channels of each of ``sources``, float32 [1, T, C], from ``start`` on."""
        self.inputs.append(Staged(self, sources, start, extent))
        return self.inputs[-1]

    @contextmanager
    def each(self) -> Iterator:
        """Run the body for every stage, whose number it is given, with its tokens in shared memory. All threads begin it
        together, and none may still read shared memory when another one leaves it."""
        self._begin(T.int32(0))
        with T.serial(0, self._stages) as stage:
            if self.copies:
                self._begin(stage + 1)
                call("async_wait", 1)
            else:
                for staged in self.inputs:
                    staged.put()
                if not self.single:
                    self._begin(stage + 1)
            barrier()
            yield stage

    @property
    def _stages(self):
        return (self.length + (self.tokens - 1)) // self.tokens

    def left(self, stage):
        """Tokens from a stage on."""
        return self.length - stage * self.tokens

    def row(self, stage, token):
        """Where a token of a stage lies."""
        return T.bind(self.first + T.cast(stage * self.tokens + token, "int64"))

    def each_token(self, stage, emit: Callable, turns: int = 1) -> None:
        """Run ``emit(stage, token, turn, inside)`` for the tokens of a stage, counted in it, of which ``turns`` take turns; the
        last ones may be past the end, not inside."""
        left = T.min(T.int32(self.tokens), self.left(stage))
        steps = (left + (turns - 1)) // turns
        with T.serial(0, steps) as step, T.sblock("wkv"):
            T.axis.spatial(*self.sequence)
            at, time = T.axis.reduce(self._stages, stage), T.axis.reduce(steps, step)
            T.axis.spatial(*self.channel)
            T.reads()
            T.writes()
            for turn in range(turns):
                token = T.bind(time * turns + turn)
                emit(at, token, turn, token < self.left(at))

    def put_out(self, stage, channels: int, emit: Callable) -> None:
        """Run ``emit(token, j, row)``, with all threads, for ``channels`` of every token of a stage."""

        def one(_, place) -> None:
            token, j = place // channels, place % channels
            with T.If(token < self.left(stage)), T.Then():
                emit(token, j, self.row(stage, token))

        each(self.tokens * channels, self.thread, self.threads, 1, one)

    def _begin(self, stage) -> None:
        for staged in self.inputs:
            staged.begin(stage)
        if self.copies:
            call("async_commit")


class Staged:
    """See ``Stages.staged``."""

    def __init__(self, stages: Stages, sources: Sequence, start, extent: int):
        self.stages, self.sources, self.start, self.extent = stages, sources, start, extent
        self.width = vector_of("float32", extent)
        self.places = 2 if stages.copies else 1
        self.held = shared((self.places, len(sources), stages.tokens, extent))
        steps = -(-stages.tokens * extent // (self.width * stages.threads))
        self.moving = None if stages.copies else registers((len(sources), steps, self.width))

    def at(self, stage, source: int, token, channels) -> tuple:
        """Where ``held`` has channels of a token."""
        return stage % self.places, source, token, channels

    def begin(self, stage) -> None:
        """Set out to bring the tokens of a stage."""
        stages = self.stages

        def bring(i, place) -> None:
            token, j = place // self.extent, place % self.extent
            inside, row = token < stages.left(stage), stages.row(stage, token)
            channels = span(self.start + j, self.width)
            if stages.copies:
                for number, source in enumerate(self.sources):
                    to = T.address_of(self.held[self.at(stage, number, token, j)])
                    call("async_copy", to, T.address_of(source[0, row, self.start + j]), inside)
                return
            with T.If(inside), T.Then():
                for number, source in enumerate(self.sources):
                    T.buffer_store(self.moving, source[0, row, channels], [number, i, span(0, self.width)])

        self._each(bring)

    def put(self) -> None:
        """Put what has come in registers where ``read`` finds it."""

        def put(i, place) -> None:
            token, j = place // self.extent, place % self.extent
            for number in range(len(self.sources)):
                values = self.moving[number, i, span(0, self.width)]
                T.buffer_store(self.held, values, [0, number, token, span(j, self.width)])

        self._each(put)

    def _each(self, emit: Callable) -> None:
        each(self.stages.tokens * self.extent, self.stages.thread, self.stages.threads, self.width, emit)
