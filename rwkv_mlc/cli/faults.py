"""What becomes of an exception that no command expected: a sentence for the user, and a log for who mends it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback

from ..errors import NO_MEMORY
from ..escaping import LAYOUT, MESSAGE_LENGTH, escaped, shortened
from .memory_limit import is_reached

TRACEBACKS = "RWKV_MLC_TRACEBACKS"
"""The variable of the environment that has such exceptions end the process as Python ends it, for developers and tests."""


def say_error(message: str) -> None:
    """One line on stderr, which may be closed or full."""
    with contextlib.suppress(OSError):
        print(f"error: {shortened(escaped(message), MESSAGE_LENGTH)}", file=sys.stderr, flush=True)


def sentence(error: Exception) -> str:
    """What happened, in one sentence with the path of a log that holds the traceback; raises ``error`` again where
    ``RWKV_MLC_TRACEBACKS`` is set."""
    if lacks_memory(error):
        return NO_MEMORY
    if os.environ.get(TRACEBACKS):
        raise error
    what = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"rwkv-mlc failed in a way that it did not expect ({shortened(what, 300)}); {_log(error)}."


def lacks_memory(error: Exception) -> bool:
    """Whether there was no memory, or none for the stack of a thread or a library that was to be loaded. Where so much was
    taken that what libraries raise may come of it, that is one, but for developers."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, (SystemError, ImportError, OSError, RuntimeError)) and _may_be_for_memory())
        or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))
        or (isinstance(error, (ImportError, OSError)) and "failed to map segment" in str(error))
    )


def _may_be_for_memory() -> bool:
    return not os.environ.get(TRACEBACKS) and is_reached()


def _log(error: Exception) -> str:
    try:
        handle, path = tempfile.mkstemp(prefix="rwkv-mlc-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{escaped(' '.join(sys.argv))}\n\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"set {TRACEBACKS}=1 to see where"
    return f"please report it with {path}"


def say(text: str) -> None:
    """Print lines that hold text of files; what would move a cursor is escaped, which JSON reads back."""
    print(escaped(text, LAYOUT))
