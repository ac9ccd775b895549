"""``bench``: the keys that scripts read, that its fractions follow from its own figures, and that no time is lost."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from rwkv_mlc import Engine, UserError
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.bench import limits, timing
from rwkv_mlc.bench.breakdown import NORMS, Argument, KernelCall, Rows, breakdown
from rwkv_mlc.bench.busy import busy_processes
from rwkv_mlc.bench.memory import peak_memory
from rwkv_mlc.bench.speed import bench, operations_of, own_text
from rwkv_mlc.bench.timing import Compared, Timing, is_enough
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine import threads
from rwkv_mlc.engine.tvm_runtime import to_numpy
from rwkv_mlc.graph.ops import gpu
from support.breakdown import check_parts
from support.paths import DEMO
from support.vulkan_kernels import vulkan_device

BUILD = ["build", "--model", str(DEMO)]


@pytest.mark.parametrize("batch", [1, 2])
def test_bench(demo, quick, tmp_path, capsys, batch):
    file = tmp_path / "bench.json"
    options = ["--prefill", "3,20", "--decode", "4", "--batch", str(batch), "--breakdown", "--json", str(file)]
    assert main(["bench", str(demo), *options]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["model"] == demo.name and result["quantization"] == "q0f32" and result["random_weights"] is False
    decode = result["decode"]
    assert decode["batch"] == batch and decode["runs"] >= 4
    assert len(decode["read_bandwidth"]) >= 2 and np.median(decode["read_bandwidth"]) == result["read_bandwidth"]
    assert decode["bandwidth_fraction"] > 0
    assert ("hidden_zeros" in decode) == ("read_fraction" in decode) == (batch == 1)
    if batch == 1:
        zeros = decode["hidden_zeros"]
        assert len(zeros) == 6 and all(0 < zero < 1 for zero in zeros)
        unread = 4 * 128 * 448 * sum(zeros)  # in float32, if no layer of a step reads all
        assert result["weight_bytes"] - unread - 1 <= decode["read_bytes"] < result["weight_bytes"]
        ratio = decode["read_fraction"] / decode["bandwidth_fraction"]
        assert ratio == pytest.approx(decode["read_bytes"] / result["weight_bytes"])
    generate = result["generate"]
    assert generate["batch"] == batch and generate["runs"] >= 4
    assert min(generate[f"{part}_seconds"] for part in ("call", "choice", "other")) > 0
    assert [p["tokens"] for p in result["prefill"]] == [3, 20]
    work = operations_of(Artifact.open(demo).model_parameters)
    for prefill in result["prefill"]:
        rates = prefill["tokens_per_second"]
        assert rates["p10"] <= rates["median"] <= rates["p90"]
        assert prefill["gemm_fraction"] > 0 and len(prefill["gemm_peak"]) >= 2
    assert result["device"] == "cpu:0" and result["peak_memory_of"] == "process"
    assert result["gemm_peak"] == np.median([peak for p in result["prefill"] for peak in p["gemm_peak"]])
    shown, told = capsys.readouterr()
    assert told.splitlines()[:5] == [
        f"[1/9] loading {demo.name}",
        "[2/9] writing a text, and reading prompts of each length once",
        f"[3/9] decoding, batch {batch}, and reading memory",
        "[4/9] prompts of 3 tokens, and a large product",
        "[5/9] prompts of 20 tokens, and a large product",
    ]
    assert told.splitlines()[8:] == ["[9/9] kernels of prompts of 20 tokens"]
    assert ("hidden units are zero" in shown) == (batch == 1)
    assert "of bandwidth" in shown and "of GEMM peak" in shown and "channel mixing" in shown

    found = result["breakdown"]
    assert {"decode", "prefill 3", "prefill 20"} == set(found)
    for parts in found.values():
        check_parts(parts)
    decode_groups = {row["group"]: row for row in found["decode"]["groups"]}
    assert sum(row["bytes"] for row in decode_groups.values()) == result["weight_bytes"]
    assert decode_groups["embedding"]["bytes"] == 0 < decode_groups["head"]["bytes"]
    for length in (3, 20):
        rows = found[f"prefill {length}"]["groups"]
        operations = sum(row["operations"] for row in rows if row["group"] != "head")
        assert operations == pytest.approx(work * length)


def test_bench_beside_busy_processes(demo, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threads, "_count", None)  # and what it was, afterwards
    file = tmp_path / "bench.json"
    options = ["--prefill", "3", "--decode", "2", "--busy", "2", "--threads", "1", "--json", str(file)]
    assert main(["bench", str(demo), *options]) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["busy"], result["threads"], result["thread_pool"]) == (2, 1, threads.start_threads().owner)
    assert "beside 2 busy processes, 1 thread" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="no fewer than 0 busy processes"):
        bench(demo, busy=-1)


def test_busy_processes_compute_and_end():
    with busy_processes(2) as processes:
        assert len({process.pid for process in processes}) == 2
        time.sleep(0.5)
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.returncode for process in processes)


def test_bench_on_a_gpu(quick, monkeypatch, tmp_path, capsys):
    """The limits are the device's own; so are the times of kernels, which run one after the other."""
    vulkan_device()
    monkeypatch.setattr(gpu, "PEAK_SIZE", 256)
    assert main([*BUILD, "--target", "vulkan", "--quantization", "q4f16_1", "--artifact-path", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    file = tmp_path / "bench.json"
    options = ["--device", "vulkan", "--prefill", "20", "--decode", "2", "--breakdown", "--json", str(file)]
    assert main(["bench", str(path), *options]) == 0
    assert "on vulkan:0, which reads" in " ".join(capsys.readouterr().out.split())
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["device"] == "vulkan:0" and result["gemm_peak_of"] == "the library, float16"
    assert result["peak_memory_of"] == "process"
    assert result["decode"]["bandwidth_fraction"] > 0 < result["prefill"][0]["gemm_fraction"]
    assert "hidden_zeros" not in result["decode"]
    for parts in result["breakdown"].values():
        check_parts(parts)
    groups = {row["group"]: row for row in result["breakdown"]["decode"]["groups"]}
    assert {"time_mixing_inputs", "wkv", "group_norm", "channel_mixing_value", "head"} <= set(groups)
    assert sum(row["bytes"] for row in groups.values()) == result["weight_bytes"]

    engine = Engine(path, "vulkan")
    data = limits.stream_data(engine, 1 << 28)  # halved where kernels reach no such tensor, as on lavapipe
    assert data.shape[0] * limits.STREAM_ROW * 4 in (1 << 27, 1 << 28)
    assert np.all(to_numpy(engine.runner.vm["stream"](data)) == limits.STREAM_ROW)


def test_breakdown_of_a_prompt_read_in_chunks(demo, quick):
    """The operations of all chunks count, and every layer once a chunk."""
    length = 600
    parts = bench(demo, prefill=[20, length], decode=1, breakdown=True)["breakdown"]
    work = {name: {row["group"]: row for row in part["groups"]} for name, part in parts.items()}
    short, long = (work[f"prefill {tokens}"]["wkv"]["calls"] for tokens in (20, length))
    assert (short, long) == (6, 12)
    short, long = (work[f"prefill {tokens}"]["channel_mixing_value"]["operations"] for tokens in (20, length))
    assert long / length == pytest.approx(short / 20)


def argument(group: str, place: tuple[int, str] | None, nbytes: int = 8) -> Argument:
    return Argument(group, place, nbytes, elements=100)


def test_groups_of_kernels():
    mixing, other = (2, "time_mixing"), (2, "channel_mixing")

    def kernel(name: str, *parameters: Argument, previous: KernelCall | None = None) -> KernelCall:
        return KernelCall.of(name, list(parameters), previous, Rows(blocks=3, head=1))

    alone = kernel("gemm_1", argument("time_mixing_output", mixing))
    assert alone == KernelCall("gemm_1", "time_mixing_output", mixing, nbytes=8, operations=600)
    with_norm = kernel("fused", argument(NORMS, None), argument("head", None), previous=alone)
    assert (with_norm.group, with_norm.place, with_norm.operations) == ("head", None, 800)
    assert kernel("norm_shift_mix", argument(NORMS, mixing)).group == NORMS
    merged = kernel("a_b_12", *(argument(group, mixing) for group in (NORMS, "wkv", "time_mixing_output")))
    assert (merged.group, merged.place, merged.nbytes) == ("time_mixing", mixing, 24)
    layer = kernel("layer_3", argument("wkv", mixing), argument("channel_mixing_value", other))
    assert (layer.group, layer.place) == ("layer", mixing)
    follower = kernel("quantize_activation1", previous=alone)
    assert (follower.group, follower.place, follower.nbytes) == ("quantize_activation", mixing, 0)
    assert kernel("border_slots").place is None


def test_instrument_is_gone_after_a_breakdown(engine, quick):
    state, calls = engine.new_state(), []
    breakdown(engine, lambda: calls.append(engine.decode(5, state)), tokens=1)
    assert len(calls) >= 5
    expected = engine.new_state()
    for call in calls:
        np.testing.assert_array_equal(call, engine.decode(5, expected))


def test_own_text_is_the_models(engine):
    text = own_text(engine, 80)
    assert len(text) == 80 and text[0] == 0 and text == own_text(engine, 80)
    written = engine.tokenizer.decode(text)
    assert "village" in written or "Tom" in written or "User" in written, written


def test_weight_bytes_are_those_on_disk(demo, quick):
    from rwkv_mlc import Engine

    stored = Engine(demo).artifact.parameters()
    expected = sum(array.nbytes for name, array in stored.items() if not name.startswith("model.embeddings"))
    assert bench(demo, prefill=[2], decode=1)["weight_bytes"] == expected


def test_timing_takes_medians():
    timing = Timing(median=0.5, p10=0.25, p90=1.0, runs=3)
    assert timing.rate(8) == {"median": 16, "p10": 8, "p90": 32}


def test_timing_of_calls(quick):
    calls = []
    result = Timing.of(lambda: calls.append(1), min_runs=20)
    assert result.runs == len(calls) - 1 >= 20 and 0 < result.p10 <= result.median <= result.p90


def test_fractions_are_of_the_limits_beside_them(monkeypatch):
    """A machine that reads at half its speed for a while: the fraction is that of the median round."""
    seconds = iter([0.0625] * 4 + [0.25] + [0.125] * 2)
    monkeypatch.setattr(timing, "seconds_of", lambda call: next(seconds))
    monkeypatch.setattr(timing, "MIN_RUNS", 7)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    limits = iter([1000.0, 800.0, 500.0, 400.0])
    compared = Compared.of(lambda: None, lambda: next(limits))
    assert compared.limits == [1000, 800, 500, 400] and compared.timing.runs == 7 and compared.timing.median == 0.0625
    fractions = [1 / 0.0625 / 1000, 1 / 0.25 / 800, 1 / 0.125 / 500]
    assert compared.unit_fraction == np.median(fractions)


@pytest.mark.parametrize(
    "runs, seconds, min_runs, enough",
    [(9, 1, 1, False), (10, 1, 1, True), (10, 0.1, 1, False), (5, 5, 1, True), (4, 9, 1, False), (64, 1, 65, False)],
)
def test_how_many_calls_are_enough(runs, seconds, min_runs, enough):
    assert is_enough([seconds] * runs, min_runs) is enough


def test_peak_memory():
    before = peak_memory()
    block = np.ones(1 << 24)
    assert before < 1 << 40 and peak_memory() >= before and peak_memory() > block.nbytes


@pytest.mark.parametrize("option", [["--decode", "0"], ["--prefill", "0"], ["--batch", "-1"], ["--threads", "0"]])
def test_counts_below_one_are_refused(demo, capsys, option):
    try:
        code = main(["bench", str(demo), *option])
    except SystemExit as end:  # what is refused before the engine is there
        code = end.code
    assert code == 2
    assert "at least 1" in capsys.readouterr().err
