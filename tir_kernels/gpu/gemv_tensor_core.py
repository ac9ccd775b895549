"""Matrix products of few tokens on NVIDIA's tensor cores, weight bytes bound: float16 factors, float32 sums.

The left factor of ``multiply_matrices`` are 16 rows of weights, the right one tokens. A thread feeds it four inputs of each of
two rows at a time, in whatever order, if its inputs of x come in the same. What it loads of a row at once is a whole group, so
that the four threads whose products are added up have four groups. For each to have its scale afterwards, a column of the
right factor holds the inputs of one of the four and zeros in the place of the others: two tokens take all of its columns.
Weights of groups are exact, and so are the products.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, size, span
from ..product import Matrix, Operands, block_starts, check_planes, operands
from ..rows import RowGroup, Rows
from .product import plane_of
from .tensor_core import GROUP, LEFT, PIECE, RIGHT, WARP, WORDS, call, masked_or, multiply_add, pair, permute
from .threads import THREADS, barrier, choose, each, exp, grid, narrow, registers, shared

WARPS = THREADS // WARP
QUAD = 4  # threads of a warp that have the same rows
COLUMNS = 2  # of the right factor's, that a thread has sums of
BUSY = 0.8
ENOUGH_BLOCKS = 128


def warps_along(steps: int) -> int:
    """Warps of a block along a row that is so many steps of one warp."""
    busy = (warps for warps in (WARPS, 4, 2) if steps / (-(-steps // warps) * warps) >= BUSY)
    return next(busy, 1)


def tiles_of(form: Rows, matrices: tuple[Matrix, ...], rows: int) -> int:
    """How often a warp has ``LEFT`` rows, for which it loads x once: putting x in order takes as many instructions as half of
    the weights of one. ``rows`` belong to a block for each."""
    ordered = isinstance(form, RowGroup) and form.bits == 4
    return 2 if ordered and block_starts(matrices, 2 * rows)[-1] >= ENOUGH_BLOCKS else 1


def pairs_of(form: RowGroup, word) -> list:
    """The fields of a word, offset removed, as pairs of float16, each below what ``order_of`` says.

    The last bit of a float16 from 1024 to 2047 counts 1, so that the bits of 1024 take in a field as it is; one four bits
    further up counts 16 times as much."""
    base, unit = pair(1024, 1024), pair(1, 1)
    if form.bits == 8:
        offset = pair(-1024 - form.max_int, -1024 - form.max_int)
        return [multiply_add(permute(word, base, order), unit, offset) for order in (0x5150, 0x5352)]
    low, high = pair(-1024 - form.max_int, -1024 - form.max_int), pair(-64 - form.max_int, -64 - form.max_int)
    found = []
    for part in (word, T.shift_right(word, T.uint32(8))):
        found.append(multiply_add(masked_or(part, 0x000F000F, base), unit, low))
        found.append(multiply_add(masked_or(part, 0x00F000F0, base), pair(1 / 16, 1 / 16), high))
    return found


def inputs_of(form: Rows, words: list) -> list:
    """``PIECE`` inputs of x, two to a word, as pairs in the order of the weights': fields i and i + 4 where there are eight
    to a word, neighbors otherwise."""
    if isinstance(form, RowGroup) and form.bits == 4:
        return [permute(words[i], words[i + 2], order) for i in range(2) for order in (0x5410, 0x7632)]
    return words


@lru_cache(None)
def gemv_tensor_core(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: Rows,
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
    tokens: int = 1,
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..); arguments as in ``gemv``, with float16 x, and columns and form as
    ``fits_tensor_cores`` says. Each block multiplies up to ``tokens`` with the weights that it loads."""
    check_planes(matrices, planes)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (planes, rows, columns), "float16")
        rest = operands(matrices, rows, columns, form, gated, residual)
        few_tokens(matrices, columns, form, tokens, rows, x, rest)

    return kernel


