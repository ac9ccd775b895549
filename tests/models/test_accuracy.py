"""Compiled libraries against the float64 reference: the figures that the project promises.

Run with ``-s`` to see what was measured. ``tools/pin_demo_answers.py`` writes the pinned answers of the demo models again.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import reference
from rwkv_mlc.models import GENERATIONS, ModelOptions
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint
from support.accuracy import (
    ALONE,
    BATCHED,
    BOUND,
    DEMO_MODELS,
    FUNCTIONS,
    PROMPTS,
    TOKENS,
    greedy,
    held_out,
    target_of,
    trained_like_weights,
    with_outliers,
)
from support.compiled import QUICK, conditioning
from support.kernel_build import error
from support.paths import DEMOS, GOLDEN
from support.plain import PLAIN
from support.rwkv_package import run_package
from support.synthetic import synthetic_checkpoint

PINNED = Path(__file__).with_name("demo_greedy.json")

FLOAT_ROUNDING = 3e-7  # what float32 arithmetic amounts to, as a change of the weights at random
INTEGER_ROUNDING = 7e-7  # the same for decoding with activations of 21 bits
MATRIX = list(product(GENERATIONS, SCHEMES))
FAMILIES = [*((*pair, "fused") for pair in MATRIX), *((*pair, "plain") for pair in PLAIN["llvm"])]
BATCHES = [*product(GENERATIONS, BATCHED, ["fused"]), ("4", "q0f32", "plain"), ("5.2", "q4f16_1", "plain")]


@pytest.mark.parametrize("generation, scheme, family", FAMILIES)
def test_logits(generation, scheme, family, compiled, within):
    """``score`` and ``prefill`` compute in float32 under every scheme, ``decode`` with integers where the CPU has the dots and
    kernels are ours."""
    model = compiled(
        trained_like_weights(generation),
        scheme,
        target_of(generation, scheme),
        functions=FUNCTIONS[scheme],
        family=family,
    )
    assert conditioning(model, TOKENS) < 6
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUND)
    last = model.runner.run("prefill", [TOKENS], model.runner.new_state())
    within("prefill", error(last[0], expected[-1]), BOUND)
    within("decode", error(model.decode(TOKENS), expected), BOUND)


@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q8f16_1"])
@pytest.mark.parametrize("generation, factor", [("4", 1e3), ("5.2", 1e2), ("5.2", 1e3), ("5.2", 1e6), ("7", 1e3)])
def test_logits_beside_outliers(generation, factor, scheme, compiled, within):
    """Channels that would take the precision of a group's common scale from the others cost nothing."""
    weights = with_outliers(trained_like_weights(generation), factor)
    model = compiled(weights, scheme, target_of(generation, scheme), functions=FUNCTIONS[scheme])
    expected = model.reference(TOKENS)
    last = model.runner.run("prefill", [TOKENS], model.runner.new_state())
    within("prefill", error(last[0], expected[-1]), BOUND)
    within("decode", error(model.decode(TOKENS), expected), BOUND)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_logits_of_random_weights(generation, seed, compiled, within):
    """Errors are what rounding must cost a model, however much it enlarges them.

    In generation 5 that is much: a head that remembers little puts out little more than (r . u k) v, which is all but
    zero at some token, and the group norm brings it back to unit variance with its error."""
    weights = synthetic_checkpoint(generation, seed=seed)
    for scheme, relative in (("q0f32", FLOAT_ROUNDING), ("q4f16_1", INTEGER_ROUNDING)):
        model = compiled(weights, scheme, target_of(generation, scheme))
        expected, enlarged = model.reference(TOKENS), conditioning(model, TOKENS)
        within(f"{scheme} score", error(model.score(TOKENS), expected), 3 * FLOAT_ROUNDING * enlarged)
        within(f"{scheme} decode, x{enlarged:.1f}", error(model.decode(TOKENS), expected), 3 * relative * enlarged)


