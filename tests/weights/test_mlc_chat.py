"""Folders of numbered parameters that mlc_chat converted in 2023: taken over as they are, or refused with a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rwkv_mlc import Engine, reference
from rwkv_mlc.artifact.shards import read_index
from rwkv_mlc.building.convert import convert_weights
from rwkv_mlc.cli.main import main
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import ModelOptions, resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.mlc_chat import QUANTIZATIONS
from support.build_inputs import huggingface_name
from support.compiled import QUICK, in_memory
from support.mlc_chat_folder import numbered_names, stored_values, write_mlc_chat_folder
from support.synthetic import synthetic_checkpoint

SHAPE = {"vocab_size": 300, "hidden_size": 64, "head_size": 32, "layers": 3}
TOKENS = [3, 77, 250, 9]
CHAT, INDEX, CONFIG = "mlc-chat-config.json", "ndarray-cache.json", "config.json"


def tiny(generation: str = "4") -> dict[str, np.ndarray]:
    return synthetic_checkpoint(generation, **SHAPE)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_every_stored_value_is_taken_over(generation, quantization, tmp_path):
    """In three bits rows of 64 weights end in a group that is not full."""
    written = tiny(generation)
    stored = write_mlc_chat_folder(tmp_path / "theirs", written, quantization)
    values = stored_values(written, stored, quantization, rescale_every=2)
    checkpoint = open_checkpoint(str(tmp_path / "theirs"))
    config, parameters, tensors = resolve(checkpoint)
    assert (config.generation, config.rescale_every, checkpoint.quantization) == (generation, 2, quantization)
    assert (config.context_length, checkpoint.warning) == (512, None)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor.read(), values[name], rtol=1e-7, err_msg=name)

    convert_weights(checkpoint, get_scheme(quantization), tmp_path / "ours")
    ours = {name: array for shard in read_index(tmp_path / "ours") for name, array in shard.arrays().items()}
    theirs = dict(stored)
    for source in values:
        stem = huggingface_name(source).replace("rwkv.", "model.")
        if f"{source}:words" not in theirs:
            expected = theirs[source].astype(ours[stem].dtype)
            np.testing.assert_array_equal(ours[stem].reshape(expected.shape), expected, err_msg=source)
            continue
        words, scales = (ours[f"{stem.removesuffix('.weight')}.q_{part}"] for part in ("weight", "scale"))
        np.testing.assert_array_equal(scales, theirs[f"{source}:scales"], err_msg=source)
        if quantization != "q3f16_1":  # whose words here have 32 bits
            np.testing.assert_array_equal(words, theirs[f"{source}:words"], err_msg=source)
    if quantization == "q3f16_1":
        scheme, stored_here = get_scheme(quantization), {p.source: p for p in parameters}
        for source in ("emb.weight", "blocks.0.ffn.key.weight"):
            np.testing.assert_allclose(scheme.dequantize(stored_here[source], ours), values[source], rtol=1e-6)

    found, _ = reference.forward(*reference.load(checkpoint), TOKENS)
    expected, _ = reference.forward(*reference.load(in_memory(values), options=ModelOptions(rescale_every=2)), TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rescale_every", [0, 1, 2])
@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_unquantized_values_give_the_logits_of_the_checkpoint(generation, rescale_every, tmp_path):
    tensors = tiny(generation)
    write_mlc_chat_folder(tmp_path, tensors, "q0f32", rescale_every)
    found, _ = reference.forward(*reference.load(open_checkpoint(str(tmp_path))), TOKENS)
    options = ModelOptions(rescale_every=rescale_every)
    expected, _ = reference.forward(*reference.load(in_memory(tensors), options=options), TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("quantization", "count"), [("q4f16_1", 808), ("q0f16", 582)])
def test_the_numbers_of_the_published_3b_model(quantization, count):
    """What mlc_chat's build prints of RWKV-4-World-3B: ``[0808/0808] saving param_807``."""
    names = numbered_names("rwkv_world", 32)
    matrices = [name for name in names if name.endswith(".weight") and "ln" not in name]
    assert len(names) + (len(matrices) if quantization == "q4f16_1" else 0) == count


def test_a_folder_in_mlc_chats_place_is_built_and_computes_with_its_own_words(tmp_path, capsys):
    """``dist/NAME/params``, with the model that it was converted from in ``dist/models``."""
    folder = tmp_path / "dist" / "RWKV-4-World-tiny-q4f16_1" / "params"
    write_mlc_chat_folder(folder, tiny())
    home = tmp_path / "dist" / "models" / "RWKV-4-World-tiny"
    home.mkdir(parents=True)
    (folder / CONFIG).rename(home / CONFIG)
    command = ["build", "--model", str(folder), "--artifact-path", str(tmp_path / "ours"), "--target", QUICK]
    assert main(["inspect", str(folder)]) == 0 and "q4f16_1" in capsys.readouterr().out
    assert main(["build", "--model", str(folder), "--artifact-path", str(tmp_path / "dist"), "--target", QUICK]) == 2
    assert "itself, which would be lost; give --artifact-name" in capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    artifact = tmp_path / "ours" / "RWKV-4-World-tiny-q4f16_1"
    engine = Engine(artifact)
    assert (engine.config.rescale_every, engine.config.generation) == (2, "4")
    expected, _ = reference.forward(*reference.load(open_checkpoint(str(folder))), TOKENS)
    np.testing.assert_allclose(engine.prefill(TOKENS, engine.new_state()), expected[-1], rtol=2e-3, atol=2e-3)
    asked = ["generate", str(artifact), "--prompt", "abc", "--max-tokens", "3", "--temperature", "0"]
    assert main(asked) == 0
    (home / CONFIG).unlink()
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 2
    assert 'config.json of {"rescale_every": 6}' in capsys.readouterr().err


