"""``verify``: what is inside compiled libraries, and every check that this machine can make of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from ..escaping import escaped_values
from .arguments import named_path
from .faults import say
from .progress import spinner
from .tables import Table, console, pairs

EXIT_FAILED = 1


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="show what is inside compiled libraries and check them",
        description=(
            "Show what is inside compiled libraries and check them, without loading them. A library is code, which runs "
            "with the user's rights as soon as it is loaded, as by chat, generate and bench: run those of people whom you "
            "trust."
        ),
    )
    parser.add_argument(
        "path", metavar="PATH", type=named_path, help="artifact folder, or a library: .so, .dylib or .tar"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list, a library an entry")
    parser.add_argument(
        "--run", dest="run_it", action="store_true", help="run them too, on the devices of this machine"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..verification import verify

    with spinner() as tell:
        reports = verify(args.path, args.run_it, tell)
    if args.json:
        say(json.dumps(reports, indent=2, ensure_ascii=False))
    else:
        for report in reports:
            _print(escaped_values(report))
    failed = any(check["status"] == "failed" for report in reports for check in report["checks"])
    return EXIT_FAILED if failed else 0


def _print(report: dict[str, Any]) -> None:
    out = console()
    out.print(f"{report['file']}" + (f", the library for {report['target']}" if "target" in report else ""))
    out.print(pairs(_facts(report)))
    if report["kernels"]:
        out.print(_kernels(report["kernels"]))
    checks = Table("check", "", "found", justify="left")
    for check in report["checks"]:
        checks.add_row(check["check"], check["status"], check["detail"])
    out.print(checks)


def _facts(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "size", f"{report['bytes']:,} bytes"
    yield "format", f"{report['format']} for {report['architecture']}"
    architectures = f" for {', '.join(report['architectures'])}" if report["architectures"] else ""
    yield (
        "kernels",
        f"{len(report['kernels'])} of {report['kind']}{architectures}" if report["kernels"] else "the CPU's",
    )
    yield (
        "modules",
        ", ".join(f"{m['kind']} ({m['bytes']:,} bytes)" if m["bytes"] else m["kind"] for m in report["modules"]),
    )
    yield (
        "exports",
        f"{len(report['functions'])} functions" + (f" behind {report['prefix']}" if report["prefix"] else ""),
    )
    yield "imports", " ".join(report["imports"]) or "nothing"


def _kernels(kernels: list[dict[str, Any]]) -> Table:
    """What each kernel takes, over all architectures, for CUDA; its size where it is by itself."""
    if any("resources" in kernel for kernel in kernels):
        rows = Table("kernel", "registers", "stack", "shared memory")
        for kernel in kernels:
            each = kernel["resources"].values()
            rows.add_row(
                kernel["name"], *(_range(r[field] for r in each) for field in ("registers", "stack", "shared"))
            )
        return rows
    sizes = [f"{kernel['bytes']:,}" for kernel in kernels if "bytes" in kernel]
    rows = Table("kernel", *(["bytes"] if sizes else []))
    for cells in zip((kernel["name"] for kernel in kernels), *([sizes] if sizes else [])):
        rows.add_row(*cells)
    return rows


def _range(values: Iterable[int]) -> str:
    low, *_, high = sorted([*(values := list(values)), *values])
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