@pytest.mark.parametrize("generation, scheme, family", BATCHES)
def test_chunks_are_one_call(generation, scheme, family, compiled, within):
    model = compiled(trained_like_weights(generation), scheme, target_of(generation, scheme), family=family)
    whole = model.runner.new_state()
    expected = model.score(TOKENS, whole)
    for chunk in (1, 7, 64):
        state = model.runner.new_state()
        within(f"chunks of {chunk}", error(model.score(TOKENS, state, chunk), expected), 1e-5)
        for name, found, array in zip(model.runner.state_names(), state.arrays(), whole.arrays()):
            assert error(found, array) < 1e-5, name


@pytest.mark.parametrize("generation, scheme, family", FAMILIES)
def test_prefill_is_many_decodes(generation, scheme, family, compiled, within):
    model = compiled(
        trained_like_weights(generation),
        scheme,
        target_of(generation, scheme),
        functions=FUNCTIONS[scheme],
        family=family,
    )
    prefilled, decoded = model.runner.new_state(), model.runner.new_state()
    last = model.runner.run("prefill", [TOKENS], prefilled)
    within("logits", error(model.decode(TOKENS, decoded)[-1:], last), 1e-5)
    for name, found, array in zip(model.runner.state_names(), decoded.arrays(), prefilled.arrays()):
        assert error(found, array) < 1e-5, name


@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_state_continues_from_a_copy(generation, scheme, compiled):
    """Bit for bit, and the state that was copied stays as it was."""
    model = compiled(trained_like_weights(generation), scheme, target_of(generation, scheme))
    state = model.runner.new_state()
    model.score(TOKENS[:77], state)
    copy, restored, before = state.copy(), model.runner.state_from(state.arrays()), state.arrays()
    expected = model.decode(TOKENS[77:], copy)
    assert all(np.array_equal(now, then) for now, then in zip(state.arrays(), before))
    assert np.array_equal(model.decode(TOKENS[77:], restored), expected)
    assert np.array_equal(model.decode(TOKENS[77:], state), expected)


@pytest.mark.parametrize("generation, scheme, family", BATCHES)
def test_ragged_batches(generation, scheme, family, compiled, within):
    """Three sequences in slots 3, 0 and 4 of five are each what they are alone; the other slots stay bit for bit.

    Random states give generation 4 denominators about zero, which enlarge rounding a thousandfold (6e-4 from float64 with
    plain kernels, 9e-5 with fused ones): sums have to be in the same order."""
    model = compiled(trained_like_weights(generation), scheme, target_of(generation, scheme), family=family)
    runner = model.runner
    rng = np.random.default_rng(1)
    pool = runner.state_from(rng.normal(size=array.shape).astype(np.float32) for array in runner.new_state(5).arrays())
    before = pool.arrays()
    slots, sequences = [3, 0, 4], [TOKENS[:23], TOKENS[23:24], TOKENS[24:64]]
    alone = [runner.state_from(array[slot : slot + 1] for array in before) for slot in slots]

    def check(what: str, function: str, batched: np.ndarray, pieces: list[list[int]]) -> None:
        single = [runner.run(function, [piece], state)[-1] for piece, state in zip(pieces, alone)]
        within(what, error(batched, np.stack(single)), 1e-6)
        for name, array, old, *ours in zip(runner.state_names(), pool.arrays(), before, *(s.arrays() for s in alone)):
            assert error(array[slots], np.concatenate(ours)) < 1e-6, name
            assert np.array_equal(array[[1, 2]], old[[1, 2]]), name

    check("prefill", "prefill", runner.run("prefill", sequences, pool, slots), sequences)
    for token in TOKENS[64:68]:
        tokens = [[token], [token + 1 if token < 96 else 0], [5]]
        check("batch_decode", "decode", runner.run("batch_decode", tokens, pool, slots), tokens)

    one, other = runner.new_state(), runner.new_state()
    for token in TOKENS[:5]:
        row = runner.run("batch_decode", [[token]], one)
        assert error(row, runner.run("decode", [[token]], other)) < 1e-6


