"""Slots of states: what each holds, whose it is, and that none touches another."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_mlc import Engine, UserError
from rwkv_mlc.engine.state_pool import StatePool
from support.paths import DEMO

STORY = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture
def tokens(engine) -> list[int]:
    return engine.tokenizer.encode(STORY)[:100]


@pytest.fixture
def pool(engine) -> StatePool:
    return StatePool.of_slots(engine.runner, 4)


def read(pool: StatePool, slot: int, tokens: list[int]) -> np.ndarray:
    return pool.runner.run("prefill", [tokens], pool.state, [slot])[0]


def held(pool: StatePool, slot: int) -> list[np.ndarray]:
    return [array[slot : slot + 1] for array in pool.state.arrays()]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_slots_begin_afresh_however_often(engine, pool, tokens):
    fresh = engine.new_state().arrays()
    first, second = pool.allocate(), pool.allocate()
    assert (first, second, pool.free_slots, pool.slots) == (0, 1, 2, 4)
    for slot in (first, second):
        read(pool, slot, tokens[: 20 + slot])
    others = held(pool, second)
    pool.free(first)
    assert pool.allocate() == first
    assert_equal(held(pool, first), fresh)
    assert_equal(held(pool, second), others)


def test_running_out_of_slots(pool):
    slots = [pool.allocate() for _ in range(4)]
    for take in (pool.allocate, lambda: pool.copy(2), lambda: pool.load(pool.runner.new_state())):
        with pytest.raises(UserError, match="All 4 state slots are in use"):
            take()
    pool.free(slots[2])
    assert pool.allocate() == 2


def test_slots_that_are_not_in_use(pool):
    slot = pool.allocate()
    pool.free(slot)
    for use in (pool.free, pool.copy, pool.save):
        for unused in (slot, 3, 4, -1):
            with pytest.raises(UserError, match=f"The state slot {unused} is not in use"):
                use(unused)
    assert pool.free_slots == 4
    with pytest.raises(UserError, match="at least one slot, not 0"):
        StatePool.of_slots(pool.runner, 0)


def test_a_copy_goes_on_alike_and_its_own_way(pool, tokens):
    slot = pool.allocate()
    read(pool, slot, tokens[:50])
    copy = pool.copy(slot)
    before = held(pool, slot)
    assert_equal(held(pool, copy), before)
    expected = read(pool, copy, tokens[50:])
    assert_equal(held(pool, slot), before)
    np.testing.assert_array_equal(read(pool, slot, tokens[50:]), expected)
    assert_equal(held(pool, slot), held(pool, copy))


def test_slots_in_files(engine: Engine, pool, tokens, tmp_path):
    alone = engine.new_state()
    slot = pool.allocate()
    np.testing.assert_array_equal(engine.prefill(tokens[:60], alone), read(pool, slot, tokens[:60]))
    saved = pool.save(slot)
    engine.save_state(saved, tmp_path / "a.state")
    assert saved.slots == 1
    assert_equal(saved.arrays(), alone.arrays())
    read(pool, slot, tokens)
    assert_equal(saved.arrays(), alone.arrays())
    loaded = pool.load(engine.load_state(tmp_path / "a.state"))
    assert loaded == 1
    np.testing.assert_array_equal(read(pool, loaded, tokens[60:]), engine.prefill(tokens[60:], alone))


def test_a_pool_around_a_state_of_the_callers(engine, tokens):
    state = engine.runner.new_state(2)
    pool = StatePool(engine.runner, state)
    assert (pool.slots, pool.free_slots, pool.state) == (2, 0, state)
    read(pool, 1, tokens)
    pool.free(0)
    copied = pool.copy(1)
    arrays = state.arrays()
    assert_equal([array[copied] for array in arrays], [array[1] for array in arrays])
