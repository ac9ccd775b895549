"""Matrix products of few tokens on NVIDIA's tensor cores, weight bytes bound: float16 factors, float32 sums.

The left factor of ``multiply_matrices`` are 16 rows of weights, the right one tokens. A thread feeds it four inputs of each of
two rows at a time, in whatever order, if its inputs of x come in the same. What it loads of a row at once is a whole group, so
that the four threads whose products are added up have four groups. For each to have its scale afterwards, a column of the
right factor holds the inputs of one of the four and zeros in the place of the others: two tokens take all of its columns.
Weights of groups are exact, and so are the products.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, size, span
from ..product import Matrix, Operands, block_starts, check_planes, operands
from ..rows import RowGroup, Rows
from .tensor_core import GROUP, LEFT, PIECE, RIGHT, WARP, WORDS, call, masked_or, multiply_add, pair, permute
from .threads import THREADS, barrier, choose, each, exp, grid, lanes_of, narrow, registers, shared, vector_of

WARPS = THREADS // WARP
QUAD = 4  # threads of a warp that have the same rows
COLUMNS = 2  # of the right factor's, that a thread has sums of
BUSY = 0.8
ENOUGH_BLOCKS = 128


@dataclass(frozen=True)
class Plan:
    """How ``tokens`` are multiplied with ``matrices`` of a form. A warp loads ``inputs`` of a row in each of ``steps``;
    ``along`` warps of a block share a row, and each has ``tiles`` of ``LEFT`` rows, for all of which it loads x once."""

    matrices: tuple[Matrix, ...]
    columns: int
    form: Rows
    tokens: int

    @property
    def is_grouped(self) -> bool:
        return isinstance(self.form, RowGroup)

    @property
    def pieces(self) -> int:
        """Of a row, that a thread loads at once."""
        return GROUP // PIECE if self.is_grouped else 2

    @property
    def words(self) -> int:
        """What a thread loads of a row at once."""
        return self.form.words if isinstance(self.form, RowGroup) else self.pieces * WORDS

    @property
    def inputs(self) -> int:
        return QUAD * self.pieces * PIECE

    @cached_property
    def along(self) -> int:
        steps = -(-self.columns // self.inputs)
        return next((n for n in (WARPS, 4, 2) if steps / (-(-steps // n) * n) >= BUSY), 1)

    @property
    def steps(self) -> int:
        return -(-self.columns // (self.inputs * self.along))

    @property
    def is_whole(self) -> bool:
        """Whether no step goes beyond a row's end."""
        return self.columns % (self.inputs * self.along) == 0

    @cached_property
    def tiles(self) -> int:
        """Two where there are blocks enough, and x costs as many instructions as half of the weights of one tile."""
        ordered = isinstance(self.form, RowGroup) and self.form.bits == 4
        blocks = block_starts(self.matrices, 2 * LEFT * WARPS // self.along)[-1]
        return 2 if ordered and blocks >= ENOUGH_BLOCKS else 1

    @property
    def block_rows(self) -> int:
        return LEFT * self.tiles * WARPS // self.along

    @property
    def sharing(self) -> int:
        """Threads that have a group in common, of which each loads a part: more tokens then have room in the right factor."""
        return 1 if self.tokens == 1 or not self.is_grouped else 2

    @property
    def apart(self) -> int:
        """Columns of the right factor that a token takes: one for every group that threads in a row have."""
        return QUAD // self.sharing if self.is_grouped else 1

    @property
    def together(self) -> int:
        """Tokens in one right factor."""
        return RIGHT // self.apart

    @property
    def sets(self) -> int:
        """Right factors of all tokens."""
        return -(-self.tokens // self.together)

    @property
    def kept(self) -> int:
        """Sums that a thread has of a row and a set."""
        return 1 if self.is_grouped else COLUMNS

    @property
    def owners(self) -> int:
        """Threads of a warp that have a part of one sum."""
        return self.apart // COLUMNS if self.is_grouped else 1


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


def weights_of(form: Rows, words: list) -> list:
    """``PIECE`` weights as pairs of float16."""
    return [pair for word in words for pair in pairs_of(form, word)] if isinstance(form, RowGroup) else words


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
    plan = Plan(matrices, columns, form, tokens)
    starts = block_starts(matrices, plan.block_rows)
    sets, tiles, pieces, sharing = plan.sets, plan.tiles, plan.pieces, plan.sharing
    depth, ahead = min(2, plan.steps), sets == 1  # weights are loaded a step ahead, x too or a piece where it is used
    turns, slots = (depth, pieces) if ahead else (1, sets)
    lines = list(itertools.product(range(tiles), range(2)))  # rows of a thread: of every tile two, half a tile apart

    def everywhere(buffer, value, *extents: int) -> None:
        for at in itertools.product(*map(range, extents)):
            T.buffer_store(buffer, value, list(at))

    parts = plan.along * plan.owners  # of a sum, in different threads
    with grid((rows + tokens - 1) // tokens, starts[-1]) as (tile_of_tokens, block, thread):
        partial = shared((tokens * plan.block_rows, parts))
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        part_of_row, line, place = T.bind(warp % plan.along), T.bind(lane // QUAD), T.bind(lane % QUAD)
        warp_row = T.bind(warp // plan.along * (LEFT * tiles) + line)
        loaded = registers((depth, len(lines), plan.words), "uint32")
        scales = registers((depth, len(lines), sharing, COLUMNS), form.scale_dtype) if plan.is_grouped else None
        held = registers((turns, slots, WORDS), "uint32")
        left = registers((2, 4), "uint32")
        right = registers((sets, 2, 2), "uint32")
        acc = registers((sets, tiles, 2, plan.kept))
        part = registers((sets, tiles, 2, COLUMNS)) if plan.is_grouped else acc
        own_tokens = [
            group * plan.together + line // plan.apart for group in range(sets)
        ]  # whose inputs a thread gives
        own_rows = [
            tile_of_tokens if tokens == 1 else T.bind(T.min(tile_of_tokens * tokens + token, rows - 1))
            for token in own_tokens
        ]

        def first_group(step, which: int):
            """Of those that ``QUAD`` threads have at once."""
            return (step * plan.along + part_of_row) * QUAD + which * plan.apart

        def place_of(step, piece: int):
            """Where in a row a piece of this thread begins."""
            if not plan.is_grouped:
                return (step * plan.along + part_of_row) * plan.inputs + (piece * QUAD + place) * PIECE
            which, later = divmod(piece, pieces // sharing)
            group, part_of_group = first_group(step, which) + place // sharing, place % sharing
            return group * GROUP + (part_of_group * (pieces // sharing) + later) * PIECE

        def load_groups(q_weight, q_scale, row, turn: int, n: int, step) -> None:
            groups, share = form.groups(columns), plan.words // sharing
            width, lanes = min(share, WORDS), COLUMNS if groups % COLUMNS == 0 else 1
            for which in range(sharing):
                first = first_group(step, which)
                group = T.min(first + place // sharing, groups - 1)
                for word in range(0, share, width):
                    stored = q_weight[row, T.ramp(group * plan.words + place % sharing * share + word, 1, width)]
                    T.buffer_store(loaded, stored, [turn, n, T.ramp(which * share + word, 1, width)])
                for column in range(0, COLUMNS, lanes):
                    at = T.min(first + place % plan.owners * COLUMNS + column, groups - lanes)
                    T.buffer_store(scales, q_scale[row, span(at, lanes)], [turn, n, which, span(column, lanes)])

        def load_floats(weight, row, turn: int, n: int, step) -> None:
            for piece in range(pieces):
                at = T.min(place_of(step, piece), columns - PIECE)
                stored = T.reinterpret(weight[row, T.ramp(at, 1, PIECE)], dtype="uint32x4")
                T.buffer_store(loaded, stored, [turn, n, T.ramp(piece * WORDS, 1, WORDS)])

        def load_x(plane: int, turn: int, slot: int, group: int, step, piece: int) -> None:
            """A piece of x for a set of tokens; it stays zero, or becomes so, where it has no place in the right factor."""
            start = T.bind(place_of(step, piece))
            conditions = [] if plan.is_whole else [start < columns]
            if plan.is_grouped:
                conditions += [line % plan.apart == place // sharing, own_tokens[group] < tokens]
            if not plan.is_whole:
                T.buffer_store(held, T.broadcast(T.uint32(0), WORDS), [turn, slot, T.ramp(0, 1, WORDS)])
            to = held.access_ptr("rw", offset=(turn * slots + slot) * WORDS)
            source = T.address_of(x[plane, own_rows[group], start])
            call("load_where", to, source, reduce(T.And, conditions, T.bool(True)))

        def load(i: int, turn: int, step) -> None:
            """Weights of matrix i for a step, and x where it is loaded ahead."""
            load_weights = load_groups if plan.is_grouped else load_floats
            for n, (tile, half) in enumerate(lines):
                row = (block - starts[i]) * plan.block_rows + warp_row + tile * LEFT + half * (LEFT // 2)
                if matrices[i].rows % plan.block_rows:
                    row = T.min(row, matrices[i].rows - 1)
                load_weights(*rest.weights[i], row, turn, n, step)
            if ahead:
                for piece in range(pieces):
                    load_x(matrices[i].plane, turn, piece, 0, step, piece)

        def multiply_piece(plane: int, turn: int, step, piece: int) -> None:
            for group in range(sets):
                if not ahead:
                    load_x(plane, 0, group, group, step, piece)
                stored = [held[turn, piece, i] if ahead else held[0, group, i] for i in range(WORDS)]
                for i, inputs in enumerate(inputs_of(form, stored)):
                    T.buffer_store(right, inputs, [group, i // 2, i % 2])
            for tile in range(tiles):
                for half in range(2):
                    share = plan.words // pieces
                    words = [loaded[turn, tile * 2 + half, piece * share + i] for i in range(share)]
                    for i, weights in enumerate(weights_of(form, words)):
                        T.buffer_store(left, weights, [i // 2, i % 2 * 2 + half])
                for group, i in itertools.product(range(sets), range(2)):
                    sums = part.access_ptr("rw", offset=(group * tiles + tile) * 2 * COLUMNS)
                    factors = left.access_ptr("r", offset=i * 4), right.access_ptr("r", offset=(group * 2 + i) * 2)
                    call("multiply_matrices", sums, *factors)

        def multiply(plane: int, turn: int, step) -> None:
            """Add the products of one step."""
            if not plan.is_grouped:
                for piece in range(pieces):
                    multiply_piece(plane, turn, step, piece)
                return
            for which in range(sharing):
                everywhere(part, T.float32(0.0), sets, tiles, 2, COLUMNS)
                for piece in range(which * (pieces // sharing), (which + 1) * (pieces // sharing)):
                    multiply_piece(plane, turn, step, piece)
                for group, (n, (tile, half)) in itertools.product(range(sets), enumerate(lines)):
                    for column in range(COLUMNS):
                        scale = T.cast(scales[turn, n, which, column], "float32")
                        total = acc[group, tile, half, 0] + part[group, tile, half, column] * scale
                        T.buffer_store(acc, total, [group, tile, half, 0])

        def product(i: int) -> None:
            plane, steps = matrices[i].plane, plan.steps
            everywhere(acc, T.float32(0.0), sets, tiles, 2, plan.kept)
            if plan.is_whole and plan.is_grouped:
                everywhere(held, T.uint32(0), turns, slots, WORDS)
            load(i, 0, 0)
            if steps > 1:
                with T.serial(0, steps // 2) as two:
                    load(i, 1, two * 2 + 1)
                    multiply(plane, 0, two * 2)
                    with T.If(two * 2 + 2 < steps), T.Then():
                        load(i, 0, two * 2 + 2)
                    multiply(plane, 1, two * 2 + 1)
            if steps % 2:
                multiply(plane, 0, steps - 1)

        def share_sums() -> None:
            """Put this thread's sums where ``finish`` finds them."""
            for group, (tile, half), column in itertools.product(range(sets), lines, range(plan.kept)):
                row = warp_row + tile * LEFT + half * (LEFT // 2)
                first = group * plan.together
                token = first + (place // plan.owners if plan.is_grouped else place * COLUMNS + column)
                with T.If(token < tokens), T.Then():
                    at = [token * plan.block_rows + row, part_of_row * plan.owners + place % plan.owners]
                    T.buffer_store(partial, acc[group, tile, half, column], at)
            barrier()

        def finish(i: int, value) -> None:
            width = vector_of("float32", parts)
            sums = [v for first in range(0, parts, width) for v in lanes_of(partial[value, span(first, width)], width)]
            matrix = matrices[i]
            row = T.bind((block - starts[i]) * plan.block_rows + value % plan.block_rows)
            t = T.bind(tile_of_tokens * tokens + value // plan.block_rows)
            with T.If(T.And(row < matrix.rows, t < rows)), T.Then():
                y = ACTIVATIONS[matrix.activation](T.bind(sum(sums[1:], sums[0])), 1, exp)
                y = rest.follow(y, lambda source: source[0, t, row])
                T.buffer_store(rest.outs[i], narrow(y, matrix.dtype), [0, t, row])

        def finish_all(i: int) -> None:
            each(tokens * plan.block_rows, thread, THREADS, 1, lambda _, value: finish(i, value))

        choose(block, starts, product)
        share_sums()
        choose(block, starts, finish_all)
