"""The scripts of tools/benchmarks: the plot, the runs over many artifacts, and the comparison with other engines."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import reference
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import LazyTensor
from support.paths import DEMO
from support.synthetic import synthetic_checkpoint

TOOLS = Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(TOOLS))

import engines
import families
import participants
import peers
import sweep
from participants import expand, parse_llama_bench, parse_rates
from rwkv_cpp import write_model


def test_families_side_by_side(demo, capsys):
    """Of one library beside itself every kernel is there on both sides."""
    families.main([str(demo), str(demo), "--tokens", "3", "--rounds", "1"])
    shown = capsys.readouterr().out
    assert "decode of 1: " in shown and "prefill of 3: " in shown
    rows = [line.split("│") for line in shown.splitlines() if "att.wkv" in line]
    assert len(rows) == 2 and all(row[2].strip() == row[4].strip() == "6" for row in rows)


def result(model: str, scheme: str, weight_bytes: int, **decode) -> dict:
    """What ``rwkv-mlc bench --json`` writes, as far as the plot reads it."""
    rates = {"median": 37.25, "p10": 30.0, "p90": 40.0}
    prefill = [{"tokens": n, "tokens_per_second": rates, "gemm_fraction": 0.9} for n in (128, 512)]
    decode = {"tokens_per_second": rates, "bandwidth_fraction": 1.2, **decode}
    return {
        "model": f"{model}-{scheme}",
        "quantization": scheme,
        "weight_bytes": weight_bytes,
        "decode": decode,
        "prefill": prefill,
    }


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    import plot

    results = [
        result("rwkv-5-world-1.5b", "q8f16_1", 200),
        result("rwkv-5-world-1.5b", "q4f16_1", 100, read_fraction=0.8),
        result("rwkv-4-world-0.1b", "q4f16_2", 50),
    ]
    files = []
    for i, data in enumerate(results):
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(data), encoding="utf-8")
    assert [r["weight_bytes"] for r in plot.load(files)] == [50, 100, 200]
    out = tmp_path / "plot.svg"
    assert plot.main([*map(str, files), "--out", str(out)]) == 0
    texts = ["".join(element.itertext()).strip() for element in ElementTree.parse(out).iter() if "text" in element.tag]
    for text in (
        "rwkv-5-world-1.5b",
        "rwkv-4-world-0.1b",
        "q8f16_1",
        "q4f16_2",
        "37.2 tok/s",
        "512 tokens: 37.2 tok/s",
    ):
        assert text in texts, text
    first = out.read_bytes()
    assert plot.main([*map(str, files), "--out", str(out)]) == 0
    assert out.read_bytes() == first


def test_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(source, scheme, artifact, result, options, remove):
        calls.append((source, scheme, artifact.name, options))
        result.write_text("{}", encoding="utf-8")
        return True

    monkeypatch.setattr(sweep, "measure", measure)
    folders = ["--artifacts", str(tmp_path), "--results", str(tmp_path / "results")]
    models = ["rwkv-4-world-0.1b", str(DEMO)]
    assert sweep.main([*models[:1], "--schemes", "q0f16", *folders, "--breakdown"]) == 0
    assert sweep.main([*models, "--schemes", "q4f16_1,q0f16", *folders, "--decode", "9"]) == 0
    preset, demo = ["--model", models[0], "--random-weights"], ["--model", str(DEMO.resolve())]
    assert calls == [
        (preset, "q0f16", "rwkv-4-world-0.1b-q0f16", ["--breakdown"]),
        (preset, "q4f16_1", "rwkv-4-world-0.1b-q4f16_1", ["--decode", "9"]),
        (demo, "q4f16_1", "rwkv-5-village-q4f16_1", ["--decode", "9"]),
        (demo, "q0f16", "rwkv-5-village-q0f16", ["--decode", "9"]),
    ]
    assert "rwkv-4-world-0.1b-q0f16 is measured already" in capsys.readouterr().out
    for wrong in (["nowhere"], [str(DEMO), "--schemes", "q5"]):
        with pytest.raises(SystemExit):
            sweep.main([*wrong, *folders])


def test_templates_of_commands():
    words = expand("run -m '{model}' --n={tokens} -t {threads} a{{b", model=Path("a b.pth"), tokens=3, threads=2)
    assert words == ["run", "-m", "a b.pth", "--n=3", "-t", "2", "a{b"]
    for wrong in ("run {modle}", "run {", "run '", "run {}", "run {0}"):
        with pytest.raises(UserError, match="{model}"):
            expand(wrong, model="x")


def test_rates_of_commands():
    assert parse_rates("loading\n 7.5 \n") == {"decode": 7.5}
    assert parse_rates("prefill 41.5\ndecode: 7\nprefill=42\n") == {"prefill": 42, "decode": 7}
    for wrong in ("", "tokens 5", "decode fast"):
        with pytest.raises(UserError, match="decode 7.5"):
            parse_rates(wrong)


def test_rates_of_llama_bench():
    tests = [
        {"n_prompt": 128, "n_gen": 0, "avg_ts": 371.5, "stddev_ts": 1.0},
        {"n_prompt": 0, "n_gen": 64, "avg_ts": 56.5, "stddev_ts": 0.2},
        {"n_prompt": 128, "n_gen": 64, "avg_ts": 100.0, "stddev_ts": 0.2},
    ]
    assert parse_llama_bench(json.dumps(tests)) == {"prefill": 371.5, "decode": 56.5}


def test_fractions_are_of_the_same_round():
    def speeds(decode: float) -> dict:
        return {"ours": {"decode": decode, "prefill": 10.0, "weight_bytes": 4e9}, "theirs": {"decode": 2.0}}

    rounds = [
        {"limits": {"read_bandwidth": bandwidth, "gemm_peak": 50e9}, "speeds": speeds(decode)}
        for decode, bandwidth in ((1.0, 8e9), (2.0, 10e9), (4.0, 16e9))
    ]
    summary = peers.summarize(rounds, operations=2e9)
    assert summary["ours"]["decode"] == 2.0 and summary["ours"]["bandwidth_fraction"] == 0.8
    assert summary["ours"]["gemm_fraction"] == 0.4
    assert summary["theirs"] == {"decode": 2.0}
    result = {
        "model": "m",
        "device": "cpu",
        "threads": 2,
        "prefill_tokens": 128,
        "differences": {"ours": 2e-6},
        "rounds": rounds,
    }
    table = peers.markdown({**result, "engines": summary}).splitlines()
    assert table[2] == "| ours | 2.00 | 0.80 | 10.0 | 0.40 |  | 2e-06 |"
    assert table[3] == "| theirs | 2.00 |  |  |  |  |  |"
    assert "8.0 to 16.0 GB/s" in table[-1]


@pytest.mark.parametrize("generation", ["6", "7"])
def test_rwkv_cpp_file_of_a_later_generation(tmp_path, generation):
    tensors = {n: LazyTensor(a.shape, "float32", a.copy) for n, a in synthetic_checkpoint(generation, layers=1).items()}
    with pytest.raises(UserError, match="RWKV-4 and RWKV-5 only"):
        write_model(tmp_path / "m.bin", tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("generation", ["4", "5.0", "5.1", "5.2"])
def test_rwkv_cpp_file(tmp_path, generation):
    """What the reader of rwkv.cpp's files makes of it."""
    tensors = synthetic_checkpoint(generation, layers=2)
    write_model(tmp_path / "m.bin", {n: LazyTensor(a.shape, "float32", a.copy) for n, a in tensors.items()})
    found = open_checkpoint(str(tmp_path / "m.bin")).tensors
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_allclose(found[name].read().squeeze(), array.squeeze(), rtol=1e-3, atol=2e-4, err_msg=name)


