"""A generation that nobody knew, added by a model, a kernel and a reference file (``support.doubled``): everything takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import Engine, reference
from rwkv_mlc.bench.breakdown import breakdown
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.passes.merge import merge_kernels
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.devices import target_of
from rwkv_mlc.inspection import checkpoint_summary
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, detect_config, generation_of, resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import Checkpoint
from rwkv_mlc.weights.random import random_checkpoint
from support.compiled import conditioning, runner_for
from support.doubled.model import Doubled
from support.kernel_build import error
from support.vulkan_kernels import vulkan_device

CONFIG = RWKVConfig(
    "5d", vocab_size=97, hidden_size=64, num_hidden_layers=2, intermediate_size=224, head_size=32, own={"gates": 2}
)
TOKENS = np.random.default_rng(0).integers(0, 97, 60).tolist()


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATIONS, "5d", Doubled())
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """A file of random weights, with a vocabulary beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    drawn = {name: tensor.read() for name, tensor in random_checkpoint(CONFIG, "doubled").tensors.items()}
    save_file(drawn, folder / "doubled.safetensors")
    lines = [f"{i} {bytes([i + 30])!r} 1\n" for i in range(1, 97)]
    (folder / "rwkv_vocab.txt").write_text("".join(lines), encoding="utf-8")
    return open_checkpoint(str(folder / "doubled.safetensors"))


@pytest.fixture(scope="module", params=["cpu", "vulkan"])
def device(request) -> str:
    """Where an artifact runs; skips the test where this machine does not have it."""
    if request.param == "vulkan":
        vulkan_device()
    return request.param


@pytest.fixture(scope="module")
def artifact(checkpoint, device, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(target_of(device))
    command = ["build", "--model", checkpoint.source, "--artifact-path", str(folder), "--target", target_of(device)]
    assert main([*command, "--quantization", "q0f32"]) == 0
    return folder / "doubled-q0f32"


def test_detection(checkpoint):
    config, parameters, _ = resolve(checkpoint)
    assert config == CONFIG and generation_of(config).model_type == "rwkv5doubled"
    assert {p.role for p in parameters if ".second." in p.name} == {"matrix"}
    known = {name: shape for name, shape in checkpoint.shapes.items() if "second" not in name and "mix_s" not in name}
    assert detect_config(known).generation == "5.2"
    assert checkpoint_summary(checkpoint)["model"]["generation"] == "5d"


@pytest.mark.parametrize("scheme, target", [("q0f32", "llvm"), ("q4f16_1", "llvm"), ("q0f32", "vulkan")])
def test_accuracy(scheme, target, checkpoint, compiled, within):
    """As for the generations that are there: ``models/test_accuracy.py``."""
    model = compiled(checkpoint, scheme, target, runner_for(target))
    expected, bound = model.reference(TOKENS), 3 * 7e-7 * conditioning(model, TOKENS)
    within("score", error(model.score(TOKENS), expected), bound)
    within("decode", error(model.decode(TOKENS), expected), bound)
    pool = model.runner.new_state(3)
    batched = model.runner.run("prefill", [TOKENS[:5], TOKENS[5:20]], pool, [2, 0])
    within("prefill", error(batched[1], model.reference(TOKENS[5:20])[-1]), bound)


def test_its_kernels_are_merged_as_those_of_others():
    """The recurrence is known by what its kernel says, not by the kernel's name."""
    module = merge_kernels(build_module(CONFIG, get_scheme("q4f16_1"), resolve_target("llvm")))
    merged = {name.name_hint for name in module.get_global_vars() if "mixing" in name.name_hint}
    assert merged == {"time_mixing", "channel_mixing"}


def test_artifact(artifact, device, checkpoint):
    config = json.loads((artifact / "params" / "mlc-chat-config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["model_category"]) == ("rwkv5doubled", "rwkv5")
    engine = Engine(artifact, device)
    config, parameters = reference.load(checkpoint)
    read = prompt = engine.encode("Tom")
    for _ in range(8):
        logits, _ = reference.forward(config, parameters, read)
        read = [*read, int(logits[-1].argmax())]
    assert engine.generate("Tom", max_tokens=8, temperature=0).tokens == read[len(prompt) :]
    parts = breakdown(engine, lambda: engine.prefill(TOKENS[:20], engine.new_state()), 20)
    groups = {row["group"] for row in parts["groups"]}
    assert {"time_mixing_inputs", "wkv", "group_norm", "time_mixing_output", "head"} <= groups


def test_debug(artifact, device, checkpoint, tmp_path, capsys):
    """The library agrees with its checkpoint; a second gate that is off in the checkpoint is named."""
    command = ["debug", str(artifact), "--device", device, "--against"]
    assert main([*command, checkpoint.source]) == 0
    assert "A and B agree" in capsys.readouterr().out
    changed = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    changed["blocks.1.att.second.weight"] *= 2
    (tmp_path / "changed").mkdir()
    save_file(changed, tmp_path / "changed" / "doubled.safetensors")
    assert main([*command, str(tmp_path / "changed" / "doubled.safetensors")]) == 1
    found = capsys.readouterr().out
    assert "The inputs of prefill/blocks.1.att.second_silu agree" in found
    assert "Look at this op: SiLU" in found or "Look at this op: matrix product" in found


def test_dumps(artifact, device, checkpoint, tmp_path, capsys):
    """The library's agrees with the reference's on the same weights; a package that does not know the generation makes none."""
    assert main(["dump", str(artifact), "--device", device, "--out", str(tmp_path / "a")]) == 0
    assert main(["dump", checkpoint.source, "--reference", "--out", str(tmp_path / "b")]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    pytest.importorskip("rwkv")
    assert main(["dump", checkpoint.source, "--with", "rwkv"]) == 2
    assert "The rwkv package shows nothing of what it computes of RWKV-5d" in capsys.readouterr().err
