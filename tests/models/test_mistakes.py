"""Mistakes in RWKV-6 and 7 that accuracy tests would find: each moves the logits by a hundred times their bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rwkv_mlc.models.rwkv7 import MIXES
from rwkv_mlc.reference import forward, load, rwkv7
from support.accuracy import BOUND, TOKENS, trained_like_weights
from support.compiled import in_memory
from support.kernel_build import error

RIGHT_WKV, RIGHT_MIXING = rwkv7.wkv, rwkv7.time_mixing
WKV_FAULTS = {
    "the sign of what is removed": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, -a, s),
    "a is not applied to kk": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, np.ones_like(a), s),
    "the state is transposed": lambda r, w, k, v, kk, a, s: RIGHT_WKV(r, w, k, v, kk, a, s.swapaxes(1, 2)),
}
VALUE_FAULTS = {
    ("7", "the decay lacks exp(-1/2)"): ("att.decay", lambda w: w ** np.exp(0.5)),
    ("7", "the decay is its inverse"): ("att.decay", lambda w: 1 / w),
    ("7", "there is no bonus"): ("att.bonus", np.zeros_like),
    ("6", "no tanh in the mixes"): ("att.time_maa_w1_tanh", np.arctanh),
    ("6", "no tanh in the decay"): ("att.time_decay_w1_tanh", np.arctanh),
}


def shows(generation: str, **changed) -> bool:
    """Whether accuracy tests would find a fault: by a hundred times their bound."""
    config, parameters = load(in_memory(trained_like_weights(generation)))
    right, state = forward(config, parameters, TOKENS[:30])
    right, _ = forward(config, parameters, TOKENS[30:], state)
    with pytest.MonkeyPatch.context() as patch:
        for name in {"wkv", "time_mixing"} & changed.keys():
            patch.setattr(rwkv7, name, changed.pop(name))
        wrong, _ = forward(config, parameters | changed.pop("parameters", {}), TOKENS[30:], state, **changed)
    return error(wrong, right) > 100 * BOUND


@pytest.mark.parametrize("fault", WKV_FAULTS)
def test_faults_of_wkv_show(fault):
    assert shows("7", wkv=WKV_FAULTS[fault]) and not shows("7", wkv=RIGHT_WKV)


@pytest.mark.parametrize("generation, fault", VALUE_FAULTS)
def test_faults_of_values_show(generation, fault):
    role, wrong = VALUE_FAULTS[generation, fault]
    assert shows(generation, trace=lambda name, value: wrong(value) if name.endswith(role) else value)


def test_a_state_that_is_read_before_its_update_shows():
    def read_before_update(r, w, k, v, kk, a, s):
        out = np.empty_like(v)
        for t in range(len(k)):
            out[t] = (s @ r[t][:, :, None])[:, :, 0]
            _, s = RIGHT_WKV(*(x[t : t + 1] for x in (r, w, k, v, kk, a)), s)
        return out, s

    assert shows("7", wkv=read_before_update)


def test_values_of_another_layer_than_the_first_show():
    def own_values(config, p, x, last, s, v_first, trace):
        """The next layer gets this one's values; and, below, none."""
        found = {}
        result = RIGHT_MIXING(config, p, x, last, s, v_first, lambda n, v: found.setdefault(n, trace(n, v)))
        return (*result[:3], found["value"])

    assert shows("7", time_mixing=own_values)
    assert shows("7", time_mixing=lambda c, p, x, last, s, v_first, trace: RIGHT_MIXING(c, p, x, last, s, None, trace))


def test_a_bonus_of_the_key_as_it_was_shows():
    _, parameters = load(in_memory(trained_like_weights("7")))
    share, found = parameters["model.blocks.0.attention.r_k"], {}

    def of_the_first_layer(name: str, value: np.ndarray) -> np.ndarray:
        found[name] = value
        if name != "blocks.0.att.bonus":
            return value
        r, k, v = (found[f"blocks.0.att.{part}"].reshape(-1, *share.shape) for part in ("receptance", "key", "value"))
        return ((r * k * share).sum(-1, keepdims=True) * v).reshape(value.shape)

    assert shows("7", trace=of_the_first_layer)


@pytest.mark.parametrize("first, second", list(itertools.pairwise(MIXES)))
def test_swapped_mixes_show(first, second):
    _, parameters = load(in_memory(trained_like_weights("7")))
    names = [f"model.blocks.1.attention.time_mix_{target}" for target in (first, second)]
    assert shows("7", parameters=dict(zip(names, (parameters[name] for name in names[::-1]))))
