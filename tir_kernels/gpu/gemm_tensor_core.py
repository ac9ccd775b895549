"""Matrix products of many tokens on NVIDIA's tensor cores: float16 factors, float32 sums.

The factors of a block lie in shared memory as float16, ``depth`` inputs of each at a time; while one such chunk is multiplied,
the next ones are on their way there. Weights of groups come as they are stored, and the thread that asked for a group
expands it, one chunk ahead. There is one barrier a chunk, before the last step of its product: from then on nothing of the
chunk is read, so that another takes its place, and the first step of the next is fetched while the last one is multiplied.

A row of a chunk is ``depth`` / 8 pieces of 16 bytes. Which of its places a piece takes depends on the row, so that neither
the eight rows that ``load_matrices`` reads at once nor what eight threads write meet in a bank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, size, span
from ..product import Matrix, Operands, block_starts, check_planes, operands
from ..rows import RowFloat, RowGroup, Rows
from .product import plane_of
from .tensor_core import GROUP, LEFT, PIECE, RIGHT, STEP, WARP, WORDS, call, multiply_add, pair, permute
from .threads import barrier, choose, exp, grid, narrow, registers, shared, vector_of

THREADS = 128
EXPANDED = 2  # chunks of expanded weights in shared memory


@dataclass(frozen=True)
class Shape:
    """What a block works on: it has ``tokens`` by ``rows`` of outputs, of which each warp has ``warp_tokens`` by ``warp_rows``,
    and room in shared memory for ``stages`` chunks of ``depth`` inputs."""

    tokens: int
    rows: int
    warp_tokens: int
    warp_rows: int
    depth: int
    stages: int

    @property
    def pieces(self) -> int:
        """How many pieces a row of a chunk has."""
        return self.depth // PIECE

    @property
    def ahead(self) -> int:
        """How many chunks are on their way where none of the stages is free."""
        return self.stages - 1

    def place(self, row, piece):
        """Where in its row of a chunk the first word of a piece lies."""
        return (piece ^ row * self.pieces // PIECE % self.pieces) * WORDS

    def words(self, rows: int) -> int:
        """How many words so many rows of a chunk take."""
        return rows * self.pieces * WORDS


# Arithmetic bound: a warp reads 128 bytes of shared memory for each ``multiply_matrices``, and two blocks find room on a
# multiprocessor. Bound by the bytes of weights: more blocks, and more bytes on their way to each of them.
LARGE = Shape(tokens=128, rows=128, warp_tokens=64, warp_rows=64, depth=32, stages=3)
SMALL = Shape(tokens=32, rows=64, warp_tokens=32, warp_rows=16, depth=64, stages=4)
SMALL_TOKENS = 64  # of the longest prompt for which blocks are ``SMALL``


def bytes_of(form: RowGroup, word) -> list:
    """The fields of a word as bytes, four to a word."""
    if form.bits == 8:
        return [word]
    even, odd = (T.bind(T.bitwise_and(part, T.uint32(0x0F0F0F0F))) for part in (word, T.shift_right(word, T.uint32(4))))
    return [T.bind(permute(even, odd, order)) for order in (0x5140, 0x7362)]


def field_pair(form: RowGroup, fields, index: int, scale):
    """Bytes 2 ``index`` and the next of ``fields``, offset removed, times ``scale``, as two float16.

    The last bit of a float16 from 1024 to 2047 counts 1, so that the bits of 1024 take in a field as it is."""
    values = permute(fields, pair(1024, 1024), 0x5150 + 0x202 * index)
    values = multiply_add(values, pair(1, 1), pair(-1024 - form.max_int, -1024 - form.max_int))
    return multiply_add(values, scale, pair(-0.0, -0.0))


@lru_cache(None)
def gemm_tensor_core(
    matrices: tuple[Matrix, ...], columns: int, form: Rows, planes: int = 1, gated: bool = False, residual: bool = False
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..); arguments as in ``gemv``, with float16 x, and columns and form as
    ``fits_tensor_cores`` says. Weights of groups are rounded to float16 once, as (field - offset) * scale.

    Blocks of the same weights follow one another, so that these are read from memory once."""
    check_planes(matrices, planes)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (planes, rows, columns), "float16")
        rest = operands(matrices, rows, columns, form, gated, residual)
        many_tokens(matrices, columns, form, rows, x, rest)

    return kernel


