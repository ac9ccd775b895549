"""Time one model in rwkv_mlc and in other engines, each in a process of its own, one after the other in several rounds.

    python tools/benchmarks/peers.py rwkv-4-world-0.1b --markdown table.md --json peers.json

The model is a preset with random weights, or a checkpoint. Before anything is timed, the logits of every engine are
held against those of q0f32, so that all run the same model. With ``--device cuda`` all run on the GPU. The ``rwkv``
package and, for RWKV-4, transformers take part where they are installed; rwkv.cpp, llama.cpp and any other command
where the command line names them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from participants import Command, LlamaBench, Participant, Settings, Worker, run
from rwkv_cpp import write_model
from rwkv_mlc.artifact import write_json
from rwkv_mlc.artifact.disk import beside
from rwkv_mlc.bench.speed import operations_of
from rwkv_mlc.building.source import find_checkpoint
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.data_files import config_names
from rwkv_mlc.engine.devices import target_of
from rwkv_mlc.errors import UserError
from rwkv_mlc.machine.cores import physical_cores
from rwkv_mlc.models import generation_of, resolve
from rwkv_mlc.weights import LazyTensor

STRATEGIES = {True: ("cpu fp32", "cpu bf16"), False: ("cuda fp16",)}  # of the rwkv package, on a CPU or not
EXACT = "q0f32"  # the scheme whose logits the others are held against


def differences(participants: list[Participant], settings: Settings) -> dict[str, float]:
    """The largest difference of a logit from those of ``EXACT``, as a part of the largest logit, by name, of the
    engines whose logits can be had; one that cannot run the model is left out, with a word why."""
    exact = next(p for p in participants if p.name == EXACT).logits(settings)
    result = {}
    for participant in participants:
        if isinstance(participant, Worker):
            try:
                found = participant.logits(settings)
            except UserError as error:
                print(f"{participant.name} is left out: {error}", file=sys.stderr)
                continue
            result[participant.name] = float(np.abs(found - exact).max() / np.abs(exact).max())
    return result


def measure(
    participants: list[Participant], settings: Settings, rounds: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each round the machine's limits and every participant's speeds, one process after the other."""
    probe = next(p for p in participants if p.name == EXACT)
    results = []
    for number in range(1, rounds + 1):
        report(f"round {number} of {rounds}: limits")
        speeds, limits = {}, probe.limits(settings)
        for participant in participants:
            report(f"round {number} of {rounds}: {participant.name}")
            speeds[participant.name] = participant.speeds(settings)
        results.append({"limits": limits, "speeds": speeds})
    return results


def summarize(rounds: list[dict[str, Any]], operations: float) -> dict[str, dict[str, float]]:
    """Medians over the rounds by name; fractions are those of the limits of the same round. ``operations`` are those of
    the blocks' matrices for one token."""
    result = {}
    for name in rounds[0]["speeds"]:
        runs = [(r["speeds"][name], r["limits"]) for r in rounds]
        columns: dict[str, list[float]] = {}
        for speeds, limits in runs:
            values = dict(speeds)
            if "decode" in speeds and "weight_bytes" in speeds:
                values["bandwidth_fraction"] = speeds["decode"] * speeds["weight_bytes"] / limits["read_bandwidth"]
            if "prefill" in speeds:
                values["gemm_fraction"] = speeds["prefill"] * operations / limits["gemm_peak"]
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
        result[name] = {key: statistics.median(values) for key, values in columns.items()}
    return result


