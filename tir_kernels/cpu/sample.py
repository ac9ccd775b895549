"""Choosing the next token of every sequence from its logits: the rules of docs/generation.md.

What a cut keeps is found without sorting. The weights that may be kept are listed, a weight between the least and the largest
of them parts the list in two, the sum over the heavier ones tells in which part the last one kept is, and that part is the
list from then on: about two readings of the first list in all. A weight is exponential in its logit, so halving the range of
its bits halves a range of logits."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import cast, constant, prim_func, root_block, size, span, splat
from ..sampling import HEAVIEST, INFINITY, NOT_FINITE, Request, penalized, sampling_args
from .lists import compress, count, magnitude
from .simd import LANES, exp, intrinsic, reduce_add, registers

RUN = 32  # vectors that the search for the drawn token passes over at once


@lru_cache(None)
def sample(vocab: int) -> tirx.PrimFunc:
    """(logits, requests, penalties, padding -> tokens int32 [B]); see ``sampling.sampling_args``."""
    vectors = -(-vocab // LANES)
    padded = vectors * LANES
    lanes = span(0, LANES)

    def integer(value: int = 0):
        cell = registers((1,), "int32")
        T.buffer_store(cell, T.int32(value), [0])
        return cell

    def sum_of(length, value):
        """The sum of ``value(first)``, vectors of whole float32 numbers, over so many vectors; float64."""
        total = registers((LANES,), "float64")
        T.buffer_store(total, splat(T.float64(0), LANES), [lanes])
        with T.serial(0, length) as i:
            T.buffer_store(total, total[lanes] + cast(value(i * LANES), "float64", LANES), [lanes])
        return T.bind(reduce_add(total[lanes], LANES, "float64"))

    def vector(first):
        return T.ramp(first, 1, LANES)

    def not_below(values, limit):
        return values >= splat(limit, LANES)

    def masked(chosen, values):
        return T.Select(chosen, values, constant(0.0, LANES))

    def append(target, length, values, chosen) -> None:
        """Put the chosen lanes at the end of a list."""
        number = integer()  # an array, as TVM's analyzer fails at variables that depend on vectors of truth values
        T.buffer_store(number, count(chosen, LANES), [0])
        with T.If(number[0] > 0), T.Then():
            found = compress(T.reinterpret(values, dtype=f"int32x{LANES}"), chosen, "int32", LANES)
            T.buffer_store(target, T.reinterpret(found, dtype=f"float32x{LANES}"), [vector(length[0])])
            T.buffer_store(length, length[0] + number[0], [0])

    def end_list(target, length) -> None:
        T.buffer_store(target, constant(0.0, LANES), [vector(length[0])])

    def vectors_of(length):
        return T.shift_right(length + (LANES - 1), T.int32(4))

    def part_of(total, numerator):
        """(floor(total * numerator / 2^32), whether that is all), for a whole float64 and a uint32."""
        whole, part, low_word = (
            T.bind(T.cast(total, "uint64")),
            T.bind(T.cast(numerator, "uint64")),
            T.uint64(2**32 - 1),
        )
        low = T.bind(T.bitwise_and(whole, low_word) * part)
        high = T.shift_right(whole, T.uint64(32)) * part
        floor = T.cast(high + T.shift_right(low, T.uint64(32)), "float64")
        return T.bind(floor), T.bitwise_and(low, low_word) == T.uint64(0)

    @prim_func
    def kernel():
        batch, logits, requests, penalties, padding, tokens = sampling_args(vocab, size)

        def read(scores, request: Request) -> None:
            """The logits after masking and penalties. Two loops, so that no product is fused with what follows it."""
            with T.serial(0, vocab // LANES) as i:
                at = vector(i * LANES)
                T.buffer_store(scores, logits[0, request.row, at], [at])
            for i in range(vocab // LANES * LANES, padded):
                T.buffer_store(scores, logits[0, request.row, i] if i < vocab else -T.infinity("float32"), [i])
            with T.serial(0, padding.shape[0]) as i:
                token = T.bind(padding[i])
                with T.If(T.And(token >= 0, token < vocab)), T.Then():
                    T.buffer_store(scores, -T.infinity("float32"), [token])
            with T.serial(request.first, request.end) as i:
                token = T.bind(penalties[i, 0])
                T.buffer_store(scores, penalized(scores[token], request.repetition_penalty), [token])
            with T.serial(request.first, request.end) as i:
                token = T.bind(penalties[i, 0])
                T.buffer_store(scores, scores[token] - T.reinterpret(penalties[i, 1], dtype="float32"), [token])

        def likeliest(scores):
            """(the largest score, whether all can be used)."""
            top, faults = registers((LANES,)), registers((LANES,), "int32")
            T.buffer_store(top, splat(-T.infinity("float32"), LANES), [lanes])
            T.buffer_store(faults, splat(T.int32(0), LANES), [lanes])
            with T.serial(0, vectors) as i:
                score = T.bind(scores[vector(i * LANES)])
                T.buffer_store(top, T.max(top[lanes], score), [lanes])
                fault = magnitude(score, LANES) > splat(T.int32(INFINITY), LANES)
                T.buffer_store(faults, T.bitwise_or(faults[lanes], cast(fault, "int32", LANES)), [lanes])
            best = registers((1,))
            T.buffer_store(best, top[0], [0])
            for i in range(1, LANES):
                T.buffer_store(best, T.max(best[0], top[i]), [0])
            finite = T.bitwise_and(T.reinterpret(best[0], dtype="int32"), T.int32(2**31 - 1)) < INFINITY
            sound = T.And(intrinsic("llvm.vector.reduce.or", "int32", faults[lanes]) == 0, finite)
            return T.bind(best[0]), T.bind(sound)

        def first_with(scores, best):
            """The lowest token with the largest score."""
            at = integer()
            with T.While(count(scores[vector(at[0])] == splat(best, LANES), LANES) == 0):
                T.buffer_store(at, at[0] + LANES, [0])
            with T.While(scores[at[0]] < best):
                T.buffer_store(at, at[0] + 1, [0])
            return at[0]

        def weigh(scores, best, inverse_temperature):
            """Scores become weights; the sum of all."""

            def weight(first):
                at = vector(first)
                exponent = (splat(best, LANES) - scores[at]) * splat(-inverse_temperature, LANES)
                weighed = T.bind(T.floor(exp(exponent, LANES) * constant(HEAVIEST, LANES)))
                T.buffer_store(scores, weighed, [at])
                return weighed

            return sum_of(vectors, weight)

        def list_from(least, weights, heavy, length) -> None:
            T.buffer_store(length, T.int32(0), [0])
            with T.serial(0, vectors) as i:
                weight = T.bind(weights[vector(i * LANES)])
                append(heavy, length, weight, not_below(weight, least))
            end_list(heavy, length)

        def cut(heavy, length, least, bound, low, above, measure) -> None:
            """Of the list, which measures ``bound`` or more in all, find the largest weight ``low``, as bits, such that what is
            not below it does. ``above`` is what heavier ones measure, and the list has those of this weight."""
            high = integer()
            T.buffer_store(low, T.reinterpret(least, dtype="int32"), [0])
            T.buffer_store(high, T.reinterpret(T.float32(HEAVIEST), dtype="int32"), [0])
            T.buffer_store(above, T.float64(0), [0])
            with T.While(low[0] < high[0]):
                middle = T.bind(low[0] + T.shift_right(high[0] - low[0] + 1, T.int32(1)))
                limit = T.bind(T.reinterpret(middle, dtype="float32"))
                found = sum_of(
                    vectors_of(length[0]),
                    lambda first: masked(not_below(heavy[vector(first)], limit), measure(heavy[vector(first)])),
                )
                reached = T.bind(above[0] + found)
                with T.If(reached >= bound):
                    with T.Then():
                        T.buffer_store(low, middle, [0])
                    with T.Else():
                        T.buffer_store(high, middle - 1, [0])
                        T.buffer_store(above, reached, [0])
                least, most = (T.bind(T.reinterpret(end[0], dtype="float32")) for end in (low, high))
                kept = integer()
                with T.serial(0, vectors_of(length[0])) as i:
                    weight = T.bind(heavy[vector(i * LANES)])
                    append(heavy, kept, weight, T.And(not_below(weight, least), weight <= splat(most, LANES)))
                T.buffer_store(length, kept[0], [0])
                end_list(heavy, length)

        def leave_out(weights, limit, ties) -> None:
            """Tokens below the limit weigh nothing, nor do those at it but for the first ``ties``."""
            left = integer()
            T.buffer_store(left, ties, [0])
            with T.serial(0, vectors) as i:
                at, tied = vector(i * LANES), integer()
                T.buffer_store(tied, count(weights[at] == splat(limit, LANES), LANES), [0])
                T.buffer_store(weights, masked(not_below(weights[at], limit), weights[at]), [at])
                with T.If(tied[0] > left[0]), T.Then(), T.serial(0, LANES) as lane:
                    with T.If(weights[i * LANES + lane] == limit), T.Then():
                        with T.If(left[0] <= 0), T.Then():
                            T.buffer_store(weights, T.float32(0), [i * LANES + lane])
                        T.buffer_store(left, left[0] - 1, [0])
                        T.buffer_store(tied, tied[0] - 1, [0])
                T.buffer_store(left, left[0] - tied[0], [0])

        def find(weights, limit, target):
            """The first token up to which the weights that are not below the limit are more than ``target``."""
            left, at = registers((1,), "float64"), integer()
            T.buffer_store(left, target, [0])

            def kept(first):
                return masked(not_below(weights[vector(first)], limit), weights[vector(first)])

            def pass_over(run: int) -> None:
                """Go on by whole runs of so many vectors."""
                more = integer(1)
                with T.While(more[0] > 0):
                    run_vectors = T.min(run, vectors - T.shift_right(at[0], T.int32(4)))
                    passed = sum_of(run_vectors, lambda first: kept(at[0] + first))
                    T.buffer_store(more, T.cast(passed <= left[0], "int32"), [0])
                    with T.If(more[0] > 0), T.Then():
                        T.buffer_store(left, left[0] - passed, [0])
                        T.buffer_store(at, at[0] + run * LANES, [0])

            pass_over(RUN)
            pass_over(1)
            with T.While(left[0] >= T.float64(0)):
                weight = T.bind(weights[at[0]])
                T.buffer_store(left, left[0] - T.cast(T.Select(weight >= limit, weight, T.float32(0)), "float64"), [0])
                T.buffer_store(at, at[0] + 1, [0])
            return at[0] - 1

        def draw(request: Request, weights, heavy):
            """The token of the drawn number, of those that the cuts keep."""
            total, above, limit = registers((1,), "float64"), registers((1,), "float64"), registers((1,))
            length, low = integer(), integer()
            T.buffer_store(limit, T.float32(0), [0])

            def keep(least, bound, measure, unit) -> None:
                """The heaviest of the list that come up to the bound."""
                cut(heavy, length, least, bound, low, above, measure)
                T.buffer_store(limit, T.reinterpret(low[0], dtype="float32"), [0])
                ties = T.bind(T.cast(T.ceil((bound - above[0]) / T.cast(unit(limit[0]), "float64")), "int32"))
                with T.If(ties < length[0]), T.Then():
                    leave_out(weights, limit[0], ties)

            def kept(first):
                return masked(not_below(weights[vector(first)], limit[0]), weights[vector(first)])

            with T.If(request.top_k > 0), T.Then():
                list_from(T.float32(1), weights, heavy, length)
                with T.If(request.top_k < length[0]), T.Then():
                    bound = T.bind(T.cast(request.top_k, "float64"))
                    keep(T.float32(1), bound, lambda _: constant(1.0, LANES), lambda _: T.float32(1))
            T.buffer_store(total, sum_of(vectors, kept), [0])
            with T.If(request.top_p != T.uint32(0)), T.Then():
                left_out = T.float64(1) - T.cast(request.top_p, "float64") * T.float64(2.0**-32)
                spare = T.cast(total[0] * left_out * T.float64(0.5 / vocab), "float32")
                least = T.bind(T.max(T.max(spare, limit[0]), T.float32(1)))
                floor, whole = part_of(total[0], request.top_p)
                bound = T.bind(floor + T.Select(whole, T.float64(0), T.float64(1)))
                list_from(least, weights, heavy, length)
                keep(least, bound, lambda weight: weight, lambda weight: weight)
                T.buffer_store(total, sum_of(vectors, kept), [0])
            target, _ = part_of(total[0], request.drawn)
            return find(weights, limit[0], target)

        def choose(b) -> None:
            request = Request.of(requests, b)
            scores, heavy = T.alloc_buffer((padded,)), T.alloc_buffer((padded + LANES,))
            read(scores, request)
            best, sound = likeliest(scores)
            with T.If(T.Not(sound)):
                with T.Then():
                    T.buffer_store(tokens, T.int32(NOT_FINITE), [b])
                with T.Else(), T.If(request.inverse_temperature == T.float32(0)):
                    with T.Then():
                        T.buffer_store(tokens, first_with(scores, best), [b])
                    with T.Else():
                        weigh(scores, best, request.inverse_temperature)
                        T.buffer_store(tokens, draw(request, scores, heavy), [b])

        with root_block(), T.If(batch == 1):  # a single row waits for no other thread
            with T.Then():
                choose(T.int64(0))
            with T.Else(), T.parallel(0, batch) as b:
                choose(b)

    return kernel
