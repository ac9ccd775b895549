"""``rwkv_mlc.build``: what it returns, that it is silent, what it tells an observer, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_mlc
from rwkv_mlc import BuildOptions, Engine, UserError
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.building import compile_artifact, convert_weight, events, gen_config
from rwkv_mlc.cli.main import main
from support.build_inputs import build_command, write_vocabulary
from support.synthetic import synthetic_checkpoint

TOKENS = [1, 5, 9, 2, 40, 77]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "checkpoints" / "tiny.safetensors"
    path.parent.mkdir()
    save_file(synthetic_checkpoint("5.2", vocab_size=97, hidden_size=64, layers=1), path)
    write_vocabulary(path.with_name("rwkv_vocab.txt"))
    return path


def test_a_build_returns_what_it_did_and_prints_nothing(checkpoint, tmp_path, capfd):
    options = BuildOptions(
        head_size_divisor=4,
        context_length=123,
        rescale_every=1,
        float32_layers=(0,),
        float32_values=("ffn.key",),
        template="plain",
    )
    built = rwkv_mlc.build(checkpoint, "llvm", "q0f32", tmp_path / "dist", options)
    assert capfd.readouterr() == ("", "")
    assert built.path == tmp_path / "dist" / "tiny-q0f32"
    assert built.conversion.parameters > 0 and built.conversion.shards == 1
    assert built.library.path == built.path / "tiny-q0f32-llvm.so" and built.library.path.is_file()

    artifact, config = Artifact.open(built.path), built.conversion.config
    assert artifact.config == config and artifact.chat_config.conv_template.name == "plain"
    assert (config.head_size_divisor, config.context_length, config.rescale_every) == (4, 123, 1)
    assert config.float32 == ("blocks.0.*", "blocks.*.ffn.key", "blocks.*.ffn.mixed_key")
    engine = Engine(built.path)
    assert np.isfinite(engine.prefill(TOKENS, engine.new_state())).all()

    again = rwkv_mlc.build(
        checkpoint, quantization="q0f32", artifact_path=tmp_path / "dist", options=options, only="weights"
    )
    assert (again.path, again.conversion, again.library) == (built.path, None, None)


def test_an_observer_is_told_every_step(checkpoint, tmp_path):
    told: list[events.Event] = []
    built = rwkv_mlc.build(checkpoint, artifact_path=tmp_path / "dist", only="weights", observe=told.append)
    stored = [event for event in told if isinstance(event, events.TensorStored)]
    assert [event.number for event in stored] == list(range(1, built.conversion.tensors + 1))
    assert sum(event.nbytes for event in stored) == built.conversion.nbytes
    source, *steps = [event for event in told if event not in stored]
    assert source.source.checkpoint.source == str(checkpoint)
    assert steps == [
        events.ConversionStarted(built.path / "params", built.conversion.tensors),
        events.ConversionFinished(built.conversion, built.path / "params" / "tensor-cache.json"),
        events.ConfigWritten(built.path / "params" / "mlc-chat-config.json"),
        events.BuildFinished(built.path),
    ]
    told.clear()
    rwkv_mlc.build(checkpoint, artifact_path=tmp_path / "dist", only="weights", observe=told.append)
    assert [type(event) for event in told[1:]] == [events.ParametersReused, events.ConfigWritten, events.BuildFinished]


def test_the_parts_return_what_they_wrote(checkpoint, tmp_path, capfd):
    folder = tmp_path / "dist" / "mine"
    assert convert_weight(checkpoint, folder).shards == 1
    assert gen_config(checkpoint, folder) == folder / "params" / "mlc-chat-config.json"
    library = compile_artifact(folder, "llvm", BuildOptions(system_lib=True))
    assert library.path == folder / "mine-llvm.tar" and library.path.is_file()
    assert capfd.readouterr() == ("", "")


def test_what_is_no_build(checkpoint, tmp_path):
    for arguments, message in (
        ({"model": tmp_path / "nothing.pth"}, "no file or folder"),
        ({"quantization": "q4f16_3"}, "did you mean q4f16_"),
        ({"target": "lvm"}, "did you mean llvm"),
        ({"only": "params"}, "not of 'params'"),
        ({"reuse_lib": "x.so", "options": BuildOptions(prefill_activations="int8")}, "leave --prefill-activations out"),
        ({"reuse_lib": checkpoint}, "lies in no artifact"),
        ({"only": "library"}, "is no artifact"),
        ({"options": BuildOptions(float32_layers=(1,))}, "no layer 1"),
        ({"options": BuildOptions(template="wrld")}, "rwkv_world"),
    ):
        with pytest.raises(UserError, match=message):
            rwkv_mlc.build(**{"model": checkpoint, "artifact_path": tmp_path / "dist"} | arguments)
    assert not (tmp_path / "dist").exists() or list((tmp_path / "dist").iterdir()) == []


@pytest.mark.parametrize(
    ("wish", "flags", "message"),
    [
        ({"head_size_divisor": 0}, ["--head-size-divisor", "0"], "--head-size-divisor must be at least 1, not 0."),
        (
            {"rescale_every": -2},
            ["--rescale-every", "-2"],
            "--rescale-every must be at least 1, or 0 for never, not -2.",
        ),
        (
            {"context_length": 0},
            ["--max-seq-len", "0"],
            "--max-seq-len must be at least 1, or -1 for the model's own, not 0.",
        ),
    ],
)
def test_options_refuse_as_the_command_line_does(wish, flags, message, checkpoint, tmp_path, capsys):
    with pytest.raises(UserError) as error:
        BuildOptions(**wish)
    assert str(error.value) == message
    assert main(build_command(checkpoint, tmp_path / "dist", *flags)) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_options_are_values():
    with pytest.raises(UserError, match="are float32, int21, int15, int8, not 'int4'"):
        BuildOptions(prefill_activations="int4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        BuildOptions().rescale_every = 3
    assert BuildOptions(rescale_every=3) == dataclasses.replace(BuildOptions(), rescale_every=3)
