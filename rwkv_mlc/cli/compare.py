"""``compare``: two dumps, and the first value that one of them has wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..escaping import escaped
from .arguments import named_path, positive_number
from .faults import say
from .tables import Table, console

if TYPE_CHECKING:
    from ..debug.compare import Comparison, Row

AGREE, DIFFER = 0, 1
AROUND = 3  # rows before and after the finding


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("compare", help="find the first value in which two dumps differ")
    parser.add_argument("a", metavar="A", type=named_path, help="dump to look at")
    parser.add_argument("b", metavar="B", type=named_path, help="dump that is right")
    add_output(parser)
    parser.set_defaults(run=run)


def add_output(parser: argparse.ArgumentParser) -> None:
    text = "relative root mean square beyond which a value differs (by the dumps: 1e-4 for float32)"
    parser.add_argument("--rtol", type=positive_number, metavar="X", help=text)
    parser.add_argument("--all", action="store_true", help="list every value")
    parser.add_argument(
        "--html", type=named_path, metavar="FILE", help="write a report with a map over layers and roles"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from ..debug.compare import compare
    from ..debug.dump import Dump

    check_outputs(args)
    return show(args, compare(Dump.read(args.a), Dump.read(args.b), args.rtol))


def check_outputs(args: argparse.Namespace) -> None:
    """Raises UserError where the report cannot be written: before the work."""
    from ..artifact.disk import check_output

    if args.html:
        check_output(args.html)


def show(args: argparse.Namespace, comparison: Comparison, **more) -> int:
    """Print, write the report, return the exit code; ``more`` joins the JSON."""
    from ..debug.report import write_report

    if args.html:
        write_report(comparison, args.html)
    if args.json:
        say(json.dumps(comparison.to_dict() | more, indent=2, ensure_ascii=False))
    else:
        _print(comparison, args.all)
    return AGREE if comparison.agrees else DIFFER


def _print(comparison: Comparison, everything: bool) -> None:
    from ..debug.report import lines

    out, rows, finding = console(), comparison.rows, comparison.finding
    a, b = (
        f"{header.name} ({' '.join(filter(None, (header.family, header.source)))}, {header.activations})"
        for header in (comparison.a, comparison.b)
    )
    out.print(f"A: {escaped(a)}\nB: {escaped(b)}")
    if everything or not finding:
        out.print(_table("value", ((row.name, row) for row in (rows if everything else _worst(rows)))))
    else:
        at = rows.index(finding.row)
        shown = rows[max(0, at - AROUND) : at + AROUND + 1]
        out.print(_table("value", ((f"> {row.name}" if row is finding.row else row.name, row) for row in shown)))
    for line in lines(comparison):
        out.print(escaped(line))
    tolerance = f"{len(rows)} values, tolerance {comparison.rtol:g}"
    out.print(f"A and B agree ({tolerance})." if comparison.agrees else f"A and B differ ({tolerance}).")


def _worst(rows: list[Row]) -> list[Row]:
    """The value with the largest error of every role."""
    worst: dict[str, Row] = {}
    for row in rows:
        role = row.place[1]
        if role not in worst or row.difference.relative_rms > worst[role].difference.relative_rms:
            worst[role] = row
    return list(worst.values())


def _table(first: str, rows: Iterator[tuple[str, Row]]):
    result = Table(first, "shape", "relative RMS", "limit", "max abs", "cosine", "NaN, Inf in A", "magnitudes in A")
    for name, row in rows:
        d = row.difference
        result.add_row(
            name,
            " x ".join(map(str, d.shape)),
            f"{d.relative_rms:.1e}",
            f"{row.limit:.0e}",
            f"{d.max_abs:.1e}",
            f"{d.cosine:.6f}",
            f"{d.nan[0]}, {d.inf[0]}",
            f"{d.smallest[0]:.1e} to {d.largest[0]:.1e}",
        )
    return result
