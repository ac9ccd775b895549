"""Cases one after the other, in processes that may die."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
WORKER = [sys.executable, "-m", "fuzz.worker"]
PATIENCE = 240  # seconds; a worker loads TVM, and the machine may be busy


@dataclass
class Campaign:
    """``cases`` counts what was run by target, ``findings`` are one of each kind with the case that gave it."""

    seeds: Path
    tell: Callable[[str], None] = lambda text: None
    cases: Counter[str] = field(default_factory=Counter)
    findings: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def run(self, cases: Iterable[tuple[str, int]]) -> None:
        worker = None
        try:
            for name, number in cases:
                worker = worker or self._worker()
                finding, alive = self._ask(worker, name, number)
                self.cases[name] += 1
                if finding:
                    self._note(name, number, finding)
                if not alive:
                    worker.kill()
                    worker.wait()
                    worker = None
        finally:
            if worker is not None:
                worker.kill()
                worker.wait()

    def _worker(self) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
        return subprocess.Popen(
            [*WORKER, str(self.seeds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def _ask(self, worker: subprocess.Popen, name: str, number: int) -> tuple[dict[str, str] | None, bool]:
        """A finding or None, and whether the process lives on."""
        assert worker.stdin and worker.stdout
        worker.stdin.write(f"{json.dumps([name, number])}\n".encode())
        worker.stdin.flush()
        if not select.select([worker.stdout], [], [], PATIENCE)[0]:
            return {"what": f"no answer within {PATIENCE} seconds", "where": name, "trace": ""}, False
        if line := worker.stdout.readline():
            return json.loads(line), True
        return {"what": f"the process ended with {worker.wait()}", "where": name, "trace": ""}, False

    def _note(self, name: str, number: int, finding: dict[str, str]) -> None:
        kind = (name, finding["what"].partition(":")[0], finding["where"])
        if kind not in self.findings:
            self.findings[kind] = f"{name}:{number}: {finding['what']}\n{finding['trace']}"
            self.tell(self.findings[kind])