def many_tokens(matrices: tuple[Matrix, ...], columns: int, form: Rows, rows, x, rest: Operands) -> None:
    """The launch of ``gemm_tensor_core``; ``rows`` are all tokens."""
    grouped = not isinstance(form, RowFloat)

    def product(shape: Shape, tile, block, thread, landing, expanded):
        """All that a block does. What arrives by ``async_copy`` lies in ``landing``: x, then weights, those of groups in
        one stage less, as they stay there only until they are expanded."""
        chunks, starts = -(-columns // shape.depth), block_starts(matrices, shape.rows)
        x_words, w_words = shape.words(shape.tokens), shape.words(shape.rows)
        products = shape.warp_tokens // LEFT, shape.warp_rows // RIGHT
        across = shape.rows // shape.warp_rows
        acc = registers((*products, 4))
        left = registers((2, products[0], 4), "uint32")
        right = registers((2, products[1], 2), "uint32")
        scale = registers((1,), form.scale_dtype) if grouped else None
        plane = plane_of(matrices, block, starts)
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        warp_token, warp_row = T.bind(warp // across * shape.warp_tokens), T.bind(warp % across * shape.warp_rows)
        groups_of_row = shape.depth // GROUP
        group_row, group_place = T.bind(thread // groups_of_row), T.bind(thread % groups_of_row)

        def copy(chunk, count: int, first, extent, source: Callable):
            """Begin to copy ``count`` rows of a chunk to the word ``first``, element k of row n from ``source(n, k)``;
            zeros past ``extent`` rows and past K."""
            with T.unroll(0, count * shape.pieces // THREADS) as i:
                n, piece = thread // shape.pieces + i * (THREADS // shape.pieces), thread % shape.pieces
                k = chunk * shape.depth + piece * PIECE
                inside = n < extent if columns % shape.depth == 0 else T.And(n < extent, k < columns)
                to = first + n * shape.pieces * WORDS + shape.place(n, piece)
                call("async_copy", T.address_of(landing[to]), T.address_of(source(n, k)), inside)

        def first_row(i: int):
            return (block - starts[i]) * shape.rows

        def begin(chunk):
            """Set out to bring a chunk into its stage."""
            stage, first = chunk % shape.stages, tile * shape.tokens
            copy(chunk, shape.tokens, stage * x_words, rows - first, lambda n, k: x[plane, first + n, k])

            def weights_of(i: int):
                if grouped:
                    return copy_group(i, chunk)
                to, extent = shape.stages * x_words + stage * w_words, matrices[i].rows - first_row(i)
                copy(chunk, shape.rows, to, extent, lambda n, k: rest.weights[i][0][first_row(i) + n, k])

            choose(block, starts, weights_of)

        def landed_group(chunk, start: int):
            """Where words from ``start`` on of a thread's group are."""
            slot = (chunk % shape.ahead * form.words + start) * THREADS
            return shape.stages * x_words + slot + thread * WORDS

        def copy_group(i: int, chunk):
            row, group = first_row(i) + group_row, chunk * groups_of_row + group_place
            inside = T.And(row < matrices[i].rows, group < form.groups(columns))
            for start in range(0, form.words, WORDS):
                source = rest.weights[i][0][row, group * form.words + start]
                call("async_copy", T.address_of(landing[landed_group(chunk, start)]), T.address_of(source), inside)

        def load_scale(chunk):
            """Take the scale of a thread's group to a register; that of any other where the thread has none."""

            def load(i: int):
                row = T.min(first_row(i) + group_row, matrices[i].rows - 1)
                group = T.min(chunk * groups_of_row + group_place, form.groups(columns) - 1)
                T.buffer_store(scale, rest.weights[i][1][row, group], [0])

            choose(block, starts, load)

        def expand(chunk):
            """Store a thread's group as float16."""
            words, stored = (registers((n,), "uint32") for n in (form.words, WORDS))
            for start in range(0, form.words, WORDS):
                landed = landing[T.ramp(landed_group(chunk, start), 1, WORDS)]
                T.buffer_store(words, landed, [T.ramp(start, 1, WORDS)])
            both = T.bind(T.cast(T.reinterpret(scale[0], dtype="uint16"), "uint32") * T.uint32(0x10001))
            fields = [part for i in range(form.words) for part in bytes_of(form, words[i])]
            to = chunk % EXPANDED * w_words + group_row * shape.pieces * WORDS
            for piece in range(GROUP // PIECE):
                for j in range(WORDS):
                    T.buffer_store(stored, field_pair(form, fields[2 * piece + j // 2], j % 2, both), [j])
                at = to + shape.place(group_row, group_place * (GROUP // PIECE) + piece)
                T.buffer_store(expanded, stored[T.ramp(0, 1, WORDS)], [T.ramp(at, 1, WORDS)])

        def load(chunk, step: int):
            """Take the factors of one step to registers."""
            token, row = warp_token + lane % 16, warp_row + lane // 16 * 8 + lane % 8
            xs, turn = chunk % shape.stages * x_words, step % 2
            if grouped:
                tensor, ws = expanded, chunk % EXPANDED * w_words
            else:
                tensor, ws = landing, shape.stages * x_words + chunk % shape.stages * w_words
            with T.unroll(0, products[0]) as m:
                at = (token + m * LEFT) * shape.pieces * WORDS + shape.place(token, step * 2 + lane // 16)
                to = left.access_ptr("w", offset=(turn * products[0] + m) * 4)
                call("load_matrices", to, T.address_of(landing[xs + at]))
            with T.unroll(0, products[1] // 2) as n:
                at = (row + n * 2 * RIGHT) * shape.pieces * WORDS + shape.place(row, step * 2 + lane // 8 % 2)
                to = right.access_ptr("w", offset=(turn * products[1] + n * 2) * 2)
                call("load_matrices", to, T.address_of(tensor[ws + at]))

        def multiply(step: int):
            turn = step % 2
            with T.unroll(0, products[0]) as m, T.unroll(0, products[1]) as n:
                sums = acc.access_ptr("rw", offset=(m * products[1] + n) * 4)
                factors = (
                    left.access_ptr("r", offset=(turn * products[0] + m) * 4),
                    right.access_ptr("r", offset=(turn * products[1] + n) * 2),
                )
                call("multiply_matrices", sums, *factors)

        def finish(i: int):
            """A thread has elements 2 j and 2 j + 1 of rows n and n + 8 of every product, n = lane / 4, j = lane % 4."""
            matrix = matrices[i]
            width = vector_of("float32", matrix.rows) // 2 or 1
            first = tile * shape.tokens + warp_token + lane // 4
            with T.unroll(0, products[0]) as m, T.unroll(0, 2) as upper, T.unroll(0, products[1]) as n:
                t = first + m * LEFT + upper * 8
                for j in range(0, 2, width):
                    row, held = first_row(i) + warp_row + lane % 4 * 2 + n * RIGHT + j, upper * 2 + j
                    with T.If(T.And(t < rows, row < matrix.rows)), T.Then():
                        for k in range(width):
                            active = ACTIVATIONS[matrix.activation](acc[m, n, held + k], 1, exp)
                            T.buffer_store(acc, active, [m, n, held + k])
                        y, at = acc[m, n, span(held, width)], span(row, width)
                        y = rest.follow(y, lambda source: source[0, t, at])
                        T.buffer_store(rest.outs[i], narrow(y, matrix.dtype, width), [0, t, at])

        with T.unroll(0, products[0]) as m, T.unroll(0, products[1]) as n, T.unroll(0, 4) as k:
            T.buffer_store(acc, T.float32(0.0), [m, n, k])

        for chunk in range(shape.stages):
            if chunk == shape.ahead:  # it takes the first one's place
                call("async_wait", shape.ahead - 1)
                if grouped:
                    load_scale(0)
                    expand(0)
            if chunk < chunks:
                begin(chunk)
            call("async_commit")
        barrier()
        load(0, 0)
        last = shape.depth // STEP - 1
        with T.serial(0, chunks) as chunk:
            if grouped:
                load_scale(chunk + 1)
            for step in range(last):
                load(chunk, step + 1)
                multiply(step)
            call("async_wait", shape.ahead - 1)
            if grouped:
                with T.If(chunk + 1 < chunks), T.Then():
                    expand(chunk + 1)
            barrier()
            with T.If(chunk + shape.stages < chunks), T.Then():
                begin(chunk + shape.stages)
            call("async_commit")
            load(chunk + 1, 0)  # after the last chunk whatever is there, which nothing uses
            multiply(last)
        choose(block, starts, finish)

    small = rows <= SMALL_TOKENS
    tiles = [(rows + shape.tokens - 1) // shape.tokens for shape in (SMALL, LARGE)]
    blocks = [block_starts(matrices, shape.rows)[-1] for shape in (SMALL, LARGE)]
    with grid(T.Select(small, *tiles), T.Select(small, *blocks), threads=THREADS) as (tile, block, thread):
        shapes = SMALL, LARGE
        landing = shared((max(landing_words(shape, form) for shape in shapes),), "uint32")
        expanded = shared((max(EXPANDED * shape.words(shape.rows) for shape in shapes),), "uint32") if grouped else None
        with T.If(small):
            with T.Then():
                product(SMALL, tile, block, thread, landing, expanded)
            with T.Else():
                product(LARGE, tile, block, thread, landing, expanded)


def landing_words(shape: Shape, form: Rows) -> int:
    """How many words of shared memory asynchronous copies fill."""
    x_words = shape.stages * shape.words(shape.tokens)
    if isinstance(form, RowFloat):
        return x_words + shape.stages * shape.words(shape.rows)
    return x_words + shape.ahead * form.words * THREADS