def few_tokens(matrices: tuple[Matrix, ...], columns: int, form: Rows, tokens: int, rows, x, rest: Operands) -> None:
    """The launch of ``gemv_tensor_core``; ``rows`` are all tokens."""
    grouped = isinstance(form, RowGroup)
    pieces = GROUP // PIECE if grouped else 2  # of a row, that a thread loads at once
    words = form.words if grouped else pieces * WORDS
    inputs = QUAD * pieces * PIECE  # of a row, that a warp loads at once
    along = warps_along(-(-columns // inputs))
    steps = -(-columns // (inputs * along))
    whole = columns % (inputs * along) == 0
    tiles = tiles_of(form, matrices, LEFT * WARPS // along)
    block_rows = LEFT * tiles * WARPS // along
    starts = block_starts(matrices, block_rows)
    together = RIGHT // QUAD if grouped else RIGHT  # tokens of one right factor
    sets = -(-tokens // together)
    turns, slots = (2, pieces) if sets == 1 else (1, sets)  # x is loaded a step ahead, or a piece where it is used
    kept = 1 if grouped else COLUMNS  # sums of a row and a set in a thread
    lines = [
        (tile, half) for tile in range(tiles) for half in range(2)
    ]  # a thread's rows, ``LEFT`` / 2 from one another

    with grid((rows + tokens - 1) // tokens, starts[-1]) as (tile_of_tokens, block, thread):
        parts = along * COLUMNS if grouped else along
        partial = shared((parts, tokens * block_rows))
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        part_of_row, line, place = T.bind(warp % along), T.bind(lane // QUAD), T.bind(lane % QUAD)
        warp_row = T.bind(warp // along * (LEFT * tiles) + line)
        plane = plane_of(matrices, block, starts)
        loaded = registers((2, len(lines), words), "uint32")
        scales = registers((2, len(lines), COLUMNS), form.scale_dtype) if grouped else None
        held = registers((turns, slots, WORDS), "uint32")
        left = registers((2, 4), "uint32")
        right = registers((sets, 2, 2), "uint32")
        acc = registers((sets, tiles, 2, kept))
        part = registers((sets, tiles, 2, COLUMNS)) if grouped else acc

        def place_of(step, piece: int):
            """Where in a row a piece of this thread begins."""
            first = (step * along + part_of_row) * inputs
            return first + (place * GROUP + piece * PIECE if grouped else (piece * QUAD + place) * PIECE)

        def load(turn: int, step) -> None:
            """Weights and scales of one step."""

            def of_matrix(i: int) -> None:
                for n, (tile, half) in enumerate(lines):
                    row = (block - starts[i]) * block_rows + warp_row + tile * LEFT + half * (LEFT // 2)
                    row = T.min(row, matrices[i].rows - 1)
                    if grouped:
                        load_group(*rest.weights[i], row, n)
                    else:
                        load_pieces(*rest.weights[i], row, n)

            def load_group(q_weight, q_scale, row, n: int) -> None:
                groups = form.groups(columns)
                first = T.bind((step * along + part_of_row) * QUAD)
                group = T.min(first + place, groups - 1)
                for word in range(0, words, WORDS):
                    stored = q_weight[row, T.ramp(group * words + word, 1, WORDS)]
                    T.buffer_store(loaded, stored, [turn, n, T.ramp(word, 1, WORDS)])
                width = COLUMNS if groups % COLUMNS == 0 else 1
                for column in range(0, COLUMNS, width):
                    at = T.min(first + place % COLUMNS * COLUMNS + column, groups - width)
                    T.buffer_store(scales, q_scale[row, span(at, width)], [turn, n, span(column, width)])

            def load_pieces(weight, row, n: int) -> None:
                for piece in range(pieces):
                    at = T.min(place_of(step, piece), columns - PIECE)
                    stored = T.reinterpret(weight[row, T.ramp(at, 1, PIECE)], dtype="uint32x4")
                    T.buffer_store(loaded, stored, [turn, n, T.ramp(piece * WORDS, 1, WORDS)])

            choose(block, starts, of_matrix)

        def load_x(turn: int, slot: int, group: int, step, piece: int) -> None:
            """A piece of x for a set of tokens; it stays zero, or becomes so, where it has no place in the right factor."""
            token = group * together + (line // QUAD if grouped else line)
            start = T.bind(place_of(step, piece))
            to, inside = [turn, slot, T.ramp(0, 1, WORDS)], start < columns
            source = x[plane, T.min(tile_of_tokens * tokens + token, rows - 1), T.ramp(start, 1, PIECE)]
            has_place = T.And(line % QUAD == place, token < tokens) if grouped else None
            if not whole:
                T.buffer_store(held, T.broadcast(T.uint32(0), WORDS), to)
            conditions = ([] if whole else [inside]) + ([has_place] if grouped else [])
            if conditions:
                with T.If(reduce(T.And, conditions)), T.Then():
                    T.buffer_store(held, T.reinterpret(source, dtype="uint32x4"), to)
            else:
                T.buffer_store(held, T.reinterpret(source, dtype="uint32x4"), to)

        def load_step(turn: int, step) -> None:
            load(turn, step)
            if turns == 2:
                for piece in range(pieces):
                    load_x(turn, piece, 0, step, piece)

        def multiply(turn: int, step) -> None:
            """Add the products of one step."""
            if grouped:
                for at in itertools.product(range(sets), range(tiles), range(2), range(COLUMNS)):
                    T.buffer_store(part, T.float32(0.0), list(at))
            for piece in range(pieces):
                for group in range(sets):
                    if turns == 1:
                        load_x(0, group, group, step, piece)
                    stored = [held[turn, piece, i] if turns == 2 else held[0, group, i] for i in range(WORDS)]
                    for i, pair_of_inputs in enumerate(inputs_of(form, stored)):
                        T.buffer_store(right, pair_of_inputs, [group, i // 2, i % 2])
                for tile in range(tiles):
                    for half in range(2):
                        own = [
                            loaded[turn, tile * 2 + half, piece * words // pieces + i] for i in range(words // pieces)
                        ]
                        values = [p for word in own for p in pairs_of(form, word)] if grouped else own
                        for i, pair_of_weights in enumerate(values):
                            T.buffer_store(left, pair_of_weights, [i // 2, i % 2 * 2 + half])
                    for group, i in itertools.product(range(sets), range(2)):
                        sums = part.access_ptr("rw", offset=(group * tiles + tile) * 2 * COLUMNS)
                        factors = left.access_ptr("r", offset=i * 4), right.access_ptr("r", offset=(group * 2 + i) * 2)
                        call("multiply_matrices", sums, *factors)
            if grouped:
                for group, (n, (tile, half)) in itertools.product(range(sets), enumerate(lines)):
                    for column in range(COLUMNS):
                        share = part[group, tile, half, column] * T.cast(scales[turn, n, column], "float32")
                        T.buffer_store(acc, acc[group, tile, half, 0] + share, [group, tile, half, 0])

        for at in itertools.product(range(sets), range(tiles), range(2), range(kept)):
            T.buffer_store(acc, T.float32(0.0), list(at))
        if whole and grouped:
            for at in itertools.product(range(turns), range(slots), range(WORDS)):
                T.buffer_store(held, T.uint32(0), list(at))
        load_step(0, 0)
        if steps > 1:
            with T.serial(0, steps // 2) as two:
                load_step(1, two * 2 + 1)
                multiply(0, two * 2)
                if steps % 2:
                    load_step(0, two * 2 + 2)
                else:
                    with T.If(two * 2 + 2 < steps), T.Then():
                        load_step(0, two * 2 + 2)
                multiply(1, two * 2 + 1)
        if steps % 2:
            multiply(0, steps - 1)

        for group, (tile, half), column in itertools.product(range(sets), lines, range(kept)):
            row = warp_row + tile * LEFT + half * (LEFT // 2)
            if grouped:
                token, own = group * together + place // COLUMNS, part_of_row * COLUMNS + place % COLUMNS
            else:
                token, own = group * together + place * COLUMNS + column, part_of_row
            with T.If(token < tokens), T.Then():
                T.buffer_store(partial, acc[group, tile, half, column], [own, token * block_rows + row])
        barrier()

        def finish(i: int, value) -> None:
            total = partial[0, value]
            for other in range(1, parts):
                total = total + partial[other, value]
            matrix = matrices[i]
            row = T.bind((block - starts[i]) * block_rows + value % block_rows)
            t = T.bind(tile_of_tokens * tokens + value // block_rows)
            with T.If(T.And(row < matrix.rows, t < rows)), T.Then():
                y = ACTIVATIONS[matrix.activation](T.bind(total), 1, exp)
                y = rest.follow(y, lambda source: source[0, t, row])
                T.buffer_store(rest.outs[i], narrow(y, matrix.dtype), [0, t, row])

        choose(
            block, starts, lambda i: each(tokens * block_rows, thread, THREADS, 1, lambda _, value: finish(i, value))
        )
