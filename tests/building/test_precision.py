"""What a build may keep in float32, and the residual stream halved every few layers."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import Engine
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.building.precision import float32_patterns, wide_values
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.errors import UserError
from rwkv_mlc.inspection import KEPT
from rwkv_mlc.interfaces.module import float16_values
from rwkv_mlc.models import ModelOptions, resolve
from rwkv_mlc.models.values import LARGEST_FLOAT16
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.reference import load
from support.build_inputs import build_command, write_vocabulary
from support.compiled import Model, in_memory
from support.kernel_build import error
from support.synthetic import synthetic_checkpoint
from support.vulkan_kernels import vulkan_device

TOKENS = [5, 17, 3, 96, 40, 41, 2, 8]


def config_of(generation: str, layers: int = 3) -> RWKVConfig:
    return resolve(in_memory(synthetic_checkpoint(generation, layers=layers)))[0]


@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_a_halved_residual_stream_gives_the_same_logits(generation, libraries):
    """On prompts, single tokens (whose kernels are merged) and in the reference; a norm's epsilon counts four times as much
    after each."""
    checkpoint = in_memory(synthetic_checkpoint(generation))
    expected = Model.of(checkpoint, "q0f32", libraries).reference(TOKENS)
    model = Model.of(checkpoint, "q0f32", libraries, options=ModelOptions(rescale_every=1))
    assert [model.config.halvings(layer) for layer in range(4)] == [0, 1, 2, 3]
    assert error(model.reference(TOKENS), expected) < 1e-3
    assert error(model.score(TOKENS), model.reference(TOKENS)) < 2e-5
    assert error(model.decode(TOKENS), model.reference(TOKENS)) < 2e-5


def test_weights_are_halved_exactly():
    checkpoint = in_memory(synthetic_checkpoint("5.2"))
    _, one = load(checkpoint, np.float32)
    _, other = load(checkpoint, np.float32, ModelOptions(rescale_every=2))
    changed = {name for name in one if not np.array_equal(one[name], other[name])}
    assert changed == {"model.blocks.2.attention.output.weight", "model.blocks.2.feed_forward.value.weight"}
    assert all(np.array_equal(one[name], 2 * other[name]) for name in changed)


def test_patterns():
    config = config_of("5.2")
    patterns = float32_patterns(config, [0], ["ffn.value", "att.wkv"])
    assert patterns == ["blocks.0.*", "blocks.*.ffn.value", "blocks.*.att.wkv", "blocks.*.ffn.k_squared"]
    config = config.with_float32(patterns)
    assert config.is_float32("blocks.0.att.mixed_key") and config.is_float32("blocks.2.ffn.k_squared")
    assert not config.is_float32("blocks.10.ffn.key") and not config.is_float32("ln_out")
    assert RWKVConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "layers, roles, found", [([3], [], "layer 3"), ([-1], [], "layer -1"), ([], ["att.q"], "att.q")]
)
def test_what_the_model_does_not_have(layers, roles, found):
    with pytest.raises(UserError, match=f"no .*{found}"):
        float32_patterns(config_of("4"), layers, roles)


def test_wide_values_are_found_in_one_reading():
    """An early one does not hide a later one, and one that only comes near counts."""
    tensors = synthetic_checkpoint("4")
    tensors["blocks.0.ffn.key.weight"] *= 200
    tensors["blocks.2.ffn.key.weight"] *= 60
    config, parameters = load(in_memory(tensors), np.float32)
    names = {f"blocks.{layer}.ffn.k_squared" for layer in range(3)} | {"ln_out"}
    found = wide_values(config, parameters, TOKENS, names)
    assert [value.name for value in found] == ["blocks.0.ffn.k_squared", "blocks.2.ffn.k_squared"]
    assert found[0].overflows and not found[1].overflows and found[1].largest > LARGEST_FLOAT16 / 4
    assert not wide_values(config, parameters, TOKENS, {"ln_out"})


def wide_channel() -> dict[str, np.ndarray]:
    """RWKV-7, of which one input of the first layer's output is far beyond float16, as it is far beyond the others in trained
    models; the output makes it small again."""
    tensors = synthetic_checkpoint("7", hidden_size=64, layers=2)
    tensors["blocks.0.att.ln_x.weight"][5] *= 2e5
    tensors["blocks.0.att.output.weight"][:, 5] /= 1e4
    return tensors


def test_a_wide_channel_of_rwkv_7_on_a_gpu(compiled, within):
    """Its logits are wrong as it is and right with what is found."""
    checkpoint, runner = in_memory(wide_channel()), partial(Runner, device=vulkan_device())
    config, parameters = load(checkpoint, np.float32)
    narrow = float16_values(config, get_scheme("q4f16_1"), resolve_target("vulkan"))
    found = wide_values(config, parameters, TOKENS, narrow)
    assert [(value.name, value.overflows) for value in found] == [("blocks.0.att.gated", True)]
    errors = []
    for options in (ModelOptions(), ModelOptions(float32=tuple(value.name for value in found))):
        model = compiled(checkpoint, "q4f16_1", "vulkan", runner, options, ["prefill"])
        logits = model.runner.run("prefill", [TOKENS], model.runner.new_state())[-1]
        errors.append(error(logits, model.reference(TOKENS)[-1]))
    assert errors[0] > 0.1
    within("kept in float32", errors[1], 2e-3)


def test_inspect_says_what_stays_in_floats(tmp_path, capsys):
    """Found, decided and recorded by a build without a library."""
    save_file(wide_channel(), checkpoint := tmp_path / "wide.safetensors")
    write_vocabulary(tmp_path / "rwkv_vocab.txt")
    for scheme, stays in (("q4f16_1", "float16"), ("q4f32_1", "float32"), ("q0f16", None)):
        command = build_command(checkpoint, tmp_path / scheme, "--quantization", scheme, "--target", "vulkan")
        folder = tmp_path / scheme / f"wide-{scheme}"
        assert main([*command, "--auto-precision", "--convert-weights-only"]) == 0
        capsys.readouterr()
        assert main(["inspect", str(folder), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert main(["inspect", str(folder)]) == 0
        facts = dict(re.findall(r"^  (\S.*?)  +(\S.*?) *$", capsys.readouterr().out, re.MULTILINE))
        low_rank = {"role": "low_rank", "dtype": stays, "reason": KEPT["low_rank"]}
        kept = {"role": "kept", "dtype": stays, "reason": KEPT["kept"]}
        stored = Artifact.open(folder).stored_tensors()
        if stays is None:
            assert summary["kept"] == [] and "computed in float32" in facts
            continue
        names = [name for name in stored if re.search(r"attention\.[wavg][12]", name)]
        output = "model.blocks.0.attention.output.weight"
        assert summary["kept"] == [kept | {"tensors": [output]}, low_rank | {"tensors": names}] and len(names) == 14
        assert {stored[name].dtype for name in (output, *names)} == {stays}
        wide = "" if stays == "float32" else "blocks.0.att.gated"
        assert facts.get("computed in float32", "") == wide
        assert f"14 low-rank matrices: {KEPT['low_rank']}" == facts[f"stays {stays}"]


def test_build_options_reach_the_artifact(tmp_path, capsys):
    """A choice of precision keeps the parameters, a rescale changes them; a library for the CPU goes on either way."""
    checkpoint = tmp_path / "tiny.safetensors"
    save_file(synthetic_checkpoint("4", vocab_size=97, hidden_size=64, layers=2), checkpoint)
    write_vocabulary(tmp_path / "rwkv_vocab.txt")
    command = build_command(checkpoint, tmp_path / "dist", "--quantization", "q0f32")
    assert main(command) == 0
    folder = tmp_path / "dist" / "tiny-q0f32"
    logits = Engine(folder).prefill(TOKENS, Engine(folder).new_state())

    assert main([*command, "--convert-weights-only", "--fp32-layers", "0,1", "--fp32", "ffn.key"]) == 0
    assert "Reuse parameters" in capsys.readouterr().out
    expected = ("blocks.0.*", "blocks.1.*", "blocks.*.ffn.key", "blocks.*.ffn.mixed_key")
    assert Artifact.open(folder).config.float32 == expected
    engine = Engine(folder)
    np.testing.assert_array_equal(engine.prefill(TOKENS, engine.new_state()), logits)

    shutil.copytree(folder, moved := tmp_path / "moved" / folder.name)  # a process loads the library of a path once
    command = build_command(checkpoint, moved.parent, "--quantization", "q0f32", "--rescale-every", "1")
    assert main([*command, "--auto-precision"]) == 0
    assert "Reuse parameters" not in (out := capsys.readouterr().out) and "every value fits" in out
    assert Artifact.open(moved).config.rescale_every == 1
    engine = Engine(moved)
    np.testing.assert_allclose(engine.prefill(TOKENS, engine.new_state()), logits, atol=1e-3 * np.abs(logits).max())


@pytest.mark.parametrize(
    "options, message", [(["--fp32-layers", "7"], "no layer 7"), (["--rescale-every", "-1"], "at least 1")]
)
def test_wrong_options(tmp_path, capsys, options, message):
    checkpoint = tmp_path / "model.safetensors"
    save_file(synthetic_checkpoint("4", vocab_size=97, hidden_size=64, layers=1), checkpoint)
    write_vocabulary(tmp_path / "rwkv_vocab.txt")
    assert main(build_command(checkpoint, tmp_path / "dist", *options)) == 2
    assert message in capsys.readouterr().err
