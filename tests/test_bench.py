"""``bench``: the keys that scripts read, and that its fractions follow from its own figures."""

from __future__ import annotations

import json

import pytest

from rwkv_mlc.cli.main import main
from rwkv_mlc.eval import bench as bench_module
from rwkv_mlc.eval.bench import Timing


@pytest.fixture
def quick(monkeypatch):
    """Few and small measurements: what they say of the machine does not matter here."""
    monkeypatch.setattr(bench_module, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(bench_module, "MIN_RUNS", 2)
    monkeypatch.setattr(bench_module, "STREAM_BYTES", 1 << 22)
    monkeypatch.setattr(bench_module, "GEMM_SIZE", 64)


@pytest.mark.parametrize("batch", [1, 2])
def test_bench(demo, quick, tmp_path, capsys, batch):
    file = tmp_path / "bench.json"
    options = ["--prefill", "3,9", "--decode", "4", "--batch", str(batch), "--breakdown", "--json", str(file)]
    assert main(["bench", str(demo), *options]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    decode = result["decode"]
    assert decode["batch"] == batch and decode["runs"] >= 4
    steps = decode["tokens_per_second"]["median"] / batch
    assert decode["bandwidth_fraction"] == pytest.approx(result["weight_bytes"] * steps / result["read_bandwidth"])
    assert [p["tokens"] for p in result["prefill"]] == [3, 9]
    for prefill in result["prefill"]:
        rates = prefill["tokens_per_second"]
        assert rates["p10"] <= rates["median"] <= rates["p90"]
    first, second = (p["gemm_fraction"] / p["tokens_per_second"]["median"] for p in result["prefill"])
    assert first == pytest.approx(second)
    assert {"decode", "prefill 3", "prefill 9"} == set(result["breakdown"])
    assert any(row["kernel"].startswith("gemv") for row in result["breakdown"]["decode"])
    shown = capsys.readouterr().out
    assert "of bandwidth" in shown and "of GEMM peak" in shown


def test_weight_bytes_are_those_on_disk(demo, quick):
    from rwkv_mlc import Engine

    engine = Engine(demo)
    stored = engine.artifact.parameters()
    expected = sum(array.nbytes for name, array in stored.items() if not name.startswith("model.embeddings"))
    assert bench_module.bench(demo, prefill=[2], decode=1)["weight_bytes"] == expected


def test_timing_takes_medians():
    timing = Timing(median=0.5, p10=0.25, p90=1.0, runs=3)
    assert timing.rate(8) == {"median": 16, "p10": 8, "p90": 32}


@pytest.mark.parametrize("option", [["--decode", "0"], ["--prefill", "0"], ["--batch", "-1"], ["--threads", "0"]])
def test_counts_below_one_are_refused(demo, capsys, option):
    assert main(["bench", str(demo), *option]) == 2
    assert "at least 1" in capsys.readouterr().err
