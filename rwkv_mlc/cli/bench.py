"""``bench``: speed as tokens a second and as a fraction of the machine's limits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..escaping import escaped_values
from . import options
from .arguments import integer, integers, named_path
from .progress import steps
from .tables import Table, console, size

if TYPE_CHECKING:
    from rich.console import Console


MOST_TOKENS = 1 << 20


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("bench", help="time an artifact beside the machine's own limits")
    options.add_engine(parser)
    parser.add_argument(
        "--prefill",
        type=integers("lengths", 1, MOST_TOKENS),
        default=[128, 512],
        metavar="128,512",
        help="prompt lengths",
    )
    parser.add_argument(
        "--decode",
        type=integer(1, MOST_TOKENS),
        default=64,
        metavar="N",
        help="at least this many single tokens",
    )
    parser.add_argument("--batch", type=integer(1), default=1, metavar="N", help="sequences decoded together")
    parser.add_argument(
        "--busy", type=integer(0, 256), default=0, metavar="N", help="other processes that burn a core meanwhile"
    )
    parser.add_argument("--breakdown", action="store_true", help="add where the time goes")
    parser.add_argument("--json", type=named_path, metavar="FILE", help="write the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..artifact import write_json
    from ..artifact.disk import check_output
    from ..bench.speed import bench

    if args.json:
        check_output(args.json)
    with steps() as tell:
        result = bench(
            args.model,
            args.device,
            args.prefill,
            args.decode,
            args.batch,
            args.threads,
            args.breakdown,
            args.busy,
            tell,
        )
    if args.json:
        write_json(args.json, result)
    _print(escaped_values(result))
    return 0


def _print(result: dict) -> None:
    out = console()
    slowest, fastest = (limit(result["decode"]["read_bandwidth"]) / 1e9 for limit in (min, max))
    device = result["device"]
    threads = f"{result['threads']} thread{'s' * (result['threads'] != 1)}"
    threads += " of TVM's pool" * (result["thread_pool"] == "tvm")
    where = f"{threads}; this machine" if device.startswith("cpu") else f"on {device}, which"
    beside = f" beside {result['busy']} busy processes" if result["busy"] else ""
    out.print(
        f"{result['model']}{beside}, {where} reads {result['read_bandwidth'] / 1e9:.1f} GB/s "
        f"({slowest:.1f} to {fastest:.1f} while decoding) and multiplies {result['gemm_peak'] / 1e9:.0f} GFLOP/s "
        f"({result['gemm_peak_of']})"
    )
    table = Table("", "tok/s", "p10", "p90", "of the limit", "runs")
    decode = result["decode"]
    rows = [(f"decode, batch {decode['batch']}", decode, f"{decode['bandwidth_fraction']:.2f} of bandwidth")]
    generate = result["generate"]
    choice = generate["choice_seconds"] / sum(generate[f"{part}_seconds"] for part in ("call", "choice", "other"))
    rows += [(f"generate, batch {generate['batch']}", generate, f"{choice:.1%} choosing tokens")]
    rows += [(f"prefill {p['tokens']}", p, f"{p['gemm_fraction']:.2f} of GEMM peak") for p in result["prefill"]]
    for name, row, limit in rows:
        rates = (f"{row['tokens_per_second'][key]:.1f}" for key in ("median", "p10", "p90"))
        table.add_row(name, *rates, limit, str(row["runs"]))
    out.print(table)
    out.print(
        f"load {result['load_seconds']:.2f} s, peak memory of the {result['peak_memory_of']} "
        f"{size(result['peak_memory_bytes'])} for {size(result['weight_bytes'])} of weights read for a token"
    )
    if "hidden_zeros" in decode:
        zeros = decode["hidden_zeros"]
        drawn = ", of random weights, which says nothing of trained ones" if result["random_weights"] else ""
        out.print(
            f"channel mixing's hidden units are zero for {sum(zeros) / len(zeros):.0%} ({min(zeros):.0%} to "
            f"{max(zeros):.0%} by layer{drawn}); for that {1 - decode['read_bytes'] / result['weight_bytes']:.0%} of "
            f"the weights are not read, and the others come at {decode['read_fraction']:.2f} of bandwidth"
        )
    if "prefill_error" in result:
        error = result["prefill_error"]
        out.print(
            f"prefill takes {result['prefill_activations']} activations: its logits differ by {error['relative_rms']:.2e} "
            f"of their root mean square, at most by {error['max_abs']:.2g}"
        )
    for name, parts in result.get("breakdown", {}).items():
        _print_breakdown(out, name, parts)


def _print_breakdown(out: Console, name: str, parts: dict) -> None:
    amount, unit = ("bytes", "GB/s") if name == "decode" else ("operations", "GFLOP/s")
    table = Table("kernels", "calls", "ms", "of the time", unit, title=name)
    for row in parts["groups"]:
        speed = f"{row[amount] / row['seconds'] / 1e9:.1f}" if row[amount] else ""
        share = f"{row['seconds'] / parts['seconds']:.1%}"
        table.add_row(row["group"].replace("_", " "), str(row["calls"]), _milliseconds(row["seconds"]), share, speed)
    outside = parts["outside_seconds"]
    table.add_row("outside", "", _milliseconds(outside), f"{outside / parts['seconds']:.1%}", "")
    table.add_row("all", "", _milliseconds(parts["seconds"]), "", "")
    out.print(table)
    table = Table("layer", "time mixing, ms", "channel mixing, ms", title=name)
    for layer, row in enumerate(parts["layers"]):
        table.add_row(str(layer), _milliseconds(row["time_mixing"]), _milliseconds(row["channel_mixing"]))
    out.print(table)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
