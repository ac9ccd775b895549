"""State tuning's files: which axis is which, in every generation, and that every text begins with what they hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rwkv_mlc import BuildOptions, Chat, Engine, reference
from rwkv_mlc.building import gen_config
from rwkv_mlc.cli.main import main
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, detect_config
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.tuned_state import read_tuned_state
from support.build_inputs import write_vocabulary
from support.compiled import in_memory
from support.paths import DEMO
from support.synthetic import synthetic_checkpoint

TUNED = [name for name, generation in GENERATIONS.items() if generation.tuned_state]
TOKENS = np.random.default_rng(0).integers(0, 97, 12)
HEADS, SIZE, LAYERS = 2, 32, 2


def model(generation: str) -> dict[str, np.ndarray]:
    return synthetic_checkpoint(generation, layers=LAYERS, hidden_size=HEADS * SIZE, head_size=SIZE)


def tuned(layers: int = LAYERS, heads: int = HEADS, size: int = SIZE) -> dict[str, np.ndarray]:
    """[H, V, K], of which no head is anything like its transpose."""
    rng = np.random.default_rng(7)
    columns = rng.normal(size=(layers, heads, size, size)) * np.linspace(0.05, 1.0, size)
    return {f"blocks.{i}.att.time_state": array.astype(np.float32) for i, array in enumerate(columns)}


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


def begun(config, arrays: dict[str, np.ndarray]) -> reference.State:
    """The reference's state before the first token with the arrays of ``read_tuned_state`` in it."""
    state = reference.initial_state(config)
    for name, array in arrays.items():
        _, layer, role = name.split(".")
        assert state[int(layer), role].shape == array.shape
        state[int(layer), role] = array.astype(np.float64)
    return state


