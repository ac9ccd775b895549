"""The command ``rwkv-mlc``: one module a verb, and what they all do with errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import UserError
from . import bench, build, chat, compare, debug, dump, generate, inspect, logits, verify

EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a ``UserError``, whose message goes to stderr in one line.

    Raises SystemExit for ``--help``, ``--version`` and wrong arguments, as argparse does."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it exits, and must find something that takes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rwkv-mlc", description="Compile RWKV language models and run them.")
    parser.add_argument("--version", action="version", version=f"rwkv-mlc {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    build.add_parsers(subparsers)
    for verb in (chat, generate, logits, inspect, bench, verify, dump, compare, debug):
        verb.add_parser(subparsers)
    return parser
