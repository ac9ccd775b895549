from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from rwkv_mlc.models import GENERATIONS, ModelOptions, generation_of, resolve
from rwkv_mlc.models.rwkv7 import MIXES
from rwkv_mlc.reference import forward, initial_state, load, rwkv4, rwkv5
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor
from support.accuracy import BOUND, trained_like_weights
from support.paths import GOLDEN
from support.rwkv_package import DECAY, SWITCHES, run_package
from support.synthetic import synthetic_checkpoint

TOKENS = np.random.default_rng(0).integers(0, 97, 48)

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data in {GOLDEN}")


def in_memory(tensors: dict[str, np.ndarray]) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, str(a.dtype), lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint("synthetic", "memory", "synthetic", lazy)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a part of the largest expected magnitude."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(params=GENERATIONS)
def model(request):
    return load(in_memory(synthetic_checkpoint(request.param)))


@pytest.mark.parametrize("attention_size", [64, 192])
def test_another_attention_size_agrees_with_rwkv_package(attention_size, tmp_path, monkeypatch):
    """RWKV-LM's ``dim_att``, token by token: the package reads no prompts of such models, and runs none of generation 5."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    package = pytest.importorskip("rwkv.model")
    tensors = synthetic_checkpoint("4", attention_size=attention_size)
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, tmp_path / "model.pth")
    peer = package.RWKV(model=str(tmp_path / "model"), strategy="cpu fp32", verbose=False)
    expected, state = [], None
    for token in TOKENS.tolist():
        logits, state = peer.forward([token], state)
        expected.append(logits.numpy().copy())
    ours, _ = forward(*load(in_memory(tensors)), TOKENS)
    assert relative(np.stack(expected), ours) < 1e-5
    again, _ = forward(*load(in_memory(tensors)), TOKENS[5:], forward(*load(in_memory(tensors)), TOKENS[:5])[1])
    assert relative(again, ours[5:]) < 1e-11


@pytest.mark.parametrize(
    "generation, precision",
    [(name, precision) for name in GENERATIONS for precision in ("float32", "float64")[: 1 if name in SWITCHES else 2]],
)
def test_agrees_with_rwkv_package(generation, precision, tmp_path):
    """In float32 as the package ships, and in float64 where it runs in it."""
    bound = {"float32": 1e-5, "float64": 1e-11}[precision]
    models = [synthetic_checkpoint(generation, seed=2, hidden_size=3 * n, head_size=n, layers=2) for n in (64, 32)]

    def as_the_package(name: str, value: np.ndarray) -> np.ndarray:
        return value ** DECAY.get(generation, 1) if name.endswith("att.decay") else value

    for tensors, found in zip(models, run_package(generation, models, TOKENS.tolist(), tmp_path, precision)):
        ours, our_state = forward(*load(in_memory(tensors)), TOKENS, trace=as_the_package)
        assert found.logits.dtype == precision
        assert relative(found.logits, ours) < bound
        assert relative(found.single, ours) < bound
        for states in (found.states, found.single_states):  # by layer, in our order of the roles, and laid out as ours
            assert len(states) == len(our_state)
            for theirs, array in zip(states, our_state.values()):
                assert relative(theirs, array) < bound


@needs_golden
@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K"])
def test_agrees_with_rwkv_cpp(name):
    checkpoint = open_checkpoint(str(GOLDEN / f"tiny-rwkv-{name}-FP32.bin"))
    logits, _ = forward(*load(checkpoint, options=ModelOptions(head_size_divisor=1)), list(b'"in'))
    assert relative(logits[-1], np.fromfile(GOLDEN / f"expected-logits-{name}.bin", "<f4")) < 1e-5


@needs_golden
def test_rwkv_cpp_fp16_is_fp32_with_rounded_matrices():
    source, expected = (open_checkpoint(str(GOLDEN / f"tiny-rwkv-4v0-660K-{dtype}.bin")) for dtype in ("FP16", "FP32"))
    logits, _ = forward(*load(source), list(b'"in'))
    config, parameters, _ = resolve(expected)
    rounded = load(expected)[1]
    for p in parameters:
        if p.role != "vector":
            rounded[p.name] = rounded[p.name].astype(np.float16)
    assert relative(logits, forward(config, rounded, list(b'"in'))[0]) < 1e-12
    assert relative(logits[-1], np.fromfile(GOLDEN / "expected-logits-4v0-660K.bin", "<f4")) < 1e-3


def test_wkv4_is_the_weighted_average_of_the_paper():
    rng = np.random.default_rng(2)
    t, c = 9, 5
    k, v = rng.normal(size=(2, t, c))
    w, u = -np.exp(rng.normal(size=c)), rng.normal(size=c)
    start = np.zeros(c), np.zeros(c), np.full(c, -1e30)
    out, a, b, p = rwkv4.wkv(k, v, w, u, *start)
    for now in range(t):
        weight = np.exp([u + k[i] if i == now else (now - 1 - i) * w + k[i] for i in range(now + 1)])
        np.testing.assert_allclose(out[now], (weight * v[: now + 1]).sum(0) / weight.sum(0), rtol=1e-12)
    weight = np.exp([(t - 1 - i) * w + k[i] for i in range(t)])
    np.testing.assert_allclose(a * np.exp(p), (weight * v).sum(0), rtol=1e-12)
    np.testing.assert_allclose(b * np.exp(p), weight.sum(0), rtol=1e-12)

    shifted, *_ = rwkv4.wkv(k + 1000, v, w, u, *start)
    np.testing.assert_allclose(shifted, out, rtol=1e-10)
    k[4] += 2000
    dominated, *_ = rwkv4.wkv(k, v, w, u, *start)
    np.testing.assert_allclose(dominated[:6], [*out[:4], v[4], v[4]], rtol=1e-12)


def test_wkv5_is_the_decayed_sum_of_the_paper():
    rng = np.random.default_rng(3)
    t, h, n = 9, 2, 4
    r, k, v = rng.normal(size=(3, t, h, n))
    w, u = rng.uniform(0.1, 0.99, (h, n)), rng.normal(size=(h, n))
    first = rng.normal(size=(h, n, n))
    out, last = rwkv5.wkv(r, k, v, w, u, first)

    def state(now: int) -> np.ndarray:
        past = [w[..., None] ** (now - 1 - i) * np.einsum("hk,hv->hkv", k[i], v[i]) for i in range(now)]
        return w[..., None] ** now * first + sum(past)

    for now in range(t):
        bonus = np.einsum("hk,hk,hv->hkv", u, k[now], v[now])
        np.testing.assert_allclose(out[now], np.einsum("hk,hkv->hv", r[now], state(now) + bonus), rtol=1e-10)
    np.testing.assert_allclose(last, state(t), rtol=1e-12)


@pytest.mark.parametrize("cuts", [[1], [7], [47], [1, 2, 8, 9, 31], range(1, 48)])
def test_state_carries_exactly(model, cuts):
    whole, end = forward(*model, TOKENS)
    state, pieces = None, []
    for piece in np.split(TOKENS, cuts):
        logits, state = forward(*model, piece, state)
        pieces.append(logits)
    assert relative(np.concatenate(pieces), whole) < 1e-12
    assert state.keys() == end.keys()
    assert all(relative(state[key], end[key]) < 1e-12 for key in end)


def test_arguments_stay_as_they_are(model):
    config, parameters = model
    _, state = forward(config, parameters, TOKENS[:5])
    before = {key: array.copy() for key, array in state.items()}
    weights = {key: array.copy() for key, array in parameters.items()}
    tokens = TOKENS.copy()
    _, after = forward(config, parameters, tokens, state)
    assert all(np.array_equal(state[key], before[key]) for key in before)
    assert all(np.array_equal(parameters[key], weights[key]) for key in weights)
    assert np.array_equal(tokens, TOKENS)
    assert not any(np.shares_memory(after[key], state[key]) for key in state)


def test_no_tokens_change_nothing(model):
    config, parameters = model
    _, state = forward(config, parameters, TOKENS[:5])
    logits, after = forward(config, parameters, [], state)
    assert logits.shape == (0, config.vocab_size)
    assert all(np.array_equal(state[key], after[key]) for key in state)
    assert not any(np.shares_memory(after[key], state[key]) for key in state)


def test_initial_state_is_the_default(model):
    config, parameters = model
    state = initial_state(config)
    heads, size = config.num_heads, config.head_size
    if config.generation == "4":
        shapes = dict.fromkeys(("att_x", "att_a", "att_b", "att_p", "ffn_x"), (128,))
    else:
        shapes = {"att_x": (128,), "att_kv": (heads, size, size), "ffn_x": (128,)}
    assert {key: array.shape for key, array in state.items()} == {
        (layer, role): shape for layer in range(3) for role, shape in shapes.items()
    }
    assert all(np.all(array == (-1e30 if role == "att_p" else 0)) for (_, role), array in state.items())
    assert np.array_equal(forward(config, parameters, TOKENS, state)[0], forward(config, parameters, TOKENS)[0])


def test_float32_parameters_are_computed_in_float64(model):
    config, parameters = model
    single = {name: array.astype(np.float32) for name, array in parameters.items()}
    double = {name: array.astype(np.float64) for name, array in single.items()}
    logits, state = forward(config, single, TOKENS)
    assert logits.dtype == np.float64 and {array.dtype for array in state.values()} == {np.dtype(np.float64)}
    assert relative(logits, forward(config, double, TOKENS)[0]) < 1e-13


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_tensor_matters(generation):
    tensors = synthetic_checkpoint(generation)
    expected, _ = forward(*load(in_memory(tensors)), TOKENS)
    for name, array in tensors.items():
        moved = np.roll(array.reshape(-1), 1).reshape(array.shape)
        logits, _ = forward(*load(in_memory({**tensors, name: moved})), TOKENS)
        assert relative(logits, expected) > 1e-3, name


@pytest.mark.parametrize("first, second", [("key", "value"), ("receptance", "key"), ("value", "output")])
def test_swapped_projections_show(model, first, second):
    config, parameters = model
    first, second = (f"model.blocks.1.attention.{name}.weight" for name in (first, second))
    swapped = {**parameters, first: parameters[second], second: parameters[first]}
    assert relative(forward(config, swapped, TOKENS)[0], forward(config, parameters, TOKENS)[0]) > 1e-2


@pytest.mark.parametrize("first, second", list(itertools.pairwise(MIXES)))
def test_swapped_mixes_of_rwkv_7_show(first, second):
    config, parameters = load(in_memory(trained_like_weights("7")))
    expected, _ = forward(config, parameters, TOKENS)
    first, second = (f"model.blocks.1.attention.time_mix_{target}" for target in (first, second))
    swapped = parameters | {first: parameters[second], second: parameters[first]}
    assert relative(forward(config, swapped, TOKENS)[0], expected) > 100 * BOUND


def test_transposed_or_swapped_state_shows(model):
    config, parameters = model
    _, state = forward(config, parameters, TOKENS[:20])
    wrong = dict(state)
    for layer in range(config.num_hidden_layers):
        if config.generation == "4":
            wrong[layer, "att_a"], wrong[layer, "att_b"] = state[layer, "att_b"], state[layer, "att_a"]
        else:
            wrong[layer, "att_kv"] = state[layer, "att_kv"].swapaxes(1, 2)
    expected, _ = forward(config, parameters, TOKENS[20:], state)
    assert relative(forward(config, parameters, TOKENS[20:], wrong)[0], expected) > 1e-2


@pytest.mark.parametrize("generation", list(GENERATIONS)[1:])
def test_head_size_divisor_matters(generation):
    config, parameters = load(in_memory(synthetic_checkpoint(generation)))
    other = dataclasses.replace(config, head_size_divisor=1)
    assert config.head_size_divisor == 8
    assert relative(forward(other, parameters, TOKENS)[0], forward(config, parameters, TOKENS)[0]) > 1e-3


def test_trace_sees_every_value_and_changes_none(model):
    config, parameters = model
    found = {}
    traced, _ = forward(config, parameters, TOKENS, trace=lambda name, value: found.setdefault(name, value))
    assert np.array_equal(traced, forward(config, parameters, TOKENS)[0])
    assert sorted(found) == sorted(name for name in generation_of(config).values(config) if ".state." not in name)
    assert {len(value) for value in found.values()} == {len(TOKENS)}


def test_what_a_trace_returns_goes_on(model):
    """Every value matters to the logits, and rounding all of them to float16 costs what float16 must."""
    config, parameters = model
    expected, _ = forward(config, parameters, TOKENS)
    for changed in generation_of(config).values(config):
        if ".state." not in changed:
            logits, _ = forward(config, parameters, TOKENS, trace=lambda n, x: np.roll(x, 1, -1) if n == changed else x)
            assert relative(logits, expected) > 1e-3, changed
    rounded, _ = forward(config, parameters, TOKENS, trace=lambda _, x: x.astype(np.float16).astype(np.float64))
    assert 1e-4 < relative(rounded, expected) < 0.1


def test_float32(model):
    config, parameters = model
    single = {name: array.astype(np.float32) for name, array in parameters.items()}
    logits, state = forward(config, single, TOKENS, dtype=np.float32)
    assert {logits.dtype, *(array.dtype for array in state.values())} == {np.dtype(np.float32)}
    assert 0 < relative(logits, forward(config, parameters, TOKENS)[0]) < 1e-3


@pytest.mark.parametrize("generation", GENERATIONS)
def test_rescaling_changes_no_logits(generation):
    """Halving the residual stream after every second layer, and what is added to it after."""
    checkpoint = in_memory(synthetic_checkpoint(generation, layers=5))
    expected, _ = forward(*load(checkpoint), TOKENS)
    config, parameters = load(checkpoint, options=ModelOptions(rescale_every=2))
    found = {}
    logits, _ = forward(config, parameters, TOKENS, trace=lambda name, value: found.setdefault(name, value))
    assert relative(logits, expected) < 1e-4  # the norms' epsilon is added to less
    plain = {}
    forward(*load(checkpoint), TOKENS, trace=lambda name, value: plain.setdefault(name, value))
    for layer, halvings in enumerate((0, 0, 1, 1, 2)):
        name = f"blocks.{layer}.ffn.residual"
        assert relative(found[name] * 2**halvings, plain[name]) < 1e-4
