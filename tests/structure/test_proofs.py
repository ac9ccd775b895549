"""What a run of the tests says of what it did not prove."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.proofs import ALLOWED, TOOLS, Skip, forbidden, installable, read_patterns, table

SUITE = """
import pytest

def test_that_passes():
    pass

@pytest.mark.parametrize("case", range(3))
def test_on_aarch64(case):
    pytest.skip("aarch64 code runs where the packages qemu-user-static and g++-aarch64-linux-gnu are installed")

@pytest.mark.skip(reason="nvcc is not installed")
def test_with_nvcc():
    pass
"""
WHOLE_FILE = "import pytest\npytest.importorskip('a_package_that_is_not_there')\n"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """A run of small tests with the plugin."""
    (folder / "test_small.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.proofs", "-p", "no:cacheprovider", *options, "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_the_table_counts_by_tool(options, tmp_path):
    (tmp_path / "test_file.py").write_text(WHOLE_FILE, encoding="utf-8")
    result = run(tmp_path, *options)
    assert result.returncode == 0
    *lines, last = result.stdout.splitlines()
    assert re.match(r"1 passed, 5 skipped", last)
    assert "    3  qemu-user-static, g++-aarch64-linux-gnu" in lines
    assert "    1  nvcc" in lines and "    1  packages of PyPI in the extra test" in lines
    assert "`make tools` installs what Debian has of it, as root." in lines


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_strict_runs_fail_on_a_reason_that_is_not_listed(options, tmp_path):
    result = run(tmp_path, "--strict-skips", *options)
    assert result.returncode == 1
    assert (
        result.stdout.count("ERROR: allowed_skips.txt does not allow this reason, of test_small.py::test_on_aarch64")
        == 3
    )
    assert "test_small.py::test_with_nvcc: nvcc is not installed" in result.stdout
    assert "does not allow this reason, of test_small.py::test_with_nvcc" not in result.stdout


def test_strict_runs_pass_on_listed_reasons(tmp_path):
    assert run(tmp_path, "--strict-skips", "-k", "nvcc or passes").returncode == 0


def test_every_listed_reason_is_a_pattern_with_a_line_that_says_why():
    assert len(read_patterns()) > 5
    for paragraph in ALLOWED.read_text(encoding="utf-8").strip().split("\n\n"):
        assert paragraph.startswith("# ")


def test_reasons_without_a_tool_stand_for_themselves(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    skips = [
        Skip("a", "mounting a small disk needs root"),
        Skip("b", "needs glslangValidator, of Debian's glslang-tools"),
    ]
    assert table(skips) == [(1, "mounting a small disk needs root"), (1, "glslang-tools")]
    assert forbidden(skips, read_patterns()) == [skips[1]]


def test_the_command_is_named_where_it_installs_something():
    assert installable([(1, "nvcc"), (2, "glslang-tools")])
    assert not installable([(1, "nvcc"), (3, "Android's NDK"), (1, "mounting a small disk needs root")])


def test_programs_that_only_make_tests_stricter_are_missed_as_well(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert {name for _, name in table([])} == {tool.name for tool in TOOLS if tool.program}
