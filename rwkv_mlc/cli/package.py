"""``package``: an artifact as a program."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import named_path
from .faults import say
from .progress import spinner


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "package",
        help="write a program that runs a model on a machine without Python",
        description=(
            "Write one executable that holds an artifact's model and all that runs it: it chats in the terminal and goes on "
            "from a prompt, and needs nothing of the machine but its system. The artifact needs no library of its own. zig "
            "compiles the program: pip install 'rwkv_mlc[package]'."
        ),
    )
    parser.add_argument(
        "model", metavar="DIST", type=named_path, help="artifact folder, such as dist/rwkv-7-village-q4f16_1"
    )
    parser.add_argument("--to", required=True, metavar="SYSTEM", help="linux-x86_64")
    parser.add_argument(
        "--out", type=named_path, metavar="FILE", default=Path("rwkv-chat"), help="the program (rwkv-chat)"
    )
    parser.add_argument(
        "--weights",
        choices=["inside", "beside"],
        default="inside",
        help="at the end of the program, or in FILE.weights, which belongs beside it (inside)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..packaging import package

    with spinner() as tell:
        packaged = package(args.model, args.to, args.out, args.weights, progress=tell)
    files = f"{packaged.program} and {packaged.weights}" if packaged.weights else f"{packaged.program}"
    say(f"Wrote {files}; the code takes {packaged.code_bytes / 1e6:.1f} MB of it")
    return 0
