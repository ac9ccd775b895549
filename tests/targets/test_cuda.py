"""Models on CUDA as a whole, on ``cuda_device``: graphs of launches, and the commands. Their logits are in
``test_gpu_graph``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.bench import limits
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.cuda import find_compiler
from rwkv_mlc.errors import UserError
from rwkv_mlc.graph.ops import gpu as ops
from rwkv_mlc.verification.run import agreement
from support.accuracy import PROMPTS, trained_like_weights
from support.breakdown import check_parts
from support.cuda_device import CpuCompiler
from support.paths import DEMO, ROOT

TARGET = "cuda -arch=sm_80"
TOKENS = np.random.default_rng(0).integers(0, 97, 12).tolist()


@pytest.mark.parametrize("on_gpu", ["cuda"], indirect=True)
def test_graphs_change_no_value(on_gpu, cuda_device):
    """A graph belongs to its state, and copies of one do not share it."""
    model, counters = on_gpu(trained_like_weights("5.2"), "q8f16_1"), cuda_device.counters
    states = [model.runner.new_state() for _ in range(2)]
    graphs, launches = counters.live_graphs, counters.graph_launches
    with_graphs = model.decode(TOKENS[:9], states[0])
    assert counters.live_graphs == graphs + 1 and counters.graph_launches == launches + 8
    model.runner.uses_graphs = False
    without = model.decode(TOKENS[:9], states[1])
    assert counters.graph_launches == launches + 8
    assert np.array_equal(with_graphs, without)
    assert all(np.array_equal(*arrays) for arrays in zip(*(state.arrays() for state in states)))
    model.runner.uses_graphs = True
    copy = states[0].copy()
    further = [model.decode(TOKENS[9:12], state) for state in (states[0], copy)]
    assert np.array_equal(*further)
    del states, copy
    assert counters.live_graphs == graphs


# Commands, in processes that find the device by themselves


@pytest.fixture(scope="module")
def artifact(cuda_device, tmp_path_factory) -> Path:
    """A demo model for CUDA, with machine code for GPUs beside what runs here."""
    folder = tmp_path_factory.mktemp("cuda")
    try:
        real = find_compiler(["sm_80"])
    except UserError as reason:
        pytest.skip(str(reason))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "find_compiler", lambda _: CpuCompiler(cuda_device, real))
        patch.setattr(ops, "PEAK_SIZE", 256)
        command = ["build", "--model", str(DEMO), "--quantization", "q0f16", "--target", TARGET]
        assert main([*command, "--artifact-path", str(folder)]) == 0
    (built,) = folder.iterdir()
    return built


@pytest.fixture
def run(cuda_device):
    """A command of rwkv-mlc; what it prints."""

    def run(*command: str) -> str:
        environment = os.environ | cuda_device.environment
        command = [sys.executable, "-m", "rwkv_mlc", *command]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_generate(artifact, demo, run, device):
    """The text is that of the CPU in float32."""
    options = ["--prompt", PROMPTS[0], "--temperature", "0", "--max-tokens", "48", "--json"]
    answers = [
        json.loads(run("generate", str(path), *options, "--device", on))
        for path, on in ((artifact, device), (demo, "cpu"))
    ]
    assert answers[0]["text"] == answers[1]["text"]


def test_debug(artifact, run):
    """The kernels of ``decode`` one by one, and the graph of them beside."""
    report = run("debug", str(artifact), "--against", str(DEMO), "--device", "cuda")
    assert "A and B agree" in report and "gives other logits" not in report


def test_verify(artifact, run):
    (report,) = json.loads(run("verify", str(artifact), "--json"))
    assert {check["check"] for check in report["checks"] if check["status"] != "passed"} == {"run"}
    assert report["architectures"] == ["sm_80", "compute_80"]
    assert agreement(artifact, "cuda").startswith("on cuda: ")  # another process does not have this device


@pytest.mark.usefixtures("quick")
def test_bench(artifact, tmp_path, capsys):
    file = tmp_path / "bench.json"
    options = ["--device", "cuda", "--prefill", "20", "--decode", "2", "--breakdown", "--json", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "PEAK_SIZE", 256)
        patch.setattr(limits, "PROBE_ROWS", (64, 64))
        patch.setattr("rwkv_mlc.bench.speed.TEXT_TOKENS", 8)
        assert main(["bench", str(artifact), *options]) == 0
    assert "on cuda:0, which reads" in " ".join(capsys.readouterr().out.split())
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["device"] == "cuda:0" and result["peak_memory_of"] == "device"
    assert result["peak_memory_bytes"] > result["weight_bytes"]
    assert result["decode"]["bandwidth_fraction"] > 0 < result["prefill"][0]["gemm_fraction"]
    for parts in result["breakdown"].values():
        check_parts(parts)


def test_a_second_device_is_not_there(artifact, cuda_device):
    command = [sys.executable, "-m", "rwkv_mlc", "generate", str(artifact), "--prompt", "x", "--device"]
    environment = os.environ | cuda_device.environment
    for device, reason in (("cuda:1", "has no device cuda:1"), ("vulkan", "has no library for vulkan")):
        result = subprocess.run([*command, device], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode != 0 and reason in result.stderr and "Traceback" not in result.stderr