def changed(folder, file, change):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def retold(**facts):
    return lambda folder: changed(folder, CHAT, lambda content: content.update(facts))


def records(content):
    return {record["name"]: record for shard in content["records"] for record in shard["records"]}


def swapped(first, second):
    """The names of two tensors exchanged."""

    def change(content):
        one, other = records(content)[first], records(content)[second]
        one["name"], other["name"] = second, first

    return lambda folder: changed(folder, INDEX, change)


def without(number):
    def change(content):
        for shard in content["records"]:
            shard["records"] = [record for record in shard["records"] if record["name"] != f"param_{number}"]

    return lambda folder: changed(folder, INDEX, change)


def renamed(old, new):
    return lambda folder: changed(folder, INDEX, lambda content: records(content)[old].update(name=new))


DAMAGES = {
    "category": (retold(model_category="llama"), "model category 'llama'; .* rwkv, rwkv_world, rwkv5 are read"),
    "asymmetric": (retold(local_id="RWKV-4-World-tiny-q4f32_1"), "'RWKV-4-World-tiny-q4f32_1'; .* q0f16, q3f16_1"),
    "rows": (retold(local_id="RWKV-4-World-tiny-q8f16_0"), "q4f16_2, q8f16_1: build from the checkpoint"),
    "no quantization": (retold(local_id="tiny"), "local_id 'tiny'"),
    "path": (retold(local_id="../tiny-q4f16_1"), "local_id"),
    "other quantization": (retold(local_id="tiny-q0f16"), r"holds 83 tensors, expected 6 and 18 for every layer"),
    "bits": (
        retold(local_id="tiny-q8f16_1"),
        r"param_0 as uint32 \[300, 8\], expected uint32 \[300, 16\] of model.emb",
    ),
    "generation": (
        retold(model_category="rwkv5"),
        "holds 83 tensors, expected 8 and 30 for every layer of an RWKV-5.2",
    ),
    "vocabulary": (retold(vocab_size=301), r"param_0 as uint32 \[300, 8\], expected uint32 \[301, 8\]"),
    "order": (
        swapped("param_4", "param_8"),
        r"holds param_4 as float32 \[64\], expected float16 \[64\] of .*ln1.weight",
    ),
    "shapes": (
        swapped("param_22", "param_20"),
        r"param_20 as float16 \[64\], expected float16 \[64, 2\] of .*output.q_scale",
    ),
    "missing": (without(82), "holds 82 tensors, expected 8 and 25 for every layer of an RWKV-4 in q4f16_1"),
    "gap": (without(40), "holds 82 tensors and no param_40 among them"),
    "named": (renamed("param_82", "head.q_scale"), "model_type|model type"),
    "no layers": (lambda f: (f / CONFIG).unlink(), "does not say every how many layers mlc_chat halved its weights"),
    "other model": (lambda f: changed(f, CONFIG, lambda c: c.update(hidden_size=96)), "hidden_size"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage, tmp_path):
    write_mlc_chat_folder(tmp_path / "theirs", tiny())
    change, message = DAMAGES[damage]
    change(tmp_path / "theirs")
    with pytest.raises(UserError, match=message):
        resolve(open_checkpoint(str(tmp_path / "theirs")))


def test_matrices_of_before_august_2023_are_refused(tmp_path):
    """They were [in, out]."""
    tensors = {n: np.ascontiguousarray(a.T) if n.endswith("ffn.key.weight") else a for n, a in tiny().items()}
    write_mlc_chat_folder(tmp_path, tensors, "q0f16")
    with pytest.raises(UserError, match=r"float16 \[\d+, \d+\], expected float16 .*; build from the checkpoint"):
        open_checkpoint(str(tmp_path))


def test_words_of_more_than_five_weights(tmp_path):
    stored = write_mlc_chat_folder(tmp_path, tiny(), "q3f16_1")
    words = dict(stored)["emb.weight:words"]
    words[0, 0] |= 1 << 15
    tensors = open_checkpoint(str(tmp_path)).tensors
    position = (tmp_path / "params_shard_1.bin").read_bytes()
    with open(tmp_path / "params_shard_1.bin", "r+b") as file:
        file.write(words.tobytes()[:2])
    assert position[:2] != words.tobytes()[:2]
    with pytest.raises(UserError, match="words of more than five weights"):
        tensors["emb.weight"].read()


def test_a_folder_of_mlc_llm_called_params_is_named_for_what_it_is_in(tmp_path):
    write_mlc_chat_folder(tmp_path / "dist" / "tiny-q4f16_1" / "params", tiny())
    assert open_checkpoint(str(tmp_path / "dist" / "tiny-q4f16_1" / "params")).name == "tiny"
    write_mlc_chat_folder(tmp_path / "small-q4f16_1", tiny())
    assert open_checkpoint(str(tmp_path / "small-q4f16_1")).name == "small"
