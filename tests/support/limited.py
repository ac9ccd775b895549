"""Python code in a process of its own that may take neither for ever nor all memory: what hostile files are read in, so that
a reader that believes them fails its test and nothing else."""

from __future__ import annotations

import resource
import subprocess
import sys

SECONDS, WALL_SECONDS, BYTES = 60, 300, 8 << 30

REPORT = """
import sys
from rwkv_mlc.errors import UserError
try:
    {code}
except UserError as error:
    print("UserError:", error)
else:
    print("no error")
"""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def outcome(code: str, *arguments: object) -> str:
    """What became of a line of code, whose arguments are in ``sys.argv[1:]``: "UserError: " and the sentence, "no error", or
    how the process ended."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", REPORT.format(code=code), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=WALL_SECONDS,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return f"more than {WALL_SECONDS} seconds"
    last = result.stderr.strip().rpartition("\n")[2]
    return result.stdout.strip() if result.returncode == 0 else f"exit {result.returncode}: {last}"
