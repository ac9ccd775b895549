"""How much memory calls take and leave behind: it is bounded whatever was read, and ``inspect`` says it before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import Artifact
from rwkv_mlc.engine import call_memory
from rwkv_mlc.engine.call_memory import CallMemory
from rwkv_mlc.engine.older_libraries import described
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.inspection import artifact_summary
from rwkv_mlc.schema import LibraryMetadata
from support.paths import ROOT

ACCOUNT = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
from rwkv_mlc import Chat, Engine, SamplingParams
from rwkv_mlc.engine.tvm_runtime import free_pools

def account(key):
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(key + ":")[2].split()[0]) * 1024

def forget():  # all that can be given back, and the peak so far
    gc.collect()
    free_pools()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
"""

LENGTHS = """
engine = Engine(sys.argv[1])
calls, rng = engine.runner, np.random.default_rng(0)
if sys.argv[2] == "older":
    for name, spec in calls.memory.functions.items():
        calls.memory.functions[name] = spec.model_copy(update={"planned": {}})
if sys.argv[2] == "unbounded":
    calls.memory.limit = 1 << 40
states = calls.new_state(16)
def read(lengths):
    for length in lengths:
        calls.run("prefill", [rng.integers(1, 700, length)], states)
        calls.run("decode", [[3]], states)
        calls.run("score", [rng.integers(1, 700, length // 4 + 1)], states)
        calls.run("batch_decode", [[5]] * (length % 16 + 1), states)
read([512, 15, 1])
forget()
before = account("VmRSS")
read(rng.integers(1, 512, 100))
print(json.dumps([account("VmHWM") - before, calls.memory.limit]))
"""


def run(code: str, *arguments: object) -> list[int]:
    """What a fresh process prints as JSON in its last line."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("reads Linux's account of a process's memory")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ACCOUNT + code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_calls_of_any_length_leave_little_behind(demo):
    """As much as the limit, and what the system's allocator makes of it."""
    grown, limit = run(LENGTHS, demo, "bounded")
    assert grown < 2 * limit
    grown, limit = run(LENGTHS, demo, "unbounded")
    assert grown > 4 * limit
