"""The case that this tool was founded on: RWKV-4 whose first layer leaves float16's range, found and cured."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc.building.precision import float32_patterns, wide_values
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.debug.dump import Dump
from rwkv_mlc.debug.nonfinite import first_nonfinite
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.reference import dump_checkpoint
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.interfaces.module import float16_values
from rwkv_mlc.models import ModelOptions
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.reference import load
from rwkv_mlc.weights.checkpoint import Checkpoint
from support.build_inputs import build_command
from support.compiled import Model, in_memory
from support.kernel_build import error
from support.synthetic import synthetic_checkpoint
from support.vulkan_kernels import vulkan_device

TOKENS = (7, 1, 50, 7, 33, 12, 90, 2, 64, 18)
BOUND = 2e-2  # of the largest logit


def large_keys() -> dict[str, np.ndarray]:
    """The keys of time mixing are all about 120000, which wkv, an average, does not care about: a norm's bias makes them."""
    tensors = synthetic_checkpoint("4", hidden_size=64, layers=2)
    tensors["blocks.0.ln1.weight"][0], tensors["blocks.0.ln1.bias"][0] = 0.0, 4.0
    tensors["blocks.0.att.time_mix_k"][..., 0] = 1.0
    tensors["blocks.0.att.key.weight"][:, 0] = 30000.0
    return tensors


def large_squares(**shape) -> dict[str, np.ndarray]:
    """The keys of channel mixing fit and their squares do not; the matrix after them makes them small again."""
    tensors = synthetic_checkpoint("4", hidden_size=64, layers=2, **shape)
    tensors["blocks.0.ffn.key.weight"] *= 250
    tensors["blocks.0.ffn.value.weight"] /= 250**2
    return tensors


def overflow(tensors: dict[str, np.ndarray], **precision) -> tuple[np.ndarray, str | None]:
    """The logits of a target that computes in float16, and what is said of the values."""
    checkpoint, options = in_memory(tensors), ModelOptions(**precision)
    dump = dump_checkpoint(checkpoint, Recipe(TOKENS), dtype=np.float16, options=options)
    right = dump_checkpoint(checkpoint, Recipe(TOKENS), options=options)
    assert dump.header.activations == "float16"
    assert first_nonfinite(right) is None
    return dump.tensors["prefill/logits"], first_nonfinite(dump, right)


@pytest.fixture(autouse=True)
def hashes(monkeypatch):
    """Checkpoints in memory have no file to hash."""
    monkeypatch.setattr(Checkpoint, "sha256", lambda self: self.name)


@pytest.mark.parametrize(
    "tensors, role, operation, source",
    [
        (large_keys(), "att.key", "matrix product", "att.mixed_key"),
        (large_squares(), "ffn.k_squared", "squared ReLU", "ffn.key"),
    ],
)
def test_in_emulated_float16(tensors, role, operation, source):
    logits, text = overflow(tensors)
    assert np.isnan(logits).all()
    assert text.startswith(f"The first NaN or Inf of the reference's dump is in prefill/blocks.0.{role} (0 NaN and ")
    assert f": {operation} of prefill/blocks.0.{source} up to " in text
    assert text.endswith(f"build it with --fp32 {role} or --fp32-layers 0 or --auto-precision.")
    expected = dump_checkpoint(in_memory(tensors), Recipe(TOKENS)).tensors["prefill/logits"]
    for patterns in ((f"blocks.*.{role}",), ("blocks.0.*",)):
        cured, text = overflow(tensors, float32=patterns)
        assert text is None and error(cured, expected) < BOUND


def test_a_dump_holds_float16(tmp_path):
    dump = dump_checkpoint(in_memory(large_keys()), Recipe(TOKENS), dtype=np.float16)
    dump.write(tmp_path / "a")
    tensors = Dump.read(tmp_path / "a").tensors
    assert {name for name, array in tensors.items() if array.dtype != np.float16} == {
        n for n in tensors if ".state." in n
    }


@pytest.fixture
def on_vulkan(compiled):
    """Compile what reads prompts for Vulkan: (tensors, scheme, float32 patterns) -> Model."""
    runner = partial(Runner, device=vulkan_device())

    def build(tensors: dict[str, np.ndarray], scheme: str = "q0f16", patterns: tuple[str, ...] = ()) -> Model:
        return compiled(tensors, scheme, "vulkan", runner, ModelOptions(float32=patterns), ["prefill"])

    return build


def last_logits(model: Model) -> np.ndarray:
    return model.runner.run("prefill", [TOKENS], model.runner.new_state())[-1]


def test_on_a_gpu(on_vulkan, within):
    """Its keys of time mixing are float32 anyway; its squares are float16, which it fills to the brim."""
    keys, squares = on_vulkan(large_keys()), on_vulkan(large_squares())
    within("keys", error(last_logits(keys), keys.reference(TOKENS)[-1]), BOUND)
    logits, expected = last_logits(squares), squares.reference(TOKENS)[-1]
    assert np.isfinite(logits).all() and error(logits, expected) > 5 * BOUND
    within("q0f32", error(last_logits(full := on_vulkan(large_squares(), "q0f32")), full.reference(TOKENS)[-1]), 1e-4)

    checkpoint, scheme = in_memory(large_squares()), get_scheme("q0f16")
    config, parameters = load(checkpoint)
    narrow = float16_values(config, scheme, resolve_target("vulkan"))
    wide = [value.name for value in wide_values(config, parameters, TOKENS, narrow)]
    assert wide == ["blocks.0.ffn.k_squared"]
    for patterns in (wide, float32_patterns(config, [0], []), float32_patterns(config, [], ["ffn.key"])):
        cured = on_vulkan(large_squares(), patterns=tuple(patterns))
        within(", ".join(patterns), error(last_logits(cured), expected), BOUND)


def test_commands(tmp_path, capsys):
    """What ``debug`` says of the build, and of the one that it proposes."""
    vulkan_device()
    checkpoint = tmp_path / "founding.safetensors"
    save_file(large_squares(vocab_size=257), checkpoint)
    lines = [f"{i} {bytes([i - 1])!r} 1\n" for i in range(1, 257)]
    (tmp_path / "rwkv_vocab.txt").write_text("".join(lines), encoding="utf-8")
    options = ["--target", "vulkan", "--quantization", "q0f16"]
    debug = ["--device", "vulkan", "--against", str(checkpoint), "--tokens", ",".join(map(str, TOKENS))]

    assert main(build_command(checkpoint, tmp_path / "a", *options)) == 0
    capsys.readouterr()
    assert main(["debug", str(tmp_path / "a" / "founding-q0f16"), *debug]) == 1
    text = " ".join(capsys.readouterr().out.split())
    name = "prefill/blocks.0.ffn.k_squared"
    assert f"> {name}" in text and f"The inputs of {name} agree" in text
    assert f"The first value that float16 cannot hold of the library's dump is in {name}" in text
    assert "at 65504 among 2560): matrix product and squared ReLU of prefill/blocks.0.ffn.mixed_key up to " in text
    assert "--fp32 ffn.k_squared or --fp32-layers 0 or --auto-precision." in text

    assert main(build_command(checkpoint, tmp_path / "b", *options, "--auto-precision")) == 0
    assert "blocks.0.ffn.k_squared" in capsys.readouterr().out
    assert main(["debug", str(tmp_path / "b" / "founding-q0f16"), *debug]) == 0
    assert "A and B agree" in capsys.readouterr().out
