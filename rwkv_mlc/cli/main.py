"""The command ``rwkv-mlc``: one module a verb, and what they all do with errors."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from .. import __version__
from ..errors import UserError
from . import (
    bench,
    build,
    chat,
    compare,
    convert_hf,
    convert_pth,
    convert_rwkv_cpp,
    debug,
    dump,
    eval,
    generate,
    inspect,
    logits,
    package,
    verify,
)
from .faults import lacks_memory, say_error, sentence
from .memory_limit import check_limit
from .parser import Parser

EXIT_USAGE, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 70, 130, 141
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def main(argv: Sequence[str] | None = None, build_program: str | None = None) -> int:
    """Run a command and return its exit code: 2 for a ``UserError``, whose message goes to stderr in one line, and 70 for a
    fault of ours, whose traceback goes to a log. The command ``build`` is called ``build_program`` where that is given.

    Raises SystemExit for ``--help``, ``--version`` and wrong arguments, as argparse does."""
    _open_standard_streams()
    with _noted_interrupt() as was_interrupted:
        try:
            return _run(argv, build_program)
        except UserError as error:
            say_error(str(error))
            return EXIT_USAGE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            _discard_output()
            return EXIT_BROKEN_PIPE
        except Exception as error:
            if was_interrupted():  # code that is not Python's makes another exception of it
                return EXIT_INTERRUPTED
            if isinstance(error, OSError) and error.errno in NOT_WRITTEN and error.filename is None:
                _discard_output()
                say_error(f"The output cannot be written ({error.strerror}); free some space and repeat.")
                return EXIT_USAGE
            if isinstance(error, FileNotFoundError) and not _is_somewhere():
                say_error("The folder that this was started in is gone; change to another one and repeat.")
                return EXIT_USAGE
            say_error(sentence(error))
            return EXIT_USAGE if lacks_memory(error) else EXIT_FAULT
        except BaseException as error:  # such as a panic of a library in Rust that Ctrl-C has met while it was loaded
            if isinstance(error, SystemExit) or not was_interrupted():
                raise
            return EXIT_INTERRUPTED


def _run(argv: Sequence[str] | None, build_program: str | None) -> int:
    try:
        args = _parser(build_program).parse_args(argv)
        check_limit()
        return args.run(args)
    finally:
        sys.stdout.flush()


def _open_standard_streams() -> None:
    """Have stdout and stderr take every character, and where they are closed go nowhere, so that no file is opened in their
    place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  for as long as the process runs
        getattr(sys, name).reconfigure(encoding="utf-8", errors="backslashreplace")


def _is_somewhere() -> bool:
    """Whether the current folder is still there."""
    try:
        return bool(os.getcwd())  # noqa: PTH109  which is what Path.cwd calls
    except FileNotFoundError:
        return False


def _discard_output() -> None:
    """Python flushes stdout once more when it exits, and must find something that takes it."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed."""
    noted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True
        signal.default_int_handler(number, frame)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: noted
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser(build_program: str | None) -> Parser:
    parser = Parser(prog="rwkv-mlc", description="Compile RWKV language models and run them.")
    parser.add_argument("--version", action="version", version=f"rwkv-mlc {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    build.add_parsers(subparsers, build_program)
    conversions = (convert_hf, convert_pth, convert_rwkv_cpp)
    for verb in (chat, generate, logits, package, inspect, bench, eval, verify, dump, compare, debug, *conversions):
        verb.add_parser(subparsers)
    parser.commands = subparsers.choices
    return parser
