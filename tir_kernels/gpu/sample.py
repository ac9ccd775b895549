"""Choosing the next token of every sequence from its logits: see ``cpu.sample``, which cuts in the same way.

A block of threads has a row, each thread a run of the vocabulary and its own part of what is listed, so that nothing but sums
passes between threads. Sums are of whole numbers, exact in any order, in two int32: no device needs float64 or int64."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, prim_func, size
from ..sampling import (
    HEAVIEST,
    HEAVIEST_BITS,
    INFINITY,
    LARGEST_EXPONENT,
    NOT_FINITE,
    ONE_BITS,
    Request,
    penalized,
    sampling_args,
)
from .threads import THREADS, barrier, grid, registers, shared, totals
from .whole import Whole

LOWEST = -3e38  # the score of what is never chosen: not every device's compiler knows infinity


def memory_shape(vocab: int) -> tuple[int, int]:
    """Of each of two tensors that a row of logits needs."""
    return -(-vocab // THREADS), THREADS


@lru_cache(None)
def sample(vocab: int) -> tirx.PrimFunc:
    """(logits, requests, penalties, padding -> tokens int32 [B], weights, heavy); see ``sampling.sampling_args``. The last two
    are memory to work in, float32 [B, *memory_shape(V)]: element [i, t] is that of the i-th token of thread t."""
    run, _ = memory_shape(vocab)

    def cell(dtype: str, value):
        made = registers((1,), dtype)
        T.buffer_store(made, value, [0])
        return made

    @prim_func
    def kernel():
        batch, logits, requests, penalties, padding, tokens = sampling_args(vocab, size)
        weights, heavy = (arg(name, (batch, run, THREADS)) for name in ("weights", "heavy"))

        with grid(batch) as (b, thread):
            request = Request.of(requests, b)
            floats, integers = shared((1, THREADS)), shared((2, THREADS), "int32")
            first = T.bind(T.cast(thread, "int32") * run)

            def added(*values, add=lambda a, b: a + b) -> list:
                """What all threads' int32 values make together."""
                return totals(list(values), thread, THREADS, integers, add)

            def sum_of(source, length, value) -> Whole:
                """The sum of ``value(weight)``, whole float32 numbers, over so many of each thread's elements."""
                high, low = cell("int32", T.int32(0)), cell("int32", T.int32(0))
                with T.serial(0, length) as i:
                    part = Whole.of(T.bind(value(source[b, i, thread])))
                    T.buffer_store(high, high[0] + part.high, [0])
                    T.buffer_store(low, low[0] + part.low, [0])
                return Whole(high[0], low[0]).carried()

            def together(own: Whole) -> Whole:
                return Whole(*added(*own)).carried()

            def read() -> None:
                """The logits after masking and penalties. Two loops, so that no product is fused with what follows it."""
                with T.serial(0, run) as i:
                    inside = first + i < vocab
                    logit = T.if_then_else(
                        inside, logits[0, request.row, T.min(first + i, vocab - 1)], T.float32(LOWEST)
                    )
                    T.buffer_store(weights, logit, [b, i, thread])

                def own(token, change) -> None:
                    at = T.bind(token - first)
                    with T.If(T.And(at >= 0, at < run)), T.Then():
                        T.buffer_store(weights, change(weights[b, at, thread]), [b, at, thread])

                with T.serial(0, T.cast(padding.shape[0], "int32")) as i:
                    own(padding[i], lambda _: T.float32(LOWEST))
                with T.serial(0, request.end - request.first) as i:
                    own(
                        penalties[request.first + i, 0],
                        lambda score: penalized(T.bind(score), request.repetition_penalty),
                    )
                with T.serial(0, request.end - request.first) as i:
                    lost = T.reinterpret(penalties[request.first + i, 1], dtype="float32")
                    own(penalties[request.first + i, 0], lambda score: score - lost)

            def likeliest():
                """(the largest score, whether all can be used)."""
                top, faults = cell("float32", T.float32(LOWEST)), cell("int32", T.int32(0))
                with T.serial(0, run) as i:
                    score = T.bind(weights[b, i, thread])
                    bits = T.bind(T.reinterpret(score, dtype="int32"))
                    fault = T.Or(bits == INFINITY, T.bitwise_and(bits, T.int32(2**31 - 1)) > INFINITY)
                    T.buffer_store(faults, faults[0] + T.cast(fault, "int32"), [0])
                    T.buffer_store(top, T.max(top[0], score), [0])
                (best,) = totals([top[0]], thread, THREADS, floats, T.max)
                (faulty,) = added(faults[0])
                return best, T.bind(T.And(faulty == 0, best > T.float32(LOWEST)))

            def weigh(best):
                """Scores become weights; (the first token with the largest score, the sum of all, how many are not 0)."""
                found, counted = cell("int32", T.int32(vocab)), cell("int32", T.int32(0))

                def weight(i):
                    score = T.bind(weights[b, i, thread])
                    T.buffer_store(
                        found, T.Select(score == best, T.min(found[0], first + T.cast(i, "int32")), found[0]), [0]
                    )
                    exponent = T.min((best - score) * request.inverse_temperature, T.float32(LARGEST_EXPONENT))
                    weighed = T.floor(T.exp(T.float32(0) - exponent) * T.float32(HEAVIEST))
                    weighed = T.bind(T.min(weighed, T.float32(HEAVIEST)))
                    T.buffer_store(weights, weighed, [b, i, thread])
                    T.buffer_store(counted, counted[0] + T.cast(weighed > T.float32(0), "int32"), [0])

                with T.serial(0, run) as i:
                    weight(i)
                (token,) = added(found[0], add=T.min)
                (number,) = added(counted[0])
                return token, number

            def keep(active, least, bound: Whole, limit, counting: bool) -> None:
                """Of the tokens of weight ``least`` and more keep the heaviest that come up to the bound: ``limit`` becomes the
                least weight that stays, and those of that weight that do not stay become 0."""

                def measure(weight):
                    return T.Select(weight >= middle, T.float32(1) if counting else weight, T.float32(0))

                low = cell("int32", T.int32(ONE_BITS) if counting else T.reinterpret(least, dtype="int32"))
                high = cell("int32", T.Select(active, T.int32(HEAVIEST_BITS), low[0]))
                above_high, above_low = cell("int32", T.int32(0)), cell("int32", T.int32(0))
                length, kept = cell("int32", T.int32(0)), cell("int32", T.int32(0))

                def list_of(source, extent, chosen) -> None:
                    T.buffer_store(kept, T.int32(0), [0])
                    with T.serial(0, extent) as i:
                        weight = T.bind(source[b, i, thread])
                        with T.If(chosen(weight)), T.Then():
                            T.buffer_store(heavy, weight, [b, kept[0], thread])
                            T.buffer_store(kept, kept[0] + 1, [0])
                    T.buffer_store(length, kept[0], [0])

                list_of(weights, T.Select(active, T.int32(run), T.int32(0)), lambda weight: weight >= least)
                with T.While(low[0] < high[0]):
                    half = T.bind(low[0] + T.shift_right(high[0] - low[0] + 1, T.int32(1)))
                    middle = T.bind(T.reinterpret(half, dtype="float32"))
                    reached = together(sum_of(heavy, length[0], measure)).plus(Whole(above_high[0], above_low[0]))
                    short = T.bind(reached.less(bound))
                    T.buffer_store(low, T.Select(short, low[0], half), [0])
                    T.buffer_store(high, T.Select(short, half - 1, high[0]), [0])
                    T.buffer_store(above_high, T.Select(short, reached.high, above_high[0]), [0])
                    T.buffer_store(above_low, T.Select(short, reached.low, above_low[0]), [0])
                    list_of(heavy, length[0], lambda weight: T.Select(short, T.Not(weight >= middle), weight >= middle))

                T.buffer_store(limit, T.Select(active, T.reinterpret(T.bind(low[0]), dtype="float32"), limit[0]), [0])
                lacking = bound.minus(Whole(above_high[0], above_low[0]))
                ties = lacking.low if counting else quotient(lacking, T.bind(limit[0]))
                drop_ties(active, limit, T.bind(ties), length)

            def quotient(total: Whole, divisor):
                """ceil(total / divisor), at most V, for a whole float32 number ``divisor``; anything where nothing is cut."""
                estimate = T.cast(
                    T.min(total.approximately() / T.max(divisor, T.float32(1)), T.float32(vocab)), "int32"
                )
                found = cell("int32", T.max(estimate - 1, 0))
                for _ in range(3):
                    short = Whole.of(divisor).times(found[0]).less(total)
                    T.buffer_store(found, found[0] + T.cast(short, "int32"), [0])
                return found[0]

            def drop_ties(active, limit, ties, length) -> None:
                """Of the tokens whose weight is the limit, ``length`` of each thread, only the first ``ties`` keep it."""
                T.buffer_store(integers, length[0], [0, thread])
                barrier()
                before = cell("int32", T.int32(0))
                with T.serial(0, T.Select(active, T.cast(thread, "int32"), T.int32(0))) as other:
                    T.buffer_store(before, before[0] + integers[0, other], [0])
                barrier()
                spare = T.bind(T.And(active, before[0] + length[0] > ties))
                with T.serial(0, T.Select(spare, T.int32(run), T.int32(0))) as i:
                    with T.If(weights[b, i, thread] == limit[0]), T.Then():
                        with T.If(before[0] >= ties), T.Then():
                            T.buffer_store(weights, T.float32(0), [b, i, thread])
                        T.buffer_store(before, before[0] + 1, [0])

            def weight_of(limit):
                return lambda weight: T.Select(weight >= limit[0], weight, T.float32(0))

            def write(active, own: Whole, target: Whole, limit) -> None:
                """The token up to which the weights are more than ``target``, by the thread that has it."""
                for row, part in enumerate(own):
                    T.buffer_store(integers, part, [row, thread])
                barrier()
                high, low = cell("int32", T.int32(0)), cell("int32", T.int32(0))
                with T.serial(0, T.cast(thread, "int32")) as other:
                    T.buffer_store(high, high[0] + integers[0, other], [0])
                    T.buffer_store(low, low[0] + integers[1, other], [0])
                before = Whole(high[0], low[0]).carried()
                mine = T.And(T.Not(target.less(before)), target.less(before.plus(own)))
                left = target.minus(before)
                searching = cell("int32", T.cast(T.And(active, mine), "int32"))
                T.buffer_store(high, T.int32(0), [0])
                T.buffer_store(low, T.int32(0), [0])
                with T.serial(0, searching[0] * run) as i:
                    part = Whole.of(T.bind(weight_of(limit)(weights[b, i, thread])))
                    T.buffer_store(high, high[0] + part.high, [0])
                    T.buffer_store(low, low[0] + part.low, [0])
                    passed = left.less(Whole(high[0], low[0]).carried())
                    with T.If(T.And(searching[0] > 0, passed)), T.Then():
                        T.buffer_store(tokens, first + T.cast(i, "int32"), [b])
                        T.buffer_store(searching, T.int32(0), [0])

            read()
            best, sound = likeliest()
            token, number = weigh(best)
            draws = T.bind(T.And(sound, request.inverse_temperature > T.float32(0)))
            with T.If(T.And(thread == 0, T.Not(draws))), T.Then():
                T.buffer_store(tokens, T.Select(sound, token, T.int32(NOT_FINITE)), [b])

            limit = cell("float32", T.float32(0))
            cuts = T.bind(T.And(draws, T.And(request.top_k > 0, request.top_k < number)))
            keep(cuts, T.float32(1), Whole(T.int32(0), request.top_k), limit, counting=True)
            total = together(sum_of(weights, run, weight_of(limit)))
            cuts = T.bind(T.And(draws, request.top_p != T.uint32(0)))
            left_out = T.float32(1) - cast(request.top_p, "float32", 1) * T.float32(2.0**-32)
            spare = total.approximately() * left_out * T.float32(0.5 / vocab)
            floor, whole = total.part(request.top_p)
            bound = floor.plus(Whole(T.int32(0), T.Select(whole, T.int32(0), T.int32(1))))
            least = T.bind(T.max(T.max(spare, limit[0]), T.float32(1)))
            keep(cuts, least, bound, limit, counting=False)
            own = sum_of(weights, run, weight_of(limit))
            target, _ = together(own).part(request.drawn)
            write(draws, own, target, limit)

    return kernel
