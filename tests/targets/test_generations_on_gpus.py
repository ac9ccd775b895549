"""RWKV-6, 7 and 7a, which are not among ``GENERATIONS`` yet, on GPUs: what the float64 reference computes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rwkv_mlc import models
from rwkv_mlc.models import GENERATIONS, UNREGISTERED
from support.accuracy import trained_like_weights
from support.kernel_build import error

TOKENS = np.random.default_rng(0).integers(0, 97, 50).tolist()
BOUNDS = {"q0f32": 2e-5, "q4f16_1": 2e-3, "q8f16_1": 2e-3, "q0f16": 2e-3}
WHOLE = [("vulkan", "6", "q4f16_1"), ("vulkan", "7", "q0f32"), ("cuda", "7", "q4f16_1")]
ALONE = [("vulkan", "7a", "q4f16_1"), ("cuda", "6", "q8f16_1"), ("cuda", "7a", "q0f16")]


def test_every_generation_is_on_every_device():
    assert {(gpu, name) for gpu, name, _ in WHOLE + ALONE} == {
        (gpu, name) for gpu in ("vulkan", "cuda") for name in UNREGISTERED
    }


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "UNSUPPORTED", {})
        for name, generation in UNREGISTERED.items():
            patch.setitem(GENERATIONS, name, generation)
        yield


@pytest.mark.parametrize("on_gpu, generation, scheme", ALONE, indirect=["on_gpu"])
def test_logits(generation, scheme, on_gpu, within):
    model = on_gpu(trained_like_weights(generation), scheme, functions=("score", "decode"))
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUNDS[scheme])
    within("decode", error(model.decode(TOKENS), expected), BOUNDS[scheme])


@pytest.mark.parametrize("on_gpu, generation, scheme", WHOLE, indirect=["on_gpu"])
def test_logits_and_states(generation, scheme, on_gpu, within):
    model = on_gpu(trained_like_weights(generation), scheme)
    runner, bound, expected = model.runner, BOUNDS[scheme], model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), bound)
    prefilled, decoded = runner.new_state(), runner.new_state()
    within("prefill", error(runner.run("prefill", [TOKENS], prefilled), expected[-1:]), bound)
    within("decode", error(model.decode(TOKENS, decoded), expected), bound)
    for name, found, array in zip(runner.state_names(), decoded.arrays(), prefilled.arrays()):
        assert error(found, array) < bound, name

    pool, slots, sequences = runner.new_state(5), [3, 0, 4], [TOKENS[:23], TOKENS[23:24], TOKENS[24:]]
    before = pool.arrays()
    together = [runner.run("prefill", [sequence[:-1] or sequence for sequence in sequences], pool, slots)]
    together.append(runner.run("batch_decode", [sequence[-1:] for sequence in sequences], pool, slots))
    alone = [model.reference(sequence if len(sequence) > 1 else sequence * 2)[-2:] for sequence in sequences]
    within("batch", error(np.stack(together), np.stack(alone, 1)), bound)
    for array, then in zip(pool.arrays(), before):
        assert np.array_equal(array[[1, 2]], then[[1, 2]])