@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("attention_size", [64, 192])
@pytest.mark.parametrize("generation", ["4", "5.2", "6", "7"])
def test_a_time_mixing_of_its_own_size(generation, attention_size, scheme, compiled, within):
    weights = synthetic_checkpoint(generation, layers=1, head_size=32, attention_size=attention_size)
    model = compiled(weights, scheme, QUICK if generation in ("6", "7") else "llvm", functions=["score", "decode"])
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUND)
    within("decode", error(model.decode(TOKENS), expected), BOUND)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_score_of_several_sequences(generation, compiled, within):
    model = compiled(trained_like_weights(generation), "q0f32", target_of(generation, "q0f32"))
    sequences = [TOKENS[:9], TOKENS[9:10], TOKENS[10:50]]
    scored = model.runner.run("score", sequences, model.runner.new_state(3))
    within("score", error(scored, np.concatenate([model.score(tokens) for tokens in sequences])), 1e-6)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_agrees_with_rwkv_package(generation, compiled, within, tmp_path):
    """Both in float32, so up to 1e-5 from either side."""
    tensors = trained_like_weights(generation)
    (expected,) = run_package(generation, [tensors], TOKENS, tmp_path)
    model = compiled(open_checkpoint(str(tmp_path / "0.pth")), "q0f32", target_of(generation, "q0f32"))
    within("score", error(model.score(TOKENS), expected.logits), BOUND)
    within("decode", error(model.decode(TOKENS), expected.single), BOUND)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data in {GOLDEN}")
@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K"])
def test_agrees_with_rwkv_cpp(name, compiled, within):
    """12 layers of 64 channels; heads of 8 in generation 5."""
    checkpoint = open_checkpoint(str(GOLDEN / f"tiny-rwkv-{name}-FP32.bin"))
    model = compiled(checkpoint, "q0f32", options=ModelOptions(head_size_divisor=1), functions=["score", "decode"])
    expected = np.fromfile(GOLDEN / f"expected-logits-{name}.bin", "<f4")
    within("score", error(model.score(list(b'"in'))[-1], expected), BOUND)
    within("decode", error(model.decode(list(b'"in'))[-1], expected), BOUND)


@pytest.mark.parametrize(
    "generation, vocab_size, hidden_size, head_size, intermediate_size, scheme",
    [
        ("4", 101, 40, 8, 90, "q4f16_1"),  # nothing a multiple of 16 or of a group
        ("5.2", 97, 40, 8, 90, "q4f16_1"),
        ("5.2", 101, 40, 8, 90, "q3f16_1"),
        ("4", 50432, 40, 8, 90, "q0f16"),
        ("4", 1009, 97, 1, None, "q8f16_1"),
        ("5.2", 1009, 72, 24, None, "q4f16_1"),
        ("5.1", 50277, 96, 32, None, "q8f16_1"),
        ("5.0", 97, 256, 128, None, "q4f16_0"),
        ("5.2", 97, 97, 97, None, "q0f32"),
        ("6", 97, 40, 8, 90, "q3f16_1"),
        ("7", 101, 40, 8, 90, "q8f16_1"),
        ("7a", 101, 72, 24, None, "q4f16_1"),
    ],
)
def test_odd_widths(generation, vocab_size, hidden_size, head_size, intermediate_size, scheme, compiled, within):
    shape = {"vocab_size": vocab_size, "hidden_size": hidden_size, "layers": 1, "head_size": head_size}
    weights = trained_like_weights(generation, **shape, intermediate_size=intermediate_size, ranks=(5, 7, 6, 9))
    model = compiled(weights, scheme, functions=["score", "decode", "batch_decode"])
    expected = model.reference(TOKENS)
    within("score", error(model.score(TOKENS), expected), BOUND)
    within("decode", error(model.decode(TOKENS), expected), BOUND)
    pool = model.runner.new_state(2)
    batched = model.runner.run("batch_decode", [[TOKENS[0]], [TOKENS[1]]], pool, [1, 0])
    assert error(batched[0], model.decode(TOKENS[:1])[0]) < 1e-6


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    """How unlikely the logits [T, V] find ``tokens`` [T + 1], each but the first by the row before it."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    chosen = x[np.arange(len(x)), tokens[1:]] - np.log(np.exp(x).sum(-1))
    return float(np.exp(-chosen.mean()))


@cache
def exact_perplexity(name: str, size: int) -> float:
    """What the reference makes of the held-out text with the checkpoint's own weights."""
    tokens = held_out(name, size)
    return perplexity(reference.forward(*reference.load(open_checkpoint(str(DEMOS / name))), tokens[:-1])[0], tokens)


