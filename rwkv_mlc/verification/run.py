"""A library run where its device is here, in a process of its own: what it does, even when it crashes, is a line.

``python -m rwkv_mlc.verification.run ARTIFACT DEVICE`` prints what it found and exits with one of ``EXITS``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..errors import UserError

TOKENS = list(range(1, 13))
AGREEMENT = 0.05  # of the largest logit, between a prompt read at once and token by token
PASSED, FAILED, SKIPPED = EXITS = 0, 3, 4
SECONDS = 1800  # after which it is taken to hang


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def run_apart(artifact: Path, device: str) -> str:
    """What ``agreement`` returns or raises, and Failed where the process ends in another way."""
    command = [sys.executable, "-m", __name__, str(artifact.resolve()), device]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it ran for more than {SECONDS} seconds") from None
    found = result.stdout.strip().rpartition("\n")[2]
    if result.returncode < 0:
        raise Failed(f"the process that ran it was ended by signal {-result.returncode}")
    if result.returncode not in EXITS:
        raise Failed(f"the process that ran it failed ({result.stderr.strip().rpartition(chr(10))[2]})")
    if result.returncode != PASSED:
        raise (Failed if result.returncode == FAILED else Skipped)(found)
    return found


def agreement(artifact: Path, device: str) -> str:
    """How well the logits of a prompt read at once and token by token agree. Raises Skipped where the device is not here,
    Failed for another result, and UserError for a library that cannot be loaded."""
    import numpy as np

    from ..engine.devices import open_device
    from ..engine.engine import Engine

    try:
        open_device(device)
    except UserError as reason:
        raise Skipped(str(reason)) from None
    engine = Engine(artifact, device)
    at_once = engine.prefill(TOKENS, engine.new_state())
    state = engine.new_state()
    for token in TOKENS:
        one_by_one = engine.decode(token, state)
    largest = float(np.abs(one_by_one).max())
    difference = float(np.abs(at_once - one_by_one).max()) / largest
    if not np.isfinite(difference) or difference > AGREEMENT:
        raise Failed(f"logits of prefill and decode differ by {difference:.1e} of the largest on {device}")
    return f"on {device}: logits of prefill and decode agree within {difference:.1e} of the largest"


def main(artifact: str, device: str) -> int:
    try:
        print(agreement(Path(artifact), device))
        return PASSED
    except Skipped as reason:
        print(reason)
        return SKIPPED
    except (Failed, UserError, RuntimeError) as error:  # RuntimeError is what a device complains with
        print(str(error).partition("\n")[0])
        return FAILED


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
