"""What this version builds is what ``BEFORE`` built, and what that built goes on to run.

``BEFORE`` is the last commit before the code was moved into its rooms: moving it changed no value."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from rwkv_mlc import Engine
from rwkv_mlc.artifact import CHAT_CONFIG
from rwkv_mlc.schema import LONGEST_PREFILL_CHUNK, PREFILL_CHUNK
from support.accuracy import PROMPTS, held_out
from support.kernel_build import error
from support.paths import DEMOS, ROOT

BEFORE = "26145e51b262e34da961b091b814671cdcab5a1f"
SCHEMES = ("q4f16_1", "q0f32")
TARGET = "llvm -opt-level=0"  # LLVM's work is not what is compared
RUN = (
    "import json, sys, rwkv_mlc, tir_kernels\n"
    "from pathlib import Path\n"
    "from rwkv_mlc.cli.main import main\n"
    "for package in (rwkv_mlc, tir_kernels):\n"
    "    assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__\n"
    "for command in json.loads(sys.argv[2]):\n"
    "    assert main(command) == 0, command\n"
)
"""Commands of the code in a folder, and of no other."""


@dataclass(frozen=True)
class Code:
    """A version of the project's code, and where its artifacts lie."""

    root: Path
    artifacts: Path

    def run(self, *commands: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        line = [sys.executable, "-c", RUN, str(self.root), json.dumps(commands)]
        result = subprocess.run(line, cwd=self.root, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr

    def build(self, name: str, scheme: str) -> Path:
        """The artifact of a demo model, built once a test run, with those of the other schemes."""
        build = ["build", "--model", str(DEMOS / name), "--target", TARGET, "--artifact-path", str(self.artifacts)]
        with FileLock(self.artifacts / f"{name}.lock"):
            if not (self.artifacts / f"{name}-{scheme}").exists():
                self.run(*([*build, "--quantization", scheme] for scheme in SCHEMES))
        return self.artifacts / f"{name}-{scheme}"

    def logits(self, artifact: Path, tokens: list[int], written: Path, *options: str) -> np.ndarray:
        """Those after every token, [T, V]."""
        self.run(["logits", str(artifact), "--tokens", ",".join(map(str, tokens)), "--out", str(written), *options])
        return np.load(written)


def git(*command: str) -> subprocess.CompletedProcess:
    """In this repository, whoever owns its files."""
    return subprocess.run(["git", "-c", "safe.directory=*", "-C", str(ROOT), *command], capture_output=True)


@pytest.fixture(scope="session")
def before(artifacts) -> Code:
    """The code of ``BEFORE``; skips where there is no git and where the history is not there by design."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("an archive of the sources holds no older version")
    absent = git("cat-file", "-e", BEFORE).returncode != 0
    if absent and git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true":
        pytest.skip(f"this clone is shallow and does not hold the commit {BEFORE}")
    folder = artifacts / BEFORE
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            archive = git("archive", "--format=tar", BEFORE)
            assert archive.returncode == 0, archive.stderr.decode()
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(folder / "code", filter="data")
            (folder / "dist").mkdir()
    return Code(folder / "code", folder / "dist")


@pytest.fixture(scope="session")
def today(artifacts) -> Code:
    folder = artifacts / "today"
    folder.mkdir(exist_ok=True)
    return Code(ROOT, folder)


every_model = pytest.mark.parametrize("name", ["rwkv-4-village", "rwkv-5-village"])  # what that version could build
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@every_model
@every_scheme
def test_parameters_and_chat_configs_are_the_same_bytes(name, scheme, before, today):
    """But for the longest part of a prompt, which became a library's own."""
    old, new = (code.build(name, scheme) / "params" for code in (before, today))
    shards = sorted(path.name for path in old.glob("params_shard_*.bin"))
    assert shards and shards == sorted(path.name for path in new.glob("params_shard_*.bin"))
    for file in (*shards, "tensor-cache.json"):
        assert (old / file).read_bytes() == (new / file).read_bytes(), file
    chunk = b'"prefill_chunk_size": %d'
    found = (new / CHAT_CONFIG).read_bytes().replace(chunk % LONGEST_PREFILL_CHUNK, chunk % PREFILL_CHUNK)
    assert found == (old / CHAT_CONFIG).read_bytes()


@every_model
@every_scheme
@pytest.mark.parametrize("options, size", [([], 1200), (["--decode"], 200)], ids=["score", "decode"])
def test_logits_are_the_same_bits(name, scheme, options, size, before, today, tmp_path):
    tokens = held_out(name, size)
    old, new = (
        code.logits(code.build(name, scheme), tokens, tmp_path / f"{version}.npy", *options)
        for version, code in (("old", before), ("new", today))
    )
    assert len(old) == len(tokens) and np.isfinite(old).all() and np.ptp(old) > 1
    assert old.dtype == new.dtype
    if scheme == "q4f16_1" and options:  # single tokens, whose integers have since left outliers to floats
        assert error(new, old) < 1e-5
    else:
        assert old.tobytes() == new.tobytes()


@every_model
@every_scheme
def test_old_artifacts_answer_today(name, scheme, before, today):
    """As new ones do: the library, the record and the chat's configuration are read as they were written then."""
    old, new = (Engine(code.build(name, scheme)) for code in (before, today))
    for prompt in PROMPTS:
        answers = [engine.generate(prompt, max_tokens=32, temperature=0).text for engine in (old, new)]
        assert answers[0] and answers[0] == answers[1]
