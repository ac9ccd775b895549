"""wkv of RWKV-7, in float32: formulas and the layout of the state are those of ``cpu.wkv7``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import constant, prim_func, span, splat
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from .heads import Keys, part_of_head, total, total_of
from .stages import COPIED, Stages, token_bytes, tokens_of_a_stage
from .threads import barrier, each, lanes_of, registers, shared, vector_of

INPUTS = ("r", "w", "k", "v", "a", "v_first", "nu")
VECTORS = ("k_k", "k_a", "r_k")
SHORTEST = 1e-12  # as in ``cpu.wkv7``


@lru_cache(None)
def wkv7(
    num_heads: int,
    head_size: int,
    phase: Phase = "prefill",
    in_place: bool = False,
    async_copies: bool = False,
) -> tirx.PrimFunc:
    """(r, w, k, v, a, v_first, nu, k_k, k_a, r_k, state, segment_ends -> out, bonus, out_state), float32; arguments as in
    ``cpu.wkv7``. ``async_copies`` says that the device has them.

    Rows of the state do not depend on each other: a head's are spread over several blocks, and a block works out for itself
    what they have in common, the keys that are removed and added. The threads of a row share its keys, and add up twice a
    token: what the state holds of the key that is removed, which all of them wait for, and the output, which waits for the
    end of the stage."""
    heads, size = num_heads, head_size
    rows, parts = part_of_head(size)
    threads, keys = rows * parts, size // parts
    copies = async_copies and phase == "prefill" and rows % COPIED == 0
    brought = token_bytes(4, size, copies) + token_bytes(3, rows, copies)
    made, sums = 4 * (3 * size + rows + rows * parts), 4 * (2 * rows * parts + 2 * threads)
    tokens = 1 if phase == "decode" else min(threads, tokens_of_a_stage(brought + made, sums, copies))
    turns = min(2, tokens)
    wide = vector_of("float32", size)
    lanes = min(threads // tokens, size // wide)
    R, W, K, A = range(4)

    @prim_func
    def kernel():
        vectors, states = dict.fromkeys(VECTORS, (heads, size)), {"state": (heads, size, size)}
        batch, inputs, (k_k, k_a, r_k), (state,), ends, slots, (out, bonus), (out_state,) = recurrence_args(
            heads * size, INPUTS, vectors, states, phase, in_place, outputs=("out", "bonus")
        )
        r, w, k, v, a, v_first, nu = inputs

        def scan(b, h, start, thread):
            """The rows of head h from ``start`` on."""
            slot, first, length = sequence(b, slots, ends)
            row, part = T.bind(thread // parts), T.bind(thread % parts)
            channel, mine = T.bind(h * size + start + row), Keys(size, part, parts)
            stages = Stages((batch, b), (heads * size, channel), first, length, tokens, thread, threads, copies)
            by_key = stages.staged((r, w, k, a), h * size, size)
            by_row = stages.staged((v, v_first, nu), h * size + start, rows)
            removed, again, added = (shared((tokens, size)) for _ in range(3))
            values = shared((tokens, rows))
            squares, bonuses = shared((tokens, lanes)), shared((tokens, lanes))
            held, read = [shared((rows, parts)) for _ in range(turns)], shared((tokens, rows, parts))
            s, acc = registers((keys,)), registers((2,))

            def make_ready(stage) -> None:
                """Key that is removed, its product with a, key that is added; value; sums over the head."""
                token, lane = T.bind(thread // lanes), T.bind(thread % lanes)

                def each_key(emit) -> None:
                    """``emit(keys, key to remove, key to add, a, r_k * receptance)``, vectors."""
                    one = constant(1.0, wide)

                    def vector(_, j) -> None:
                        keys = span(j, wide)
                        r, k, a = (T.bind(by_key.held[by_key.at(stage, n, token, keys)]) for n in (R, K, A))
                        added = T.bind(k * (one + (a - one) * k_a[h, keys]))
                        emit(keys, T.bind(k * k_k[h, keys]), added, a, r * r_k[h, keys])

                    each(size, lane, lanes, wide, vector)

                def add_up() -> None:
                    for i in range(2):
                        T.buffer_store(acc, T.float32(0.0), [i])

                    def add(_, removes, adds, _a, reads) -> None:
                        for i, products in enumerate((removes * removes, reads * adds)):
                            T.buffer_store(acc, acc[i] + total(lanes_of(products, wide)), [i])

                    each_key(add)
                    for i, sums in enumerate((squares, bonuses)):
                        T.buffer_store(sums, acc[i], [token, lane])

                def put() -> None:
                    norm = T.sqrt(total_of(squares, token))
                    scale = T.bind(T.float32(1.0) / T.max(norm, T.float32(SHORTEST)))

                    def put(keys, removes, adds, a, _reads) -> None:
                        unit = T.bind(removes * splat(scale, wide))
                        for target, value in ((removed, unit), (again, unit * a), (added, adds)):
                            T.buffer_store(target, value, [token, keys])

                    each_key(put)

                def mix(_, place) -> None:
                    token, i = T.bind(place // rows), T.bind(place % rows)
                    value, of_first, share = (by_row.held[by_row.at(stage, n, token, i)] for n in range(3))
                    T.buffer_store(values, value + (of_first - value) * share, [token, i])

                with T.If(token < tokens), T.Then():
                    add_up()
                each(tokens * rows, thread, threads, 1, mix)
                barrier()
                with T.If(token < tokens), T.Then():
                    put()
                barrier()

            def compute(stage, token, turn: int, inside) -> None:
                """The state after one token, and the thread's share of what is read of it."""

                def of(source: int) -> list:
                    return mine.of(lambda keys: by_key.held[by_key.at(stage, source, token, keys)])

                def made(ready) -> list:
                    return mine.of(lambda keys: ready[token, keys])

                unit, decay, removal, addition, asked = made(removed), of(W), made(again), made(added), of(R)
                T.buffer_store(held[turn], total([s[j] * unit[j] for j in range(keys)]), [row, part])
                value = T.bind(values[token, row])
                barrier()
                gone = T.bind(total_of(held[turn], row))
                with T.If(inside), T.Then():
                    for j in range(keys):
                        T.buffer_store(s, s[j] * decay[j] - gone * removal[j] + value * addition[j], [j])
                    T.buffer_store(read, total([s[j] * asked[j] for j in range(keys)]), [token, row, part])

            def put_out(token, i, at) -> None:
                T.buffer_store(out, total_of(read, token, i), [0, at, h * size + start + i])
                weight = total_of(bonuses, token)
                T.buffer_store(bonus, weight * values[token, i], [0, at, h * size + start + i])

            for vector, place in mine.vectors():
                T.buffer_store(s, state[slot, h, start + row, vector], [place])
            with stages.each() as stage:
                make_ready(stage)
                stages.each_token(stage, compute, turns)
                barrier()
                stages.put_out(stage, rows, put_out)
            for vector, place in mine.vectors():
                T.buffer_store(out_state, s[place], [slot, h, start + row, vector])

        blocks = size // rows
        with T.thread_binding(0, batch * heads * blocks, thread="blockIdx.x") as i:
            with T.thread_binding(0, threads, thread="threadIdx.x") as thread:
                scan(i // (heads * blocks), i // blocks % heads, i % blocks * rows, thread)

    return kernel
