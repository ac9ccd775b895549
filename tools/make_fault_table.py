"""Builds every library with a deliberate bug (``tests/support/faults.py``) and writes what the comparison says of it into
``docs/debugging.md``, between the two marks. Needs a Vulkan device; takes four minutes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rwkv_mlc.weights.checkpoint import Checkpoint
from support.faults import FAULTS, Fault
from support.faulty_builds import compared

PAGE = ROOT / "docs" / "debugging.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEADS = ("fault", "generation", "first value beyond tolerance", "between", "hints", "llvm", "vulkan")


def rows(fault: Fault) -> list[tuple[str, ...]]:
    """One, with the relative RMS on every target, where all say the same."""
    said: dict[tuple[str, ...], dict[str, str]] = {}
    for target in fault.edits:
        with tempfile.TemporaryDirectory() as right, tempfile.TemporaryDirectory() as scratch:
            finding = compared(fault, target, Path(right), Path(scratch)).finding
        between = ", ".join(f"`{name}`" for name in finding.between)
        text = f"`{finding.row.name}`", between, "; ".join(finding.hints)
        said.setdefault(text, {})[target] = f"{finding.row.difference.relative_rms:.0e}"
    targets = HEADS[-2:]
    return [(fault.name, fault.generation, *text, *(e.get(t, "") for t in targets)) for text, e in said.items()]


def main() -> None:
    Checkpoint.sha256 = lambda self: self.name  # those in memory have no file
    lines = [HEADS, ("---",) * len(HEADS)]
    for i, fault in enumerate(FAULTS, 1):
        print(f"[{i}/{len(FAULTS)}] {fault}", flush=True)
        lines += rows(fault)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
