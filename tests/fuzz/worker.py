"""The process that runs cases: ``python -m fuzz.worker SEEDS`` reads a target and a number a line and answers each with a line
of JSON. A case that kills it, or that it hangs in, is its parent's business. It writes into a folder of its own and no other:
cases give product code hostile paths, with the rights of whoever runs this."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

from rwkv_mlc.artifact.names import VERIFIED
from rwkv_mlc.cli.faults import TRACEBACKS
from rwkv_mlc.engine import native
from rwkv_mlc.errors import UserError

from .fence import Fence
from .targets import TARGETS, Place

SECONDS = 10  # of the CPU
BYTES = 1 << 30  # of memory that a case may take
ADDRESSES = 12 << 30  # beside what the process has mapped: what asks for more is refused it


class Hang(BaseException):
    pass


def hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS} seconds of the CPU")


def run(name: str, number: int, place: Place) -> dict[str, str] | None:
    """A finding, None for a result or a UserError."""
    before = peak()
    place.fence.told, place.fence.breaches = [], []
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        TARGETS[name](place, random.Random(f"{name} {number}"))
    except UserError as error:
        if len(str(error)) > 8000:
            return {"what": "a sentence of more than 8,000 characters", "where": name, "trace": str(error)[:500]}
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(frames) if "/rwkv_mlc/" in f.filename), frames[-1])
        where = f"{Path(ours.filename).name}:{ours.lineno}"
        return {
            "what": f"{type(error).__name__}: {error}"[:200],
            "where": where,
            "trace": traceback.format_exc()[-3000:],
        }
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if place.fence.breaches:
        return {"what": f"out of its folder: {place.fence.breaches[0]}", "where": name, "trace": ""}
    if (taken := peak() - before) > BYTES:
        return {"what": f"{taken / 1e9:.1f} GB of memory", "where": name, "trace": ""}
    return None


def peak() -> int:
    """The most bytes of memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(seeds: str) -> None:
    os.environ[TRACEBACKS] = "1"
    signal.signal(signal.SIGPROF, hang)
    answers = os.fdopen(os.dup(1), "w")  # commands may close or print to the standard ones
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, mapped + ADDRESSES))
    with tempfile.TemporaryDirectory() as folder:
        place = fenced_place(Path(seeds), Path(folder))
        for line in sys.stdin:
            name, number = json.loads(line)
            print(json.dumps(run(name, number, place)), file=answers, flush=True)


def fenced_place(seeds: Path, folder: Path) -> Place:
    """A place whose process writes below ``folder`` and into the cache from here on. Cases run deep in it: their ``../../x``
    is still inside."""
    scratch, temporary = folder / "deep" / "deeper" / "scratch", folder / "temporary"
    scratch.mkdir(parents=True)
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    sys.dont_write_bytecode = True
    place = Place(seeds, scratch, Fence([folder, native.cache_folder()], named=[VERIFIED]))
    place.fence.close()
    return place


if __name__ == "__main__":
    main(sys.argv[1])
