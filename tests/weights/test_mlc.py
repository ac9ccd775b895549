"""Folders that mlc_llm converted: taken over as they are, or refused with a sentence."""

from __future__ import annotations

import json

import ml_dtypes
import msgpack
import numpy as np
import pytest

from rwkv_mlc import Engine, reference
from rwkv_mlc.artifact.shards import read_index
from rwkv_mlc.building import BuildOptions, build
from rwkv_mlc.building.convert import convert_weights
from rwkv_mlc.cli.main import main
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.tokenizer import load_tokenizer, write_tokenizer_files
from rwkv_mlc.weights import open_checkpoint
from support.compiled import QUICK, in_memory
from support.mlc_folder import write_mlc_folder
from support.synthetic import synthetic_checkpoint

SHAPE = {"vocab_size": 300, "hidden_size": 64, "head_size": 32, "layers": 3}
TOKENS = [3, 77, 250, 9]


def arrays_of(folder):
    return {name: array for shard in read_index(folder) for name, array in shard.arrays().items()}


@pytest.mark.parametrize("quantization", ["q0f16", "q0f32", "q3f16_1", "q4f16_0", "q4f16_1", "q4f16_2"])
@pytest.mark.parametrize("generation", ["5.2", "6"])
def test_every_stored_value_is_taken_over(generation, quantization, tmp_path):
    """In three bits rows of 64 weights end in a group that is not full."""
    theirs = write_mlc_folder(tmp_path / "theirs", synthetic_checkpoint(generation, **SHAPE), quantization)
    checkpoint = open_checkpoint(str(tmp_path / "theirs"))
    config, _, _ = resolve(checkpoint)
    assert (config.generation, config.rescale_every, checkpoint.quantization) == (generation, 2, quantization)
    convert_weights(checkpoint, get_scheme(quantization), tmp_path / "ours")
    ours = arrays_of(tmp_path / "ours")
    same = set(ours) & set(theirs)
    assert {"head.weight", "head.q_weight"} & same and "model.blocks.2.attention.ln_x.weight" in same
    for name in same:
        stored = theirs[name]
        if stored.dtype == np.float32:
            stored = stored.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(ours[name].reshape(stored.shape), stored.astype(ours[name].dtype), err_msg=name)
    low_rank = (".time_maa_", ".time_decay_w")
    assert [name for name in theirs if name not in ours and not any(part in name for part in low_rank)] == []


