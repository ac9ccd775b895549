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
    sharing = 1 if tokens == 1 or not grouped else 2  # threads with one group, of which each loads a part
    pieces = GROUP // PIECE if grouped else 2  # of a row, that a thread loads at once
    words = form.words if grouped else pieces * WORDS
    inputs = QUAD * pieces * PIECE  # of a row, that a warp loads at once
    along = warps_along(-(-columns // inputs))
    steps = -(-columns // (inputs * along))
    whole = columns % (inputs * along) == 0
    tiles = tiles_of(form, matrices, LEFT * WARPS // along)
    block_rows = LEFT * tiles * WARPS // along
    starts = block_starts(matrices, block_rows)
    apart = QUAD // sharing if grouped else 1  # columns of the right factor that a token takes
    together = RIGHT // apart
    sets = -(-tokens // together)
    kept = 1 if grouped else COLUMNS  # sums of a row and a set in a thread
    owners = apart // COLUMNS if grouped else 1  # threads that have a part of the sum of a token
    turns, slots = (2, pieces) if sets == 1 else (1, sets)  # x is loaded a step ahead, or a piece where it is used
    lines = [
        (tile, half) for tile in range(tiles) for half in range(2)
    ]  # a thread's rows, ``LEFT`` / 2 from one another

    def everywhere(buffer, value, *extents: int) -> None:
        for at in itertools.product(*map(range, extents)):
            T.buffer_store(buffer, value, list(at))

    with grid((rows + tokens - 1) // tokens, starts[-1]) as (tile_of_tokens, block, thread):
        parts = along * owners
        partial = shared((parts, tokens * block_rows))
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        part_of_row, line, place = T.bind(warp % along), T.bind(lane // QUAD), T.bind(lane % QUAD)
        warp_row = T.bind(warp // along * (LEFT * tiles) + line)
        plane = plane_of(matrices, block, starts)
        loaded = registers((2, len(lines), words), "uint32")
        scales = registers((2, len(lines), sharing, COLUMNS), form.scale_dtype) if grouped else None
        held = registers((turns, slots, WORDS), "uint32")
        left = registers((2, 4), "uint32")
        right = registers((sets, 2, 2), "uint32")
        acc = registers((sets, tiles, 2, kept))
        part = registers((sets, tiles, 2, COLUMNS)) if grouped else acc
        own_tokens = [group * together + line // apart for group in range(sets)]  # whose inputs the thread gives
        own_rows = [T.bind(T.min(tile_of_tokens * tokens + token, rows - 1)) for token in own_tokens]

        def first_group(step, which: int):
            """Of those that ``QUAD`` threads have at once."""
            return (step * along + part_of_row) * QUAD + which * apart

        def place_of(step, piece: int):
            """Where in a row a piece of this thread begins."""
            if not grouped:
                return (step * along + part_of_row) * inputs + (piece * QUAD + place) * PIECE
            which, rest_of = divmod(piece, pieces // sharing)
            group, part = first_group(step, which) + place // sharing, place % sharing
            return group * GROUP + (part * (pieces // sharing) + rest_of) * PIECE

        def load_weights(turn: int, step) -> None:
            """Weights and scales of one step."""

            def of_matrix(i: int) -> None:
                for n, (tile, half) in enumerate(lines):
                    row = (block - starts[i]) * block_rows + warp_row + tile * LEFT + half * (LEFT // 2)
                    row = T.min(row, matrices[i].rows - 1)
                    if grouped:
                        load_groups(*rest.weights[i], row, n)
                    else:
                        load_pieces(*rest.weights[i], row, n)

            def load_groups(q_weight, q_scale, row, n: int) -> None:
                groups, share = form.groups(columns), words // sharing
                width, lanes = min(share, WORDS), COLUMNS if groups % COLUMNS == 0 else 1
                for which in range(sharing):
                    first = first_group(step, which)
                    group = T.min(first + place // sharing, groups - 1)
                    for word in range(0, share, width):
                        stored = q_weight[row, T.ramp(group * words + place % sharing * share + word, 1, width)]
                        T.buffer_store(loaded, stored, [turn, n, T.ramp(which * share + word, 1, width)])
                    for column in range(0, COLUMNS, lanes):
                        at = T.min(first + place % owners * COLUMNS + column, groups - lanes)
                        T.buffer_store(scales, q_scale[row, span(at, lanes)], [turn, n, which, span(column, lanes)])

            def load_pieces(weight, row, n: int) -> None:
                for piece in range(pieces):
                    at = T.min(place_of(step, piece), columns - PIECE)
                    stored = T.reinterpret(weight[row, T.ramp(at, 1, PIECE)], dtype="uint32x4")
                    T.buffer_store(loaded, stored, [turn, n, T.ramp(piece * WORDS, 1, WORDS)])

            choose(block, starts, of_matrix)

        def load_x(turn: int, slot: int, group: int, step, piece: int) -> None:
            """A piece of x for a set of tokens; it stays zero, or becomes so, where it has no place in the right factor."""
            start = T.bind(place_of(step, piece))
            conditions = [] if whole else [start < columns]
            if grouped:
                conditions += [line % apart == place // sharing, own_tokens[group] < tokens]
            if not whole:
                T.buffer_store(held, T.broadcast(T.uint32(0), WORDS), [turn, slot, T.ramp(0, 1, WORDS)])
            source = x[plane, own_rows[group], start]
            call(
                "load_where",
                held.access_ptr("rw", offset=(turn * slots + slot) * WORDS),
                T.address_of(source),
                reduce(T.And, conditions, T.bool(True)),
            )

        def load(turn: int, step) -> None:
            """What is loaded a step ahead."""
            load_weights(turn, step)
            if turns == 2:
                for piece in range(pieces):
                    load_x(turn, piece, 0, step, piece)

        def multiply_piece(turn: int, step, piece: int) -> None:
            for group in range(sets):
                if turns == 1:
                    load_x(0, group, group, step, piece)
                stored = [held[turn, piece, i] if turns == 2 else held[0, group, i] for i in range(WORDS)]
                for i, inputs in enumerate(inputs_of(form, stored)):
                    T.buffer_store(right, inputs, [group, i // 2, i % 2])
            for tile in range(tiles):
                for half in range(2):
                    n, share = tile * 2 + half, words // pieces
                    own = [loaded[turn, n, piece * share + i] for i in range(share)]
                    for i, weights in enumerate([w for word in own for w in pairs_of(form, word)] if grouped else own):
                        T.buffer_store(left, weights, [i // 2, i % 2 * 2 + half])
                for group, i in itertools.product(range(sets), range(2)):
                    sums = part.access_ptr("rw", offset=(group * tiles + tile) * 2 * COLUMNS)
                    factors = left.access_ptr("r", offset=i * 4), right.access_ptr("r", offset=(group * 2 + i) * 2)
                    call("multiply_matrices", sums, *factors)

        def multiply(turn: int, step) -> None:
            """Add the products of one step."""
            for which in range(sharing):
                if grouped:
                    everywhere(part, T.float32(0.0), sets, tiles, 2, COLUMNS)
                for piece in range(which * (pieces // sharing), (which + 1) * (pieces // sharing)):
                    multiply_piece(turn, step, piece)
                if grouped:
                    for group, (n, (tile, half)) in itertools.product(range(sets), enumerate(lines)):
                        for column in range(COLUMNS):
                            scale = T.cast(scales[turn, n, which, column], "float32")
                            total = acc[group, tile, half, 0] + part[group, tile, half, column] * scale
                            T.buffer_store(acc, total, [group, tile, half, 0])

        everywhere(acc, T.float32(0.0), sets, tiles, 2, kept)
        if whole and grouped:
            everywhere(held, T.uint32(0), turns, slots, WORDS)
        load(0, 0)
        if steps > 1:
            with T.serial(0, steps // 2) as two:
                load(1, two * 2 + 1)
                multiply(0, two * 2)
                with T.If(two * 2 + 2 < steps), T.Then():
                    load(0, two * 2 + 2)
                multiply(1, two * 2 + 1)
        if steps % 2:
            multiply(0, steps - 1)

        for group, (tile, half), column in itertools.product(range(sets), lines, range(kept)):
            row = warp_row + tile * LEFT + half * (LEFT // 2)
            token = group * together + (place // owners if grouped else place * COLUMNS + column)
            with T.If(token < tokens), T.Then():
                at = [part_of_row * owners + place % owners, token * block_rows + row]
                T.buffer_store(partial, acc[group, tile, half, column], at)
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
