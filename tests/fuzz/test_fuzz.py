"""Some cases of every target, the same ones each time; ``python -m fuzz`` runs others, for as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fuzz import seeds
from fuzz.campaign import TESTS, Campaign
from fuzz.targets import TARGETS

CASES = 80
SLOW = dict.fromkeys(("chat", "command", "library", "objects", "target"), 40)


FENCED = """
import os, pathlib, shutil, subprocess, sys, tempfile
from pathlib import Path
from fuzz.worker import fenced_place

outside, inside = map(Path, sys.argv[1:])
place = fenced_place(outside, inside)
link = inside / "link"
link.symlink_to(outside)
folder = os.open(outside, os.O_RDONLY)
tries = [
    lambda: open(outside / "new", "w"),
    lambda: open(bytes(outside / "old"), "r+b"),
    lambda: open(link / "old", "a"),
    lambda: os.open(outside / "new", os.O_CREAT | os.O_WRONLY),
    lambda: (outside / "old").unlink(),
    lambda: (outside / "old").rename(inside / "taken"),
    lambda: (inside / "temporary").rename(outside / "given"),
    lambda: os.replace(place.scratch, link / "scratch"),
    lambda: os.remove("old", dir_fd=folder),
    lambda: os.mkdir(outside / "folder"),
    lambda: os.rmdir(outside / "empty"),
    lambda: shutil.rmtree(outside),
    lambda: os.link(outside / "old", outside / "linked"),
    lambda: os.symlink("x", outside / "linked"),
    lambda: os.truncate(outside / "old", 0),
    lambda: os.chmod(outside / "old", 0),
    lambda: os.utime(outside / "old", (1, 1)),
    lambda: subprocess.run(["touch", str(outside / "new")]),
    lambda: os.system("true"),
    os.fork,
]
for number, attempt in enumerate(tries):
    try:
        attempt()
    except PermissionError:
        pass
    else:
        sys.exit(f"{number} was done")
    if len(place.fence.breaches) != number + 1:
        sys.exit(f"{number} was not noted: {place.fence.breaches[number:]}")
place.fence.tell([str(outside / "told"), "x\\0y", "\\ud800", ""])
for attempt in (lambda: open(outside / ".told.partial", "w"), lambda: open("/proc/x", "w")):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("done as told")
assert len(place.fence.breaches) == len(tries)
os.chdir(place.scratch)
for path in ("x", "../x", "../../x", tempfile.mkstemp()[1], os.devnull):
    Path(path).write_text("y")
    assert (outside / "old").read_text() == "old" and Path(path).stat()
shutil.rmtree(inside / "deep")
assert len(place.fence.breaches) == len(tries)
"""


def test_nothing_is_written_outside_of_a_workers_folder(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside / "empty", inside):
        folder.mkdir(parents=True)
    (outside / "old").write_text("old")
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-c", FENCED, str(outside), str(inside)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "old"]
    assert (outside / "old").read_text() == "old" and (outside / "old").stat().st_mode & 0o777


def test_what_leaves_its_folder_is_a_finding(tmp_path, monkeypatch, campaign):
    """Also where product code takes the refusal for the system's."""
    stray = tmp_path / "stray.py"
    stray.write_text(
        "import contextlib\nfrom fuzz import worker\n"
        "def stray(place, draw):\n"
        f"    with contextlib.suppress(OSError):\n        open({str(tmp_path / 'x')!r}, 'w')\n"
        "worker.TARGETS['stray'] = stray\n"
        "if __name__ == '__main__':\n    import sys\n    worker.main(sys.argv[1])\n"
    )
    fresh = Campaign(campaign.seeds)
    monkeypatch.setattr("fuzz.campaign.WORKER", [sys.executable, str(stray)])
    fresh.run([("stray", 0)])
    (finding,) = fresh.findings.values()
    assert finding.startswith(f"stray:0: out of its folder: open of {tmp_path / 'x'}") and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def campaign(demo, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("fuzz") / "seeds"
    seeds.write(folder, demo)
    return Campaign(folder)


def test_strangers_files_and_arguments(campaign):
    campaign.run((name, number) for name in TARGETS for number in range(SLOW.get(name, CASES)))
    assert not campaign.findings, "\n\n".join(campaign.findings.values())
    assert set(campaign.cases) == set(TARGETS)