def test_engine_that_fails(tmp_path):
    settings = participants.Settings(1, "cpu", [1, 2], 1, 0.01, tmp_path)
    failing = participants.Command("it", f"{sys.executable} -c 'raise SystemExit(\"no such model\")'", tmp_path)
    with pytest.raises(UserError, match="code 1: no such model"):
        failing.speeds(settings)
    with pytest.raises(UserError, match="Cannot run /nowhere/engine"):
        participants.Command("it", "/nowhere/engine", tmp_path).speeds(settings)


def write_tiny(path: Path, generation: str) -> Path:
    """A checkpoint with its vocabulary beside it."""
    save_file(synthetic_checkpoint(generation, vocab_size=257, layers=2), path)
    lines = (f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256))
    path.with_name("rwkv_vocab.txt").write_text("".join(lines), encoding="utf-8")
    return path


def test_transformers_runs_the_same_model(tmp_path):
    pytest.importorskip("transformers")
    checkpoint = write_tiny(tmp_path / "tiny.safetensors", "4")
    config, parameters = reference.load(open_checkpoint(str(checkpoint)))
    engine = engines.Transformers(checkpoint, threads=1, device="cpu")
    for _ in range(2):
        engine.reset()
        found = [engine.read([3, 1, 4]), engine.read([1]), engine.read([5, 9])]
        expected, _ = reference.forward(config, parameters, [3, 1, 4, 1, 5, 9])
        np.testing.assert_allclose(found, expected[[2, 3, 5]], rtol=1e-4, atol=1e-5)
    assert engine.weight_bytes == 4 * sum(p.size for name, p in parameters.items() if "embeddings" not in name)


@pytest.mark.parametrize("generation", list(GENERATIONS)[1:])
def test_transformers_takes_no_later_generation_for_its_own(generation, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(SystemExit, match="transformers knows RWKV-4 only"):
        engines.Transformers(write_tiny(tmp_path / "tiny.safetensors", generation), threads=1, device="cpu")


def test_peers(tmp_path, capsys):
    """The engines that can run the same small model and agree; transformers cannot, and is left out."""
    pytest.importorskip("torch")
    pytest.importorskip("rwkv")
    checkpoint = write_tiny(tmp_path / "tiny.safetensors", "5.2")
    out, table = tmp_path / "peers.json", tmp_path / "peers.md"
    options = ["--folder", str(tmp_path / "models"), "--schemes", "q0f32", "--strategies", "cpu fp32", "--rounds", "1"]
    options += ["--prefill", "4", "--decode", "2", "--seconds", "0.01"]
    engine = f"echo={sys.executable} -c \"print('decode', {{tokens}}, sep=' ')\""
    files = ["--json", str(out), "--markdown", str(table)]
    assert peers.main([str(checkpoint), *options, "--engine", engine, *files]) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    ours, rwkv, echo = data["engines"]
    assert (ours, rwkv[:5], echo) == ("q0f32", "rwkv ", "echo")
    assert data["differences"][ours] == 0 < data["differences"][rwkv] < 1e-5
    assert data["engines"][echo] == {"decode": 4.0}
    limits = data["rounds"][0]["limits"]
    for row in (data["engines"][ours], data["engines"][rwkv]):
        assert row["bandwidth_fraction"] == pytest.approx(
            row["decode"] * row["weight_bytes"] / limits["read_bandwidth"]
        )
    # The package computes the norm of the embedding once, when it loads.
    assert data["engines"][ours]["weight_bytes"] == data["engines"][rwkv]["weight_bytes"] + 2 * 4 * 128
    printed = capsys.readouterr()
    assert table.read_text(encoding="utf-8") in printed.out
    assert util.find_spec("transformers") is None or "transformers knows RWKV-4 only" in printed.err