@pytest.mark.parametrize("scheme, bound", [("q0f16", 0.001), ("q8f16_1", 0.005), ("q4f16_1", 0.08)])
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_perplexity(name, scheme, bound, compiled, within):
    model = compiled(open_checkpoint(str(DEMOS / name)), scheme, functions=ALONE)

    def against_float64(what: str, run, size: int) -> None:
        tokens, expected = held_out(name, size), exact_perplexity(name, size)
        found = perplexity(run(tokens[:-1]), tokens)
        within(f"{what} of {len(tokens) - 1} tokens, perplexity {expected:.4f}", abs(found / expected - 1), bound)

    against_float64("score", lambda tokens: model.score(tokens, chunk=512), 8192)
    against_float64("decode", model.decode, 2048)


@pytest.mark.parametrize("scheme", ["q8f16_1", "q4f16_1"])
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_logits(name, scheme, compiled, within):
    model, tokens = compiled(open_checkpoint(str(DEMOS / name)), scheme, functions=ALONE), held_out(name, 2048)
    expected = model.reference(tokens)
    within("score", error(model.score(tokens), expected), BOUND)
    enlarged = conditioning(model, tokens)
    within(f"decode, x{enlarged:.1f}", error(model.decode(tokens), expected), BOUND)


@pytest.mark.parametrize("scheme", ["q0f32", "q4f16_1"])
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_greedy_text_does_not_depend_on_the_path(name, scheme, compiled):
    """Prefilled at once, in chunks or decoded from the first token on, the demo model goes on alike."""
    model, prompt = compiled(open_checkpoint(str(DEMOS / name)), scheme, functions=ALONE), held_out(name, 900)

    def answer(chunk: int, function: str = "prefill") -> list[int]:
        state = model.runner.new_state()
        for start in range(0, len(prompt) - 1, chunk):
            model.runner.run(function, [prompt[start : min(start + chunk, len(prompt) - 1)]], state)
        return greedy(lambda tokens: model.runner.run("decode", [tokens], state)[0], prompt[-1:], 64)

    expected = answer(len(prompt))
    assert all(answer(chunk) == expected for chunk in (1, 7, 64))
    assert answer(1, "decode") == expected
    continued = model.score([*prompt, *expected[:-1]])[len(prompt) - 1 :]
    assert continued.argmax(-1).tolist() == expected


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_answers_are_pinned(name, compiled):
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))[name]
    tokenizer = load_tokenizer(DEMOS / name / "rwkv_vocab_demo.txt")
    model = compiled(open_checkpoint(str(DEMOS / name)), "q0f32", functions=ALONE)
    assert list(pinned) == list(PROMPTS)
    for prompt, text in pinned.items():
        state = model.runner.new_state()

        def step(tokens: list[int]) -> np.ndarray:
            return model.runner.run("decode" if len(tokens) == 1 else "prefill", [tokens], state)[0]

        assert tokenizer.decode(greedy(step, [0, *tokenizer.encode(prompt)], 64)) == text
