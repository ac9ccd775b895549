"""How far long work is: lines for a pipe, a bar for a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_mlc.building import events
from rwkv_mlc.cli import build_output
from rwkv_mlc.cli.build_output import Printer
from rwkv_mlc.cli.progress import counted, spinner, steps

EVENTS = [
    events.ConversionStarted(Path("params"), 2),
    events.TensorStored(1, 2, "a.weight", 4),
    events.TensorStored(2, 2, "b\x1b.weight", 4),
    events.ConfigWritten(Path("config")),
    events.ArchitectureCompiled(1, 2, "sm_80"),
    events.ArchitectureCompiled(2, 2, "compute_90"),
]


@pytest.mark.parametrize("quiet, heard", [(-1.0, True), (60.0, False)])
def test_a_pipe_hears_of_every_stage(capsys, monkeypatch, quiet, heard):
    """Also of the weights, where they take long."""
    monkeypatch.setattr(build_output, "QUIET_SECONDS", quiet)
    with Printer() as printer:
        for event in EVENTS:
            printer(event)
    out, err = capsys.readouterr()
    for line, told in {
        "Start storing to cache params": True,
        "[0001/0002] saving a.weight": heard,
        "[1/2] compiled for sm_80": True,
        "[2/2] compiled for compute_90": True,
    }.items():
        assert (line in out.splitlines()) is told, line
    assert "\x1b" not in out and err == ""


def test_steps(capsys, monkeypatch):
    def both() -> str:
        with steps() as begin:
            begin(1, 2, "loading\x1b")
            begin(2, 2, "timing")
        with spinner() as tell:
            tell("comparing")
        with counted("measuring") as progress:
            progress(1, 2)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    assert both() == "[1/2] loading\\u001b\n[2/2] timing\ncomparing\nmeasuring, 2 steps\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    shown = both()
    assert (
        "[2/2]" in shown
        and "None" not in shown
        and "timing" in shown
        and "comparing" in shown
        and "measuring" in shown
        and "loading\x1b" not in shown
    )
