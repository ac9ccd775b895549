"""How much memory calls take and leave behind: it is bounded whatever was read, and ``inspect`` says it before."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import Artifact
from rwkv_mlc.bench.breakdown import instrumented
from rwkv_mlc.inspection import artifact_summary
from support.compiled import runner_for
from support.paths import ROOT
from support.synthetic import synthetic_checkpoint

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
    """As much as the limit, and what the system's allocator makes of it; without one they would go on."""
    grown, limit = run(LENGTHS, demo, "bounded")
    assert grown < 3 * limit
    unbounded, _ = run(LENGTHS, demo, "unbounded")
    assert unbounded > 5 * limit


CHAT = """
def chat():
    chat = Chat(Engine(sys.argv[1], sys.argv[2]), SamplingParams(max_tokens=8))
    for text in "Who lives in the red house?", "What does Tom like to eat? " * 200:
        list(chat.send(text))
chat()
forget()
before = account("VmRSS")
chat()
print(json.dumps([account("VmHWM") - before]))
"""


def test_inspect_says_what_a_chat_takes(demo):
    (library,) = artifact_summary(Artifact.open(demo))["libraries"]
    said = library["memory"]
    (taken,) = run(CHAT, demo, "cpu")
    assert said["total"] == said["parameters"] + said["states"] + said["call"]
    assert 0.8 * said["total"] < taken < 1.3 * said["total"]


CALLS = [("prefill", [9, 30]), ("prefill", [600]), ("score", [20]), ("decode", [1]), ("batch_decode", [1, 1, 1])]


@pytest.mark.parametrize("target", ["llvm", "vulkan"])
def test_calls_allocate_what_the_library_says(target, compiled):
    """On a device, whose memory this process cannot look at, as on the CPU; ``inspect`` adds it up."""
    runner = compiled(synthetic_checkpoint("5.2", layers=2), "q4f16_1", target, runner_for(target)).runner
    asked: list[int] = []

    def instrument(_function, name, before, _result, *args):
        if before and name == "vm.builtin.alloc_storage":
            _, shape, _, dtype, *_ = args
            asked.append(math.prod(shape) * np.dtype(str(dtype)).itemsize)

    for function, lengths in CALLS:
        asked.clear()
        with instrumented(runner, instrument):
            runner.run(function, [[5] * length for length in lengths], runner.new_state(3))
        assert sum(asked) == runner.metadata.functions[function].allocated(T=sum(lengths), B=len(lengths)) > 0


def test_answers_that_nobody_holds_are_gone(engine):
    """Without the collector of cycles: each has a state."""
    gc.disable()
    try:
        answer = engine.stream("Tom the cat", max_tokens=8)
        next(iter(answer))
        gone = weakref.ref(answer)
        del answer
        assert gone() is None
    finally:
        gc.enable()


def test_finished_sequences_hold_no_memory_of_others(engine):
    scheduler = engine.scheduler(3)
    sequences = [engine.sequence("Tom the cat", max_tokens=2) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.sequences:
        scheduler.step()
    assert all(tuple(sequence.last.call.shape) == (1, 1, 768) and sequence.logits.any() for sequence in sequences)
