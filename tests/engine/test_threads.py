"""The pool of threads: values, counts, callers at once, forks, the processors that a process may use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_mlc import UserError
from rwkv_mlc.engine import threads
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.engine.threads import LIBRARY, ThreadPool, start_threads
from rwkv_mlc.engine.tvm_runtime import tvm_ffi
from rwkv_mlc.machine.cores import physical_cores, quota, usable_cores
from support.aarch64 import COMPILER, SYSTEM, find_qemu
from support.paths import ROOT

STRESS = ROOT / "tests" / "support" / "thread_pool.cc"
SOURCES = [STRESS, *LIBRARY.folder.glob("*.cc")]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which Linux has")

VALUES = """
import hashlib
prompt, state = list(range(1, 100)), engine.new_state()
digest = hashlib.sha256(engine.prefill(prompt, state).tobytes())
for token in prompt:
    digest.update(engine.decode(token, state).tobytes())
states = engine.runner.new_state(3)
for token in prompt[:9]:
    digest.update(engine.runner.run("batch_decode", [[token], [token + 1], [token + 2]], states).tobytes())
print(engine.runner.pool, digest.hexdigest(), sep=" | ")
"""

AFFINITY = """
engine.generate("Tom", max_tokens=20, temperature=0)
tasks = list(map(int, os.listdir("/proc/self/task")))
allowed = {cpu for task in tasks for cpu in os.sched_getaffinity(task)}
print(engine.runner.pool.threads, sorted(allowed), os.sched_getaffinity(0) == before)
"""

TASKS = """
import os, sys, time
def tasks():
    found = [len(os.listdir("/proc/self/task"))]
    while len(found) < 5 or len(set(found[-5:])) > 1:  # a thread that has ended is there for a moment
        time.sleep(0.05)
        found.append(len(os.listdir("/proc/self/task")))
    return found[-1]
"""

CALLERS = """
import threading
engines = [engine, *(Engine(sys.argv[1]) for _ in range(3))]
def generate(caller):
    texts.append(engines[caller % 4].generate("Tom", max_tokens=8, temperature=0).text)
texts = []
generate(0)
alone = tasks()
callers = [threading.Thread(target=generate, args=(caller,)) for caller in range(40)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
print(len(set(texts)), len(texts), tasks() - alone)
"""

FORKS = """
def generate():
    return engine.generate("Tom", max_tokens=20, temperature=0).text
expected = generate()
child = os.fork()
if child == 0:
    os._exit(0 if generate() == expected and generate() == expected else 1)
print(os.waitpid(child, 0)[1], generate() == expected)
"""


FORK_IN_A_CALL = """
import threading
prompt, done = list(range(1, 200)), False
def read():
    state = engine.new_state()
    while not done:
        engine.prefill(prompt, state)
def answer():
    return engine.generate("Tom", max_tokens=9, temperature=0).text
expected = answer()
other = threading.Thread(target=read)
other.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if answer() == expected else 1)
    codes.append(os.waitpid(child, 0)[1])
done = True
other.join()
print(codes)
"""

COMMANDS = """
import io
from rwkv_mlc.cli.main import main
generate, chat = ["generate", "--prompt", "Tom"], ["chat"]
found = []
for count, command in enumerate([generate, generate, generate, chat, chat], 1):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"Tom"))
    assert main([*command, sys.argv[1], "--max-tokens", "8", "--threads", str(count)]) == 0
    found.append(tasks() - count)
