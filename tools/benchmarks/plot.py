"""Draw what ``rwkv-mlc bench --json`` measured: every speed as a part of the machine's limit.

python tools/benchmarks/plot.py dist/benchmarks/*.json --out docs/benchmarks.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, LIMIT = "#22303c", "#8a97a3", "#c0392b"
COLORS = {"q0f32": "#7b8794", "q0f16": "#4c78a8", "q8f16_1": "#3a9d8f", "q4f16_1": "#e0a030", "q3f16_1": "#b56576"}
OTHER_COLOR = "#9c7bb5"
ROW_INCHES, GAP = 0.32, 0.7

matplotlib.rcParams.update(
    {
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "rwkv_mlc",
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": FAINT,
        "ytick.color": INK,
    }
)


def model_of(result: dict[str, Any]) -> str:
    return result["model"].removesuffix(f"-{result['quantization']}")


def speed(rate: float) -> str:
    return f"{rate:.{0 if rate >= 100 else 1}f} tok/s"


def load(paths: list[Path]) -> list[dict[str, Any]]:
    """Results by model, and within a model from few to many bytes for a token."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(results, key=lambda result: (model_of(result), result["weight_bytes"]))


def draw(results: list[dict[str, Any]]) -> Figure:
    """Two panels side by side with a row for each result: decode of bandwidth, and prefill of the GEMM peak."""
    groups = [(model, list(rows)) for model, rows in itertools.groupby(results, model_of)]
    positions, ticks, height = [], [], 0.0
    for model, rows in groups:
        height += GAP
        ticks.append((height - 0.35, model))
        height += 0.35
        positions += [height + i for i in range(len(rows))]
        height += len(rows)
    figure = Figure(figsize=(10, ROW_INCHES * height + 1.1), layout="constrained")
    decode, prefill = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
    fractions = [result["decode"]["bandwidth_fraction"] for result in results]
    _frame(decode, "Decode, as a part of the memory's bandwidth", fractions)
    fractions = [row["gemm_fraction"] for result in results for row in result["prefill"]]
    _frame(prefill, "Prefill, as a part of the float32 GEMM peak", fractions)
    for position, model in ticks:
        decode.annotate(model, (0, position), weight="bold", va="center", size=9.5)
    for position, result in zip(positions, results):
        color = COLORS.get(result["quantization"], OTHER_COLOR)
        _draw_decode(decode, position, result["decode"], color)
        _draw_prefill(prefill, position, result["prefill"], color)
    if any("read_fraction" in result["decode"] for result in results):
        decode.set_xlabel("light: weights of hidden units that are zero, which are not read", color=FAINT, size=8)
    decode.set_yticks(positions, [result["quantization"] for result in results])
    decode.set_ylim(height - 0.3, 0)
    return figure


def _frame(axes: Axes, title: str, fractions: list[float]) -> None:
    right = max(1.05, *fractions) + 0.02
    axes.set_title(title, loc="left", size=11, pad=10)
    axes.axvline(1, color=LIMIT, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(0, right)


def _draw_decode(axes: Axes, position: float, decode: dict[str, Any], color: str) -> None:
    """A bar for the dense fraction; where zeros are skipped, the solid part stands for bytes that are read."""
    fraction, rate = decode["bandwidth_fraction"], decode["tokens_per_second"]
    axes.barh(position, fraction, height=0.62, color=color, alpha=0.35)
    axes.barh(position, decode.get("read_fraction", fraction), height=0.62, color=color)
    _label(axes, position, speed(rate["median"]), 8.5)


def _draw_prefill(axes: Axes, position: float, prefill: list[dict[str, Any]], color: str) -> None:
    """A bar a prompt length, the longest at the bottom."""
    height = 0.7 / len(prefill)
    for i, row in enumerate(prefill):
        at = position + (i - (len(prefill) - 1) / 2) * height
        fraction, rate = row["gemm_fraction"], row["tokens_per_second"]["median"]
        axes.barh(at, fraction, height=height * 0.86, color=color, alpha=0.55 if i % 2 == 0 else 1)
        _label(axes, at, f"{row['tokens']} tokens: {speed(rate)}", 7)


def _label(axes: Axes, position: float, text: str, size: float) -> None:
    """Beside the panel."""
    axes.annotate(text, (1.015, position), xycoords=("axes fraction", "data"), va="center", size=size)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="JSON", help="files of rwkv-mlc bench --json")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks.svg"), help="SVG or PNG (docs/benchmarks.svg)"
    )
    args = parser.parse_args(arguments)
    metadata = {"Date": None} if args.out.suffix == ".svg" else None
    draw(load(args.results)).savefig(args.out, dpi=160, metadata=metadata)
    print(f"Wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
