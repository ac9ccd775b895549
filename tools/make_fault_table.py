"""Builds every library with a deliberate bug (``tests/faults.py``) and writes what the comparison says of it into
``docs/debugging.md``, between the two marks. Takes a minute or two."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults import FAULTS, Fault  # noqa: E402
from test_faults import compared, fewer_functions  # noqa: E402

PAGE = ROOT / "docs" / "debugging.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEADS = ("fault", "generation", "first value beyond tolerance", "between", "relative RMS", "hints")


def row(fault: Fault, folder: Path) -> tuple[str, ...]:
    finding = compared(fault, "llvm", folder).finding
    between = ", ".join(f"`{name}`" for name in finding.between)
    error = f"{finding.row.difference.relative_rms:.0e}"
    return fault.name, fault.generation, f"`{finding.row.name}`", between, error, "; ".join(finding.hints)


def main() -> None:
    lines = [HEADS, ("---",) * len(HEADS)]
    with fewer_functions():
        for i, fault in enumerate(FAULTS, 1):
            print(f"[{i}/{len(FAULTS)}] {fault}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                lines.append(row(fault, Path(folder)))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