print(found)
"""

FORK_WITHOUT_THREADS = """
from rwkv_mlc import UserError
engine.generate("Tom", max_tokens=2)
child = os.fork()
if child == 0:
    try:
        engine.generate("Tom", max_tokens=2)
    except UserError as error:
        os._exit(3 if "forked after the model was loaded" in str(error) and "of TVM's pool" in str(error) else 4)
    os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(artifact: Path, code: str, cpus: set[int] | None = None, **environment: str) -> str:
    """What a process prints that has loaded ``engine``, allowed on ``cpus`` alone."""
    start = f"{TASKS}\nbefore = os.sched_getaffinity(0)\nfrom rwkv_mlc import Engine\nengine = Engine(sys.argv[1])\n"
    if cpus:
        start = f"import os\nos.sched_setaffinity(0, {cpus})\n{start}"
    names = {threads.THREADS, threads.TVM_THREADS, threads.POOL}
    variables = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", start + code, str(artifact)]
    result = subprocess.run(command, cwd=ROOT, env=variables | environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def needs_own_pool() -> None:
    if start_threads().owner != "rwkv_mlc":
        pytest.skip("needs a C++ compiler")


@pytest.fixture(scope="module")
def stress(tmp_path_factory) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("stress") / "program"
    subprocess.run([compiler, *LIBRARY.flags, "-Werror", "-Wall", *SOURCES, "-o", program], check=True)
    return program


@pytest.mark.parametrize(
    ("number", "callers", "launches", "most"), [(1, 1, 2000, 1), (2, 1, 10000, 2), (3, 3, 5000, 3), (9, 2, 500, 9)]
)
def test_launches_and_barriers(stress, number, callers, launches, most):
    """Every part of every launch sees what all others wrote before each barrier."""
    command = [stress, str(number), str(callers), str(launches), "fork"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    whole, child = ([int(n) for n in line.split()] for line in result.stdout.splitlines())
    for least, found, shared, errors in (whole, child):
        assert errors == 0 and 1 <= least <= found <= most and (shared > 0) == (found > 1)


def test_launches_and_barriers_on_aarch64(tmp_path):
    qemu, program = find_qemu(), tmp_path / "program"
    subprocess.run([COMPILER, *LIBRARY.flags, *SOURCES, "-o", program], check=True)
    command = [qemu, "-L", SYSTEM, program, "3", "2", "1000"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_process_forked_amid_another_threads_call(demo):
    needs_own_pool()
    assert run(demo, FORK_IN_A_CALL) == "[0, 0, 0, 0, 0]"


def test_a_process_forked_without_its_threads_is_told(demo):
    assert run(demo, FORK_WITHOUT_THREADS, **{threads.POOL: "tvm"}) == "3"


def test_a_process_forked_from_one_with_a_gpu_is_told(demo, monkeypatch):
    runner = Engine(demo, "cpu").runner
    state = runner.new_state()
    monkeypatch.setattr(runner, "process", os.getpid() + 1)
    monkeypatch.setattr(runner, "device", tvm_ffi.device("vulkan", 0))
    for use in (runner.new_state, lambda: runner.run("decode", [[5]], state)):
        with pytest.raises(UserError, match="forked after the model was loaded, .* vulkan:0; load it in the process"):
            use()


def test_values_do_not_depend_on_the_threads(demo):
    needs_own_pool()
    cases = {
        "1 thread": {threads.THREADS: "1"},
        "2 threads": {threads.THREADS: "2", threads.TVM_THREADS: "4"},
        "3 threads": {threads.TVM_THREADS: "3"},
        "2 threads of TVM's pool (as RWKV_MLC_POOL says)": {threads.THREADS: "2", threads.POOL: "tvm"},
    }
    found = {}
    for pool, environment in cases.items():
        says, found[pool] = run(demo, VALUES, **environment).split(" | ")
        assert says == pool
    assert len(set(found.values())) == 1, found


@linux_only
def test_the_processors_that_a_process_may_use(demo):
    last = max(os.sched_getaffinity(0))
    assert run(demo, AFFINITY, {last}) == f"1 [{last}] True"
    assert run(demo, AFFINITY, **{threads.THREADS: "2"}) == f"2 {sorted(os.sched_getaffinity(0))} True"


@linux_only
def test_commands_start_as_many_threads_as_they_are_told(demo):
    """Beside those that the process has anyway, which are the same number each time."""
    needs_own_pool()
    *_, beside = run(demo, COMMANDS).splitlines()
    assert len(set(json.loads(beside))) == 1, beside


@linux_only
def test_forty_callers_leave_no_thread(demo):
    """Four engines, whose calls take turns."""
    needs_own_pool()
    assert run(demo, CALLERS, **{threads.THREADS: "3"}) == "1 41 0"


@linux_only
def test_a_forked_process_has_its_own_threads(demo):
    needs_own_pool()
    assert run(demo, FORKS, **{threads.THREADS: "3"}) == "0 True"


def test_without_a_compiler(demo, tmp_path):
    environment = {"PATH": str(tmp_path), "CXX": "c++", "XDG_CACHE_HOME": str(tmp_path), threads.THREADS: "2"}
    pool, _ = run(demo, VALUES, **environment).split(" | ")
    assert pool.startswith("2 threads of TVM's pool (The thread pool needs a C++ compiler")


def test_counts(monkeypatch):
    monkeypatch.setattr(threads, "_count", None)
    for variable in (threads.THREADS, threads.TVM_THREADS, threads.POOL):
        monkeypatch.setenv(variable, "")
    monkeypatch.delenv(threads.POOL)
    needs_own_pool()
    assert start_threads() == ThreadPool(usable_cores(), "rwkv_mlc")
    assert start_threads(3).threads == start_threads().threads == 3
    monkeypatch.setattr(threads, "_count", None)
    monkeypatch.setenv(threads.TVM_THREADS, "5")
    assert start_threads().threads == 5
    monkeypatch.setattr(threads, "_count", None)
    monkeypatch.setenv(threads.THREADS, "4")
    assert start_threads().threads == 4
    for count in (0, -1, 257):
        with pytest.raises(UserError, match=f"The number of threads must lie between 1 and 256, not {count}"):
            start_threads(count)
    monkeypatch.setattr(threads, "_count", None)
    monkeypatch.setenv(threads.THREADS, "two")
    with pytest.raises(UserError, match="RWKV_MLC_THREADS must lie between 1 and 256, not 'two'"):
        start_threads()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, float("inf")),
        ({"cpu.max": "max 100000"}, float("inf")),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "100000 50000"}, 2),  # a container's own, under the path that the host knows
        ({"cpu/c/cpu.cfs_quota_us": "-1", "cpu/c/cpu.cfs_period_us": "100000"}, float("inf")),
        ({"cpu/c/cpu.cfs_quota_us": "250000", "cpu/c/cpu.cfs_period_us": "100000"}, 2.5),
    ],
)
def test_control_groups(tmp_path, limits, cores):
    write(tmp_path / "proc/self/cgroup", "4:memory:/elsewhere\n2:cpu,cpuacct:/c\n0::/a/b\n")
    for name, text in limits.items():
        write(tmp_path / "sys/fs/cgroup" / name, text + "\n")
    assert quota(tmp_path) == cores


def test_cores_are_physical_and_within_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6, 7}, raising=False)
    for cpu in range(8):
        siblings = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(siblings, f"{cpu // 2 * 2},{cpu // 2 * 2 + 1}\n" if cpu < 6 else f"{cpu}\n")
    assert physical_cores(tmp_path) == usable_cores(tmp_path) == 4
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "210000 100000\n")
    assert usable_cores(tmp_path) == 3
