"""What cannot be built of RWKV-6 and 7 is said in one sentence, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc.cli.main import main
from support.build_inputs import write_vocabulary
from support.gguf_files import write_gguf
from support.synthetic import synthetic_checkpoint

Tensors = dict[str, np.ndarray]


def model(generation: str, layers: int = 3) -> Tensors:
    return synthetic_checkpoint(generation, layers=layers, hidden_size=64, head_size=32)


def with_changed(generation: str, **changes) -> Tensors:
    """Tensors of the last layer changed, by the ends of their names with ``_of_`` for a dot."""
    tensors = model(generation)
    for name, change in changes.items():
        name = f"blocks.2.{name.replace('_of_', '.')}"
        tensors[name] = change(tensors[name])
    return tensors


def save(path: Path, tensors: Tensors) -> Path:
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}, path)
    return path


def assert_refused(folder: Path, capsys, message: str, *command) -> None:
    write_vocabulary(folder / "rwkv_vocab.txt")
    assert main([*map(str, command), "-o", str(folder / "artifact")]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert not (folder / "artifact").exists()


def columns(count: int):
    return lambda array: array[..., :count]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (with_changed("7", att_of_w1=columns(11)), "blocks.2.att.w1 is [64, 11], expected [64, 12]"),
        (with_changed("7", att_of_v2=lambda a: a[:13]), "blocks.2.att.v2 is [13, 64], expected [14, 64]"),
        (with_changed("7a", ffn_of_s2=lambda a: a[:31]), "blocks.2.ffn.s2 is [31, 256], expected [32, 256]"),
        (
            with_changed("6", att_of_time_decay_w1=columns(9)),
            "blocks.2.att.time_decay_w1 is [64, 9], expected [64, 10]",
        ),
        (with_changed("6", att_of_time_maa_w1=columns(55)), "blocks.2.att.time_maa_w1 is [64, 55], expected [64, 60]"),
        (
            {**with_changed("7"), "blocks.2.att.x_x": np.ones((5, 64))},
            "unknown blocks.2.att.x_rwkvag",
        ),
        (with_changed("7", att_of_r_k=np.ravel), "blocks.2.att.r_k is [64], expected [2, 32]"),
        (
            {n: a.ravel() if n.endswith(".r_k") else a for n, a in model("7").items()},
            "blocks.0.att.r_k is [64]; it should be [heads, channels of a head]",
        ),
        (
            {n: a.ravel() if n.endswith(".time_faaaa") else a for n, a in model("6").items()},
            "blocks.0.att.time_faaaa is [64]; it should be [heads, channels of a head]",
        ),
        (
            {**with_changed("7a"), "blocks.2.ffn.s_emb.weight": np.ones((96, 1024))},
            "blocks.2.ffn.s_emb.weight is [96, 1024]; RWKV-7a has a square matrix for each of 97 tokens there.",
        ),
        (
            {**with_changed("7a"), "blocks.2.ffn.s_emb.weight": np.ones((97, 1023))},
            "blocks.2.ffn.s_emb.weight is [97, 1023]; RWKV-7a has a square matrix for each of 97 tokens there.",
        ),
        (
            {**with_changed("7a"), "blocks.2.ffn.s_emb_x.weight": np.ones((1024, 63))},
            "blocks.2.ffn.s_emb_x.weight is [1024, 63]; beside blocks.2.ffn.s_emb.weight it should be [1024, 64].",
        ),
        (
            {n: a for n, a in model("7a").items() if not n.startswith("blocks.0.ffn.s_emb")},
            "missing blocks.0.ffn.s_emb.weight",
        ),
    ],
)
def test_tensors_of_other_sizes(tensors, message, tmp_path, capsys):
    """A rank is the same in every layer, a table of 7a has a row for each token, and heads are told by an axis."""
    path = save(tmp_path / "model.safetensors", tensors)
    assert_refused(tmp_path, capsys, message, "convert-weight", "--model", path, "--quantization", "q4f16_1")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def of_llama(data: bytes) -> bytes:
    return data.replace(b"rwkv6", b"llama")


def of_another_kind(data: bytes) -> bytes:
    """The type of the head, after the number of its axes and both of them."""
    at = data.index(b"output.weight", data.index(b"token_embd.weight")) + len(b"output.weight") + 4 + 16
    return data[:at] + (16).to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "is truncated or damaged at blk."),
        (of_llama, "is of the architecture 'llama'; what is read of GGUF is rwkv6, rwkv7."),
        (of_another_kind, "output.weight in IQ2_XXS; what is read is F32, F16, BF16"),
    ],
)
def test_gguf(change, message, tmp_path, capsys):
    path = write_gguf(tmp_path / "model.gguf", "rwkv6", model("6", layers=1))
    path.write_bytes(change(path.read_bytes()))
    assert_refused(tmp_path, capsys, message, "convert-weight", "--model", path, "--quantization", "q4f16_1")


def pair(name: str, size: int = 64) -> Tensors:
    return {f"{name}.lora_A": np.ones((4, size)), f"{name}.lora_B": np.ones((size, 4))}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (pair("blocks.0.att.key", 128), "blocks.0.att.key is [64, 64], its lora_A [4, 128] and lora_B [128, 4]"),
        (pair("blocks.0.att.gate"), "unknown blocks.0.att.gate.lora_A"),  # which RWKV-6 has
        (pair("blocks.7.att.key"), "unknown blocks.7.att.key.lora_A"),
    ],
)
def test_loras_of_other_models(lora, message, tmp_path, capsys):
    path, file = save(tmp_path / "model.safetensors", model("7")), save(tmp_path / "lora.safetensors", lora)
    command = "convert-weight", "--model", path, "--quantization", "q4f16_1", "--lora", file, "--lora-alpha", "8"
    assert_refused(tmp_path, capsys, message, *command)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (
            3,
            (2, 16, 16),
            "RWKV-7 with 3 layers and 2 heads of 32: blocks.0.att.time_state is [2, 16, 16], expected [2, 32, 32]",
        ),
        (2, (2, 32, 32), "missing blocks.2.att.time_state"),
        (4, (2, 32, 32), "unknown blocks.3.att.time_state"),
    ],
)
def test_states_of_other_models(layers, shape, message, tmp_path, capsys):
    path = save(tmp_path / "model.safetensors", model("7"))
    state = {f"blocks.{i}.att.time_state": np.zeros(shape) for i in range(layers)}
    file = save(tmp_path / "state.safetensors", state)
    assert_refused(tmp_path, capsys, message, "gen-config", "--model", path, "--state", file)