@pytest.mark.parametrize("rescale_every", [0, 2])
@pytest.mark.parametrize("generation", ["5.2", "6"])
def test_unquantized_values_give_the_logits_of_the_checkpoint(generation, rescale_every, tmp_path):
    tensors = synthetic_checkpoint(generation, **SHAPE)
    write_mlc_folder(tmp_path / "theirs", tensors, "q0f32", rescale_every, encoding="raw")
    found, _ = reference.forward(*reference.load(open_checkpoint(str(tmp_path / "theirs"))), TOKENS)
    expected, _ = reference.forward(*reference.load(in_memory(tensors)), TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_is_built_and_computes_with_its_own_words(tmp_path, capsys):
    tensors = synthetic_checkpoint("5.2", **SHAPE)
    folder = tmp_path / "tiny-q4f16_1-MLC"
    write_mlc_folder(folder, tensors)
    command = ["build", "--model", str(folder), "--artifact-path", str(tmp_path / "dist"), "--target", QUICK]
    assert main([*command, "--quantization", "q0f16"]) == 2
    assert "was converted in q4f16_1" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()
    assert main(command) == 0
    assert "stores float32 as bfloat16" in capsys.readouterr().err
    artifact = tmp_path / "dist" / "tiny-q4f16_1"
    engine = Engine(artifact)
    expected, _ = reference.forward(*reference.load(open_checkpoint(str(folder))), TOKENS)
    np.testing.assert_allclose(engine.prefill(TOKENS, engine.new_state()), expected[-1], rtol=2e-3, atol=2e-3)
    asked = ["generate", str(artifact), "--prompt", "abc", "--max-tokens", "3", "--temperature", "0"]
    assert main(asked) == 0


def test_the_warning_says_what_bfloat16_took(tmp_path):
    tensors = synthetic_checkpoint("5.2", **SHAPE)
    tensors["blocks.1.att.time_decay"].flat[:5] = -8.0
    tensors["blocks.1.att.time_decay"].flat[5:] = -2.0
    for layer in (0, 2):
        tensors[f"blocks.{layer}.att.time_decay"][...] = -2.0
    write_mlc_folder(tmp_path, tensors)
    warning = open_checkpoint(str(tmp_path)).warning
    assert "attention.ln_x.bias, attention.ln_x.weight, attention.time_decay, attention.time_faaaa" in warning
    assert "The decay of 5 channels became exactly 1, so that their memory never fades." in warning
    write_mlc_folder(tmp_path, tensors, encoding="raw")
    assert open_checkpoint(str(tmp_path)).warning is None


def changed(folder, file, change):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def renamed(content, old, new):
    record = next(r for r in content["records"][0]["records"] if r["name"] == old)
    record["name"] = new


CONFIG, INDEX, SHARD = "mlc-chat-config.json", "tensor-cache.json", "params_shard_0.bin"
DAMAGES = {
    "no shard": (lambda f: (f / SHARD).unlink(), "lacks .*params_shard_0.bin"),
    "short": (lambda f: (f / SHARD).write_bytes(b"abc"), "has 3 bytes, expected"),
    "bytes": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-1] + b"\x77"), "checksum differs"),
    "hidden size": (
        lambda f: changed(f, CONFIG, lambda c: c["model_config"].update(hidden_size=96)),
        "expected uint32",
    ),
    "layers": (
        lambda f: changed(f, CONFIG, lambda c: c["model_config"].update(num_hidden_layers=4)),
        "num_hidden_layers 4",
    ),
    "model": (lambda f: changed(f, CONFIG, lambda c: c.update(model_type="llama")), "model type 'llama'"),
    "scheme": (lambda f: changed(f, CONFIG, lambda c: c.update(quantization="q4f16_ft")), "quantization 'q4f16_ft'"),
    "other scheme": (
        lambda f: changed(f, CONFIG, lambda c: c.update(quantization="q4f16_2")),
        "does not fit its quant",
    ),
    "unknown": (
        lambda f: changed(f, INDEX, lambda c: renamed(c, "model.ln_out.bias", "model.ln_out.more")),
        "missing ln_out.bias.*unknown ln_out.more",
    ),
    "twice": (
        lambda f: changed(f, INDEX, lambda c: renamed(c, "model.ln_out.bias", "model.ln_out.weight")),
        "names a tensor twice",
    ),
    "numbered": (
        lambda f: changed(f, INDEX, lambda c: renamed(c, "model.ln_out.bias", "param_3")),
        "missing ln_out.bias.*unknown param_3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage, tmp_path):
    write_mlc_folder(tmp_path / "theirs", synthetic_checkpoint("5.2", **SHAPE))
    change, message = DAMAGES[damage]
    change(tmp_path / "theirs")
    with pytest.raises(UserError, match=message):
        resolve(open_checkpoint(str(tmp_path / "theirs")))


@pytest.mark.parametrize(
    ("quantization", "options", "message"),
    [
        ("q4f16_0", BuildOptions(), "converted in q4f16_1, .* take --quantization q4f16_1"),
        ("q4f16_1", BuildOptions(lora="any"), "no LoRA can be merged"),
        ("q4f16_1", BuildOptions(rescale_every=6), "converted with rescale_every 2"),
    ],
)
def test_wishes_that_converted_parameters_do_not_fulfill(quantization, options, message, tmp_path):
    write_mlc_folder(tmp_path / "theirs", synthetic_checkpoint("5.2", **SHAPE))
    with pytest.raises(UserError, match=message):
        build(tmp_path / "theirs", "llvm", quantization, tmp_path / "dist", options)
    assert not (tmp_path / "dist").exists()


def test_a_tokenizer_model_becomes_a_vocabulary(tmp_path):
    path = tmp_path / "tokenizer_model"
    path.write_bytes(msgpack.packb({0: "<|endoftext|>", 299: b"<|pad299|>"} | {i + 1: bytes([i]) for i in range(256)}))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.kind, tokenizer.max_id, tokenizer.encode("\n'a")) == ("world", 256, [11, 40, 98])
    (tmp_path / "params").mkdir()
    write_tokenizer_files([path], tmp_path / "params", 260)
    assert load_tokenizer(tmp_path / "params").definition == tokenizer.definition


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xde\xff", "is damaged"),
        (msgpack.packb([1]), "is no World vocabulary"),
        (b"\x81\x80\x01", "is no World vocabulary"),
        (msgpack.packb({i + 1: bytes([i]) for i in range(128)}), "lacks 128 of the 256 single bytes"),
    ],
)
def test_wrong_tokenizer_models(content, message, tmp_path):
    path = tmp_path / "tokenizer_model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)
