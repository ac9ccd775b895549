"""Figures and their intervals, of numbers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_mlc.evaluation.metric import Figure, Metric, blocks, plain


def test_values():
    assert Metric.share(np.array([True, False, True, True])).figure().value == 0.75
    assert Metric("mean", np.array([6.0, 2.0]), np.array([3.0, 1.0])).figure().value == 2
    assert Metric("perplexity", np.array([math.log(4), 0.0]), np.ones(2)).figure().value == pytest.approx(2)
    assert Metric("perplexity", np.array([1e6]), np.ones(1)).figure().value == math.inf


def test_an_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(7).normal(3, 2, 900)
    figure = Metric("mean", values, np.ones(900)).figure()
    half = 1.96 * values.std() / math.sqrt(900)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_an_interval_of_equal_units_is_a_point():
    assert Metric("mean", np.full(5, 2.5), np.ones(5)).figure() == Figure(2.5, 2.5, 2.5)


def test_pairing():
    """What two models share is no part of their difference."""
    rng = np.random.default_rng(1)
    hard = rng.normal(2, 3, 400)
    a, b = Metric("mean", hard, np.ones(400)), Metric("mean", hard + rng.normal(0.1, 0.01, 400), np.ones(400))
    assert a.figure().high - a.figure().low > 0.5
    difference = b.against(a)
    assert 0.098 < difference.low < difference.value < difference.high < 0.102
    same = a.against(a)
    assert same == Figure(0, 0, 0)
    ratio = Metric("perplexity", hard + math.log(2), np.ones(400)).against(Metric("perplexity", hard, np.ones(400)))
    assert ratio.value == pytest.approx(2) and ratio.high - ratio.low < 1e-9


def test_seeds():
    metric = Metric("mean", np.arange(10.0), np.ones(10))
    assert metric.figure(1) == metric.figure(1) != metric.figure(2)


def test_other_units():
    a = Metric.share(np.ones(3))
    with pytest.raises(ValueError, match="not of the same units"):
        a.against(Metric.share(np.ones(4)))
    with pytest.raises(ValueError, match="not of the same units"):
        a.against(Metric("mean", np.ones(3), np.ones(3)))


def test_blocks():
    sums, sizes = blocks(np.arange(7), 3)
    assert sums.tolist() == [3, 12, 6] and sizes.tolist() == [3, 3, 1]


def test_json_has_no_infinity():
    assert plain(Figure(math.inf, 1.5, math.inf)) == {"value": None, "interval": [1.5, None]}
