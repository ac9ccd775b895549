"""Those who take part in peers.py, each measured in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from rwkv_mlc.errors import UserError

CHECKED_TOKENS = 16


@dataclass(frozen=True)
class Settings:
    """What every measurement shares: ``tokens`` are the prompt, ``steps`` the least number of single tokens, ``seconds`` what
    each takes at least; files lie in ``folder``, ``device`` is "cpu" or the name of a GPU."""

    threads: int
    device: str
    tokens: list[int]
    steps: int
    seconds: float
    folder: Path


def run(command: list[str], threads: int) -> str:
    """What a command prints. Raises UserError when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise UserError(f"Cannot run {command[0]}: {error.strerror}.") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was printed").splitlines()[-1]
        raise UserError(f"`{shlex.join(command[:4])} ...` failed with code {done.returncode}: {last}")
    return done.stdout


class Participant(Protocol):
    """``speeds`` gives tokens a second under ``prefill`` and ``decode``, and what else is known of the run."""

    name: str

    def speeds(self, settings: Settings) -> dict[str, float]: ...


@dataclass(frozen=True)
class Worker:
    """An engine that engines.py knows."""

    name: str
    engine: str
    model: Path
    options: tuple[str, ...] = ()

    def speeds(self, settings: Settings) -> dict[str, float]:
        tokens = ",".join(map(str, settings.tokens))
        out = self._run("speeds", settings, ".json", "--tokens", tokens, "--steps", str(settings.steps))
        return json.loads(out.read_text(encoding="utf-8"))

    def logits(self, settings: Settings) -> np.ndarray:
        tokens = ",".join(map(str, settings.tokens[:CHECKED_TOKENS]))
        return np.load(self._run("logits", settings, ".npy", "--tokens", tokens))

    def limits(self, settings: Settings) -> dict[str, float]:
        return json.loads(self._run("limits", settings, ".json").read_text(encoding="utf-8"))

    def _run(self, task: str, settings: Settings, suffix: str, *arguments: str) -> Path:
        out = settings.folder / f"{task}{suffix}"
        command = [sys.executable, str(HERE / "engines.py"), task, self.engine, str(self.model), *self.options]
        command += [
            "--device",
            settings.device,
            "--threads",
            str(settings.threads),
            "--seconds",
            str(settings.seconds),
            "--out",
            str(out),
        ]
        run([*command, *arguments], settings.threads)
        return out


@dataclass(frozen=True)
class Command:
    """A command of the user's: ``template`` with {model} (the .pth), {tokens}, {steps} and {threads} in it."""

    name: str
    template: str
    model: Path

    def speeds(self, settings: Settings) -> dict[str, float]:
        values = {"tokens": len(settings.tokens), "steps": settings.steps, "threads": settings.threads}
        return parse_rates(run(expand(self.template, model=self.model, **values), settings.threads))


@dataclass(frozen=True)
class LlamaBench:
    """llama.cpp's own ``llama-bench`` with a GGUF file."""

    name: str
    executable: Path
    model: Path

    def speeds(self, settings: Settings) -> dict[str, float]:
        counts = ["-p", str(len(settings.tokens)), "-n", str(settings.steps), "-t", str(settings.threads)]
        command = [str(self.executable), "-m", str(self.model), *counts, "-o", "json"]
        return parse_llama_bench(run(command, settings.threads))


def expand(template: str, **values: Any) -> list[str]:
    """The words of a command, with ``values`` in place of their names in braces. Raises UserError for other names."""
    try:
        return [word.format_map(values) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in values)
        raise UserError(f"The command {template!r} has {error} in braces or quotes; it may use {names}.") from None


def parse_rates(text: str) -> dict[str, float]:
    """Tokens a second from lines ``prefill 41.5`` and ``decode 7.5``, the last of each; a number alone is ``decode``.

    Raises UserError where there is none."""
    found = re.findall(r"^\s*(?:(prefill|decode)\s*[:=]?\s*)?(\d+(?:\.\d+)?)\s*$", text, re.MULTILINE)
    if not found:
        raise UserError("An engine's command should print lines such as `decode 7.5` and `prefill 41.5`, found none.")
    return {kind or "decode": float(rate) for kind, rate in found}


def parse_llama_bench(text: str) -> dict[str, float]:
    """Tokens a second from ``llama-bench -o json``: its test of a prompt alone and the one of generation alone."""
    rates = {}
    for test in json.loads(text):
        if not test["n_gen"]:
            rates["prefill"] = test["avg_ts"]
        elif not test["n_prompt"]:
            rates["decode"] = test["avg_ts"]
    return rates