@pytest.mark.parametrize("generation", TUNED)
def test_values_are_read_by_keys(generation, tmp_path):
    """Of what the first token reads, the tuned state's part is the sum over keys of S[h, v, k] r[h, k]; in RWKV-7, which reads
    after the update, of what decay and removal have left of S."""
    config, parameters = reference.load(in_memory(model(generation)))
    arrays = read_tuned_state(save(tmp_path / "state.safetensors", tuned()), config)
    found = []
    for state in (begun(config, arrays), None):
        values: dict[str, np.ndarray] = {}
        reference.forward(config, parameters, TOKENS[:1], state, lambda name, value: values.setdefault(name, value))
        found.append(values)
    added = (found[0]["blocks.0.att.wkv"] - found[1]["blocks.0.att.wkv"]).reshape(HEADS, SIZE)
    r = found[1]["blocks.0.att.receptance"].reshape(HEADS, SIZE)
    s = tuned()["blocks.0.att.time_state"].astype(np.float64)
    if (k_k := parameters.get("model.blocks.0.attention.k_k")) is not None:
        w, a, k = (found[1][f"blocks.0.att.{name}"].reshape(HEADS, SIZE) for name in ("decay", "rate", "key"))
        kk = k * k_k / np.linalg.norm(k * k_k, axis=1, keepdims=True)
        s = s * w[:, None, :] - np.einsum("hvk,hk,hj->hvj", s, kk, a * kk)
    expected = np.einsum("hvk,hk->hv", s, r)
    np.testing.assert_allclose(added, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(added - np.einsum("hvk,hv->hk", s, r)).max() > 0.5 * np.abs(added).max()  # the other way round


@pytest.mark.parametrize("generation", [name for name in TUNED if GENERATIONS[name].package])
def test_agrees_with_rwkv_package(generation, tmp_path, monkeypatch):
    """Which takes the tensors with the model's own, and transposes them; of RWKV-7 it passes them over."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    package = pytest.importorskip("rwkv.model")
    tensors = model(generation)
    torch.save({n: torch.from_numpy(a) for n, a in {**tensors, **tuned()}.items()}, tmp_path / "model.pth")
    torch.save({n: torch.from_numpy(a) for n, a in tuned().items()}, tmp_path / "state.pth")
    peer = package.RWKV(model=str(tmp_path / "model"), strategy="cpu fp32", verbose=False)
    expected, _ = peer.forward(TOKENS.tolist(), None, full_output=True)
    config, parameters = reference.load(in_memory(tensors))
    state = begun(config, read_tuned_state(tmp_path / "state.pth", config))
    ours, _ = reference.forward(config, parameters, TOKENS, state)
    plain, _ = reference.forward(config, parameters, TOKENS)
    largest = np.abs(ours).max()
    assert np.abs(expected.numpy() - ours).max() < 1e-5 * largest
    assert np.abs(plain - ours).max() > 1e-2 * largest


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            tuned(heads=1),
            "with 2 layers and 2 heads of 32: blocks.0.att.time_state is [1, 32, 32], expected [2, 32, 32]; ",
        ),
        (tuned(layers=1), ": missing blocks.1.att.time_state."),
        (tuned(layers=3), ": unknown blocks.2.att.time_state."),
        ({**tuned(), "emb.weight": np.ones((3, 3), np.float32)}, ": unknown emb.weight."),
        (model("5.2"), "state.safetensors is a whole model, not a tuned state; give the file that was trained for it."),
        ({"blocks.0.att.key.lora_A": np.ones((3, 3))}, "is a LoRA, not a tuned state; give it with --lora, beside"),
        (
            {**tuned(), "blocks.1.att.time_state": np.full((2, 32, 32), np.nan, np.float32)},
            "holds NaN or infinite values for",
        ),
    ],
    ids=["heads", "a layer less", "a layer more", "an embedding", "a model", "a LoRA", "NaN"],
)
def test_files_of_other_models(tensors, message, tmp_path):
    config = detect_config({name: array.shape for name, array in model("5.2").items()})
    path = save(tmp_path / "state.safetensors", tensors)
    with pytest.raises(UserError) as raised:
        read_tuned_state(path, config)
    assert message in str(raised.value) and str(raised.value).count(". ") == 0
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is no tuned state .it is empty.; expected a PyTorch .* or safetensors file"):
        read_tuned_state(path, config)


def test_generations_without_heads_have_no_such_state(tmp_path, capsys):
    checkpoint, path = save(tmp_path / "m.safetensors", model("4")), save(tmp_path / "state.safetensors", tuned())
    write_vocabulary(tmp_path / "rwkv_vocab.txt")
    assert main(["gen-config", "--model", str(checkpoint), "--state", str(path), "-o", str(tmp_path / "x")]) == 2
    assert "RWKV-4 has no state of heads, which is what state tuning trains" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="There is no file"):
        read_tuned_state(tmp_path / "nowhere", detect_config({n: a.shape for n, a in model("5.2").items()}))


@pytest.fixture(scope="module")
def begins(demo, tmp_path_factory) -> tuple[Path, Path]:
    """The demo's artifact with a tuned state, and that state's file."""
    folder = tmp_path_factory.mktemp("tuned")
    artifact = folder / demo.name
    shutil.copytree(demo, artifact)
    config = reference.load(open_checkpoint(str(DEMO)))[0]
    file = save(folder / "state.safetensors", tuned(config.num_hidden_layers, config.num_heads, config.head_size))
    gen_config(DEMO, artifact, "q0f32", BuildOptions(state=file))
    return artifact, file


def test_every_text_begins_with_it(begins, demo):
    artifact, file = begins
    engine, untuned = Engine(artifact), Engine(demo)
    config, parameters = reference.load(open_checkpoint(str(DEMO)))
    tokens = engine.tokenizer.encode("User: Who lives in the red house?\n\nAssistant:")
    expected, _ = reference.forward(config, parameters, tokens, begun(config, read_tuned_state(file, config)))
    bound = 1e-5 * np.abs(expected).max()

    def is_last(logits: np.ndarray) -> bool:
        return bool(np.abs(logits - expected[-1]).max() < bound)

    assert is_last(engine.prefill(tokens, engine.new_state()))
    assert not is_last(untuned.prefill(tokens, untuned.new_state()))
    assert np.abs(np.concatenate(list(engine.score(tokens, engine.new_state()))) - expected).max() < bound
    state = engine.runner.new_state(3)
    assert all(map(is_last, engine.runner.run("prefill", [tokens] * 3, state)))
    scheduler = engine.scheduler(2)
    sequences = [engine.sequence(tokens, temperature=0, max_tokens=1) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.running or scheduler.waiting:
        scheduler.step()
    assert {sequence.tokens[0] for sequence in sequences} == {int(expected[-1].argmax())}


def test_saved_states_and_chats_go_on_from_it(begins, demo, tmp_path):
    artifact, _ = begins
    engine = Engine(artifact)
    for which in (engine, Engine(demo)):
        which.save_state(state := which.new_state(), tmp_path / "a.state")
        loaded = engine.load_state(tmp_path / "a.state")  # a saved state is whole, whatever texts begin with
        for found, array in zip(loaded.arrays(), state.arrays(), strict=True):
            np.testing.assert_array_equal(found, array)
    chat, state = Chat(engine), engine.new_state()
    chat.params = engine.chat_params(temperature=0, max_tokens=20)
    shown = "".join(chat.send("Who lives in the red house?"))
    if system := engine.template.system_prompt():
        engine.prefill(engine.tokenizer.encode(system), state)
    prompt = engine.template.user_turn("Who lives in the red house?")
    assert shown == engine.generate(prompt, chat.params, state).text


def test_what_the_artifact_says_of_it(begins, tmp_path, capsys):
    artifact, file = begins
    copied = tmp_path / artifact.name
    shutil.copytree(artifact, copied)
    config = json.loads((copied / "params" / "mlc-chat-config.json").read_text(encoding="utf-8"))
    assert (config["initial_state"]["file"], config["initial_state"]["source"]) == (
        "initial_state.safetensors",
        str(file),
    )
    stored = load_file(copied / "params" / "initial_state.safetensors")
    theirs = load_file(file)
    np.testing.assert_array_equal(stored["blocks.1.att_kv"], theirs["blocks.1.att.time_state"].transpose(0, 2, 1))
    assert main(["inspect", str(copied)]) == 0
    assert "texts begin with" in capsys.readouterr().out
    (copied / "params" / "initial_state.safetensors").write_bytes(b"x")
    with pytest.raises(
        UserError, match="is damaged: its checksum differs; write it again with rwkv-mlc gen-config --state"
    ):
        Engine(copied)
    for put, reason in (
        (lambda path: None, "No such file"),
        (os.mkfifo, "it is a pipe"),
        (lambda path: path.symlink_to(artifact / "params" / path.name), "it is a link out of"),
    ):
        (copied / "params" / "initial_state.safetensors").unlink()
        put(copied / "params" / "initial_state.safetensors")
        with pytest.raises(UserError, match=f"initial_state.safetensors cannot be read .{reason}"):
            Engine(copied)
        (copied / "params" / "initial_state.safetensors").touch()
    (copied / "params" / "initial_state.safetensors").unlink()
    gen_config(DEMO, copied, "q0f32")  # without a state there is none
    assert not Engine(copied).runner.initial
    assert not (copied / "params" / "initial_state.safetensors").exists()
