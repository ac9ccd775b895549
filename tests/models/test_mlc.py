"""mlc_llm's interface: a script does with a library what that engine does, and gets what our own engine does."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import Artifact
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.tvm_runtime import CPU, Device
from rwkv_mlc.errors import UserError
from rwkv_mlc.interfaces import mlc
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.schema import INTERFACES_OF, Abi
from support.accuracy import trained_like_weights
from support.compiled import QUICK, in_memory, resolve_quickly
from support.kernel_build import error
from support.mlc_engine import Script
from support.paths import DEMOS
from support.synthetic import synthetic_checkpoint
from support.vulkan_kernels import vulkan_device
from tir_kernels import rnn_state, segment_ends

SHAPE = {"vocab_size": 61, "hidden_size": 64, "layers": 2, "head_size": 32}
V = SHAPE["vocab_size"]
LONG, SHORT = [5, 9, 17, 60, 2, 33, 8], [11, 12, 3]
KNOWN = [name for name in GENERATIONS if name != "7a"]
CASES = [
    *((QUICK, generation, "q0f32") for generation in KNOWN),
    *((QUICK, generation, scheme) for generation in ("5.2", "7") for scheme in ("q0f16", "q4f16_1")),
    (QUICK, "4", "q3f16_1"),
    ("vulkan", "5.2", "q4f16_1"),
    ("vulkan", "7", "q0f16"),
    ("cuda -arch=sm_80", "5.2", "q4f16_1"),
]


def made(
    generation: str, scheme: str, target: str, folder: Path, abi: Abi, vocab_size: int = V
) -> tuple[Path, dict[str, np.ndarray]]:
    """A library, and the tensors that are stored for it."""
    shape = SHAPE | {"vocab_size": vocab_size}
    config, parameters, tensors = resolve(in_memory(trained_like_weights(generation, **shape)))
    stored: dict[str, np.ndarray] = {}
    for parameter in parameters:
        stored |= SCHEMES[scheme].quantize(parameter, parameter.convert(tensors[parameter.source].read()))
    resolved, library = resolve_quickly(target), folder / "library.so"
    module = build_module(config, SCHEMES[scheme], resolved, interfaces=INTERFACES_OF[abi])
    export_library(compile_module(module, resolved), resolved, library)
    return library, stored


def device_of(target: str, request: pytest.FixtureRequest) -> Device:
    match target.partition(" ")[0]:
        case "vulkan":
            return vulkan_device()
        case "cuda":
            request.getfixturevalue("cuda_device")
            return open_device("cuda")
    return CPU


def session(script: Script, runner: Runner) -> float:
    """The largest error of a session beside ours: prompts together and alone, batches, single tokens beside prompts, forks,
    steps back, slots that are taken again."""
    pool, worst = runner.new_state(4), 0.0

    def both(function: str, ours: str, fed: dict[int, list[int]], slots: list[int]) -> None:
        nonlocal worst
        worst = max(worst, error(script.call(function, fed), runner.run(ours, list(fed.values()), pool, slots)))

    for sequence in (10, 11, 12):
        script.keep("add_sequence", sequence)
    both("batch_prefill", "prefill", {10: LONG, 11: SHORT}, [0, 1])
    both("prefill", "prefill", {12: LONG[:1] * 3}, [2])
    both("batch_decode", "batch_decode", {12: [1], 10: [2], 11: [3]}, [2, 0, 1])
    both("decode", "decode", {11: [7]}, [1])
    both("batch_prefill", "prefill", {10: [4], 11: LONG, 12: [50]}, [0, 1, 2])
    both("batch_verify", "score", {12: SHORT}, [2])
    script.keep("fork_sequence", 12, 13, -1)
    pool.copy_slot(2, 3) if hasattr(pool, "copy_slot") else None
    first = script.call("decode", {12: [9]})
    assert np.array_equal(script.call("decode", {13: [9]}), first), "a fork"
    script.keep("popn", 12, 1)
    assert np.array_equal(script.call("decode", {12: [9]}), first), "a step back"
    worst = max(worst, error(first, runner.run("decode", [[9]], pool, [2])))
    script.keep("remove_sequence", 10)
    script.keep("add_sequence", 20)
    fresh = runner.new_state()
    worst = max(worst, error(script.call("prefill", {20: SHORT}), runner.run("prefill", [SHORT], fresh)))
    return worst


@pytest.mark.parametrize("target, generation, scheme", CASES)
def test_a_session(target, generation, scheme, tmp_path, within, request):
    """Within 1e-5 of what our own functions of the same library compute; int21 prompts are among them."""
    device = device_of(target, request)
    library, stored = made(generation, scheme, target, tmp_path, "both")
    runner = Runner(library, stored, device)
    assert {name: spec.symbol for name, spec in runner.metadata.functions.items() if spec.symbol} == {
        name: f"native_{name}" for name in ("prefill", "decode", "batch_decode")
    }
    script = Script(library, stored, device)
    assert script.metadata["memory_usage"].keys() == mlc.FUNCTIONS.keys() and all(
        script.metadata["memory_usage"].values()
    )
    within("session", session(script, runner), 1e-5)
    with pytest.raises(Exception, match="argument|expects"):
        script.vm["decode"](script.state, script.params)


@pytest.mark.parametrize("target", [QUICK, "vulkan"])
def test_what_is_done_with_logits(target, tmp_path, request):
    device = device_of(target, request)
    library, stored = made("4", "q0f32", target, tmp_path, "mlc")
    script, rng = Script(library, stored, device), np.random.default_rng(0)
    assert script.run("alloc_embedding_tensor")[0].shape == (script.metadata["prefill_chunk_size"], 64)

    logits, temperatures = 3 * rng.normal(size=(3, 1, V)).astype(np.float32), np.array([1, 0.5, 0], np.float32)
    logits[2, 0, [4, 9]] = 50
    (found,) = script.run("softmax_with_temperature", logits, temperatures)
    powers = np.exp((logits[:2, 0].astype(np.float64) - logits[:2, 0].max(-1, keepdims=True)) / temperatures[:2, None])
    np.testing.assert_allclose(found[:2, 0], powers / powers.sum(-1, keepdims=True), rtol=2e-6, atol=1e-12)
    assert found[2, 0, 4] == found[2, 0, 9] == 0.5 and found[2, 0].sum() == 1

    logits = rng.normal(size=(4, V)).astype(np.float32)
    rows, tokens = np.array([0, 0, 3], np.int32), np.array([5, 6, 60], np.int32)
    bias, expected = np.array([1, -2, 3], np.float32), logits.copy()
    expected[rows, tokens] += bias
    np.testing.assert_array_equal(script.run("apply_logit_bias_inplace", logits, rows, tokens, bias)[0], expected)

    sequences, of_entry, counts = (np.array(x, np.int32) for x in ([3, 1], [0, 0, 1], [2, 1, 5]))
    penalties, expected = np.array([[0.1, 0.2, 1.3], [0.3, 0.1, 2]], np.float32), logits.copy()
    for sequence, token, count in zip(of_entry, tokens, counts):
        presence, frequency, repetition = penalties[sequence]
        value = expected[sequences[sequence], token] - presence - count * frequency
        expected[sequences[sequence], token] = value * repetition if value < 0 else value / repetition
    (found,) = script.run("apply_penalty_inplace", logits, sequences, of_entry, tokens, counts, penalties)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    bits = rng.integers(-(2**31), 2**31, (4, 2)).astype(np.int32)
    allowed = np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")[:, :V].astype(bool)
    expected = np.where(allowed | ~np.isin(np.arange(4), sequences)[:, None], logits, np.finfo(np.float32).min)
    np.testing.assert_array_equal(script.run("apply_bitmask_inplace", logits, sequences, bits)[0], expected)


@pytest.mark.parametrize("vocab_size", [V, 1009])
def test_how_a_gpu_chooses(vocab_size, tmp_path):
    """The sampler of the engine for GPUs, with equal probabilities among others."""
    library, stored = made("4", "q0f32", "vulkan", tmp_path, "mlc", vocab_size)
    script, rng = Script(library, stored, vulkan_device()), np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(vocab_size) * 0.3, size=3).astype(np.float32)
    probs[1, 7] = probs[1, 8]
    ordered, tokens = script.run("argsort_probs", probs)
    np.testing.assert_array_equal(tokens, np.argsort(-probs, axis=-1, kind="stable"))
    np.testing.assert_array_equal(ordered, np.take_along_axis(probs, tokens, -1))

    drawn, rows = rng.random(500).astype(np.float32), rng.integers(0, 3, 500).astype(np.int32)
    sums = np.cumsum(probs.astype(np.float64), -1)

    def beyond(sums: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        return np.array([np.searchsorted(own, bound, "right") for own, bound in zip(sums, bounds)])

    (found,) = script.run("multinomial_from_uniform", probs, drawn, rows)
    assert np.count_nonzero(found != beyond(sums[rows], drawn * sums[rows, -1])) <= 1  # where a sum is rounded
    top_p, sums = np.array([0.5, 0.9, 1], np.float32), np.cumsum(ordered.astype(np.float64), -1)
    last = np.minimum(beyond(sums, top_p * sums[:, -1]), vocab_size - 1)
    (found,) = script.run("sample_with_top_p", ordered, tokens, drawn, rows, top_p)
    expected = tokens[rows, beyond(sums[rows], drawn * sums[rows, last[rows]])]
    assert np.count_nonzero(found != expected) <= 1
    places = np.array([0, 1, vocab_size, 2 * vocab_size + 3], np.int32)
    of_drawn, of_places, at_places = script.run("sampler_take_probs", probs, tokens, rows, found, places)
    np.testing.assert_array_equal(of_drawn, probs[rows, found])
    np.testing.assert_array_equal(at_places, tokens.reshape(-1)[places])
    np.testing.assert_array_equal(of_places, probs[places // vocab_size, at_places])


def _own_slot(kernel, shape, device):
    """``state_set`` into the slot of the history that was read."""
    return _changed(kernel, shape, device, "T.int64(1)) % history", "T.int64(0)) % history")


def _changed(kernel, shape, device, text: str, other: str):
    import tvm

    script = kernel.__wrapped__(shape, device).script()
    assert text in script
    return tvm.script.from_source(script.replace(text, other))


def _positions_as_ends(device):
    import tvm

    script = segment_ends.ends_of_last.__wrapped__(device).script()
    assert "last[v] + 1" in script
    return tvm.script.from_source(script.replace("last[v] + 1", "T.max(last[v], 1)"))


MUTATIONS = {
    "the history's own slot": (rnn_state, "state_set", partial(_own_slot, rnn_state.state_set)),
    "positions taken for ends": (segment_ends, "ends_of_last", _positions_as_ends),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_session_finds(mutation, tmp_path, monkeypatch):
    monkeypatch.setattr(*MUTATIONS[mutation])
    library, stored = made("5.2", "q0f32", QUICK, tmp_path, "both")
    with pytest.raises(AssertionError):
        assert session(Script(library, stored, CPU), Runner(library, stored)) < 1e-5


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda data: data.pop("max_batch_size"), KeyError),
        (lambda data: data.update(prefill_chunk_size="4096"), AssertionError),
        (lambda data: data["params"].reverse(), AssertionError),
        (lambda data: data["params"][0].update(shape=[1, 2]), AssertionError),
    ],
    ids=["a key that is missing", "a number as text", "another order", "another shape"],
)
def test_a_script_finds_metadata_that_is_wrong(change, found, tmp_path, monkeypatch):
    original = mlc.described_for_engine
    library, stored = made("4", "q0f32", QUICK, tmp_path, "both")
    expected = Script(library, stored, CPU).metadata
    loads = json.loads

    def changed(text: str) -> dict:
        data = loads(text)
        change(data)
        return data

    assert original is mlc.described_for_engine and [spec["name"] for spec in expected["params"]]
    monkeypatch.setattr(json, "loads", changed)
    with pytest.raises(found):
        script = Script(library, stored, CPU)
        assert session(script, Runner(library, stored)) < 1e-5


# Builds


def test_a_library_for_mlc_llm_alone(tmp_path, capsys):
    command = ["build", "--model", str(DEMOS / "rwkv-4-village"), "--target", QUICK, "--artifact-path", str(tmp_path)]
    assert main([*command, "--abi", "mlc"]) == 0
    artifact = tmp_path / "rwkv-4-village-q4f16_1"
    with pytest.raises(UserError, match="functions of the interface mlc alone.*build it with --abi both"):
        Engine(artifact)
    capsys.readouterr()
    assert main(["inspect", str(artifact), "--json"]) == 0
    (library,) = json.loads(capsys.readouterr().out)["libraries"]
    assert library["abi"] == "mlc"
    opened = Artifact.open(artifact)
    arrays = opened.parameters()
    script = Script(opened.library("llvm").path, arrays, CPU)
    script.keep("add_sequence", 0)
    assert np.isfinite(script.call("prefill", {0: [1, 2, 3]})).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--quantization", "q4f16_0"], "stores matrices transposed"),
        (["--family", "plain"], "the plain family has no functions for it"),
    ],
)
def test_what_mlc_llm_cannot_run(options, message, tmp_path, capsys):
    command = ["build", "--model", str(DEMOS / "rwkv-4-village"), "--target", QUICK, "--artifact-path", str(tmp_path)]
    assert main([*command, *options, "--abi", "both"]) == 2
    assert f"mlc_llm cannot run this model: {message}" in " ".join(capsys.readouterr().err.split()).replace(
        "q4f16_0 stores", "stores"
    )
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_7a_reads_tokens_in_every_layer(tmp_path):
    from rwkv_mlc.building.library import _no_mlc
    from rwkv_mlc.building.options import BuildOptions

    config, _, _ = resolve(in_memory(synthetic_checkpoint("7a", layers=1)))
    reason = _no_mlc(config, SCHEMES["q0f16"], tmp_path, BuildOptions())
    assert reason and reason.startswith("every layer of RWKV-7a reads the token")
