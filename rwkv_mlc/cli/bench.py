"""``bench``: speed as tokens a second and as a fraction of the machine's limits."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import options


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("bench", help="time an artifact beside the machine's own limits")
    options.add_engine(parser)
    parser.add_argument("--prefill", type=_lengths, default=[128, 512], metavar="128,512", help="prompt lengths")
    parser.add_argument("--decode", type=int, default=64, metavar="N", help="at least this many single tokens")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences decoded together")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the kernels (all cores)")
    parser.add_argument("--breakdown", action="store_true", help="add the time of every kernel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..artifact import write_json
    from ..eval.bench import bench

    with Console(stderr=True).status("Timing..."):
        result = bench(
            args.model, args.device, args.prefill, args.decode, args.batch, args.threads, breakdown=args.breakdown
        )
    _print(result)
    if args.json:
        write_json(args.json, result)
    return 0


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{result['model']}, {result['threads']} threads; this machine reads {result['read_bandwidth'] / 1e9:.1f} GB/s and "
        f"multiplies {result['gemm_peak'] / 1e9:.0f} GFLOP/s ({result['gemm_peak_of']})",
        highlight=False,
    )
    table = Table("", "tok/s", "p10", "p90", "of the limit", "runs")
    decode = result["decode"]
    rows = [(f"decode, batch {decode['batch']}", decode, f"{decode['bandwidth_fraction']:.2f} of bandwidth")]
    rows += [(f"prefill {p['tokens']}", p, f"{p['gemm_fraction']:.2f} of GEMM peak") for p in result["prefill"]]
    for name, row, limit in rows:
        rates = (f"{row['tokens_per_second'][key]:.1f}" for key in ("median", "p10", "p90"))
        table.add_row(name, *rates, limit, str(row["runs"]))
    console.print(table)
    console.print(
        f"load {result['load_seconds']:.2f} s, peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB for "
        f"{result['weight_bytes'] / 1e9:.2f} GB of weights read for a token",
        highlight=False,
    )
    for name, kernels in result.get("breakdown", {}).items():
        table = Table("kernel", "calls", "ms", title=name)
        for row in kernels:
            table.add_row(row["kernel"], str(row["calls"]), f"{row['seconds'] * 1e3:.3f}")
        console.print(table)


def _lengths(text: str) -> list[int]:
    try:
        return [int(length) for length in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected lengths with commas between them, found {text!r}") from None