def markdown(result: dict[str, Any]) -> str:
    """A table of the medians, a sentence on how they came about, and the differences of the logits."""

    def rate(value: float) -> str:
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"

    def cell(row: dict[str, float], key: str, form: str, scale: float = 1) -> str:
        return form.format(row[key] * scale) if row.get(key) else ""

    tokens = result["prefill_tokens"]
    head = ["engine", "decode, tok/s", "of bandwidth", f"prefill {tokens}, tok/s", "of GEMM peak", "memory, GB"]
    lines = ["| " + " | ".join([*head, "logits differ by"]) + " |", "|---" * 7 + "|"]
    for name, row in result["engines"].items():
        cells = [
            name,
            rate(row["decode"]) if "decode" in row else "",
            cell(row, "bandwidth_fraction", "{:.2f}"),
            rate(row["prefill"]) if "prefill" in row else "",
            cell(row, "gemm_fraction", "{:.2f}"),
            cell(row, "memory_bytes", "{:.2f}", 1e-9),
            cell(result["differences"], name, "{:.0e}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    bandwidth, peak = ([r["limits"][key] / 1e9 for r in result["rounds"]] for key in ("read_bandwidth", "gemm_peak"))
    lines += [
        "",
        f"`{result['model']}` on {result['device']}, {result['threads']} threads, medians of "
        f"{len(result['rounds'])} rounds; the machine read {min(bandwidth):.1f} to {max(bandwidth):.1f} GB/s and "
        f"multiplied {min(peak):.0f} to {max(peak):.0f} GFLOP/s.",
    ]
    return "\n".join(lines) + "\n"


def gather(args: argparse.Namespace, folder: Path) -> tuple[list[Participant], RWKVConfig]:
    """Write the model in every form that is wanted; returns those who take part, and the model's shape."""
    seed = 0 if args.model in config_names("models") else None
    checkpoint = find_checkpoint(args.model, Path("dist/models"), random_seed=seed)
    config, _, _ = resolve(checkpoint)
    pth = folder / f"{checkpoint.name}.pth"
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch and not (seed is not None and pth.exists()):
        import torch

        with beside(pth) as partial:
            torch.save({name: torch.from_numpy(t.read()).float() for name, t in checkpoint.tensors.items()}, partial)
    source = ["--model", args.model, *(["--random-weights"] if seed is not None else [])]
    tokenizer = ["--tokenizer", str(args.tokenizer)] if args.tokenizer else []
    result: list[Participant] = []
    for scheme in dict.fromkeys([*args.schemes, EXACT]):
        if not args.built:
            command = [sys.executable, str(ROOT / "build.py"), *source, *tokenizer, "--quantization", scheme]
            run([*command, "--target", target_of(args.device), "--artifact-path", str(folder)], args.threads)
        result.append(Worker(scheme, "rwkv_mlc", folder / f"{checkpoint.name}-{scheme}"))
    if has_torch and importlib.util.find_spec("rwkv"):
        version = importlib.metadata.version("rwkv")
        result += [
            Worker(f"rwkv {version}, {s}", "rwkv", pth, (s,))
            for s in args.strategies or STRATEGIES[args.device == "cpu"]
        ]
    if has_torch and importlib.util.find_spec("transformers"):
        version = importlib.metadata.version("transformers")
        result.append(Worker(f"transformers {version}", "transformers", pth))
    if args.rwkv_cpp:
        result += _rwkv_cpp(args, folder / checkpoint.name, checkpoint.tensors)
    if args.llama_bench:
        result.append(LlamaBench(f"llama.cpp, {args.llama_model.stem}", args.llama_bench, args.llama_model))
    result += [Command(name, template, pth) for name, template in args.engine]
    return result, config


def _rwkv_cpp(args: argparse.Namespace, stem: Path, tensors: dict[str, LazyTensor]) -> list[Worker]:
    library, formats = str(args.rwkv_cpp), args.rwkv_cpp_formats
    files = {name: stem.with_name(f"{stem.name}-{name}.bin") for name in ("FP16", *formats)}
    write_model(files["FP16"], tensors)
    for name in formats:
        if name != "FP16":
            script = [sys.executable, str(HERE / "rwkv_cpp.py")]
            run([*script, library, str(files["FP16"]), str(files[name]), name], args.threads)
    return [Worker(f"rwkv.cpp, {name}", "rwkv.cpp", files[name], (library,)) for name in formats]


def peers(args: argparse.Namespace) -> dict[str, Any]:
    args.folder.mkdir(parents=True, exist_ok=True)
    participants, config = gather(args, args.folder)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, args.prefill).tolist()
    settings = Settings(args.threads, args.device, tokens, args.decode, args.seconds, args.folder)

    found = differences(participants, settings)
    for name, difference in found.items():
        print(f"{name}: logits differ from those of {EXACT} by {difference:.1e} of the largest", file=sys.stderr)
    participants = [p for p in participants if p.name in found or not isinstance(p, Worker)]
    rounds = measure(participants, settings, args.rounds, lambda text: print(text, file=sys.stderr))
    operations = operations_of(generation_of(config).parameters(config))
    return {
        "model": args.model,
        "threads": args.threads,
        "device": args.device,
        "prefill_tokens": args.prefill,
        "decode_steps": args.decode,
        "differences": found,
        "engines": summarize(rounds, operations),
        "rounds": rounds,
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def engine(text: str) -> tuple[str, str]:
        name, equals, command = text.partition("=")
        if not (name and equals and command):
            raise argparse.ArgumentTypeError(f"expected NAME=COMMAND, found {text!r}")
        return name, command

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="preset of configs/models, or a checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="vocabulary of the checkpoint, where not beside it")
    parser.add_argument("--folder", type=Path, default=Path("dist/peers"), help="for the models (dist/peers)")
    parser.add_argument("--built", action="store_true", help="our artifacts are in --folder, as build.py writes them")
    parser.add_argument("--schemes", type=words, default=["q4f16_1", "q8f16_1", "q0f16", EXACT], help="of ours")
    parser.add_argument("--strategies", type=words, help="of the rwkv package, such as 'cpu fp32,cpu bf16'")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--prefill", type=int, default=128, metavar="N", help="length of the prompt (128)")
    parser.add_argument("--decode", type=int, default=64, metavar="N", help="at least this many single tokens (64)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="for each of the two, at least (2)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="each engine once a round (3)")
    parser.add_argument("--threads", type=int, default=physical_cores(), metavar="N", help="of every engine")
    parser.add_argument("--rwkv-cpp", type=Path, metavar="LIBRARY", help="librwkv.so of rwkv.cpp")
    parser.add_argument("--rwkv-cpp-formats", type=words, default=["FP16", "Q4_0", "Q8_0"], metavar="NAMES")
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's llama-bench")
    parser.add_argument("--llama-model", type=Path, metavar="GGUF", help="what it loads")
    parser.add_argument(
        "--engine",
        type=engine,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another engine: a command with {model}, {tokens}, {steps} and {threads} in it that prints "
        "`prefill X` and `decode X`, tokens a second; several times",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table")
    args = parser.parse_args(arguments)
    if (args.llama_bench is None) != (args.llama_model is None):
        parser.error("--llama-bench and --llama-model go together")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        result = peers(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = markdown(result)
    print(table, end="")
    if args.json:
        write_json(args.json, result)
    if args.markdown:
        args.markdown.write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
