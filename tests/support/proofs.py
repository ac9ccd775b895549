"""A plugin of pytest that says what a run did not prove.

Skipped tests are counted in a table at its end, by the tool that they lack. With ``--strict-skips`` each is named with its
reason, and one that ``tests/allowed_skips.txt`` does not know fails the run."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parents[1] / "allowed_skips.txt"
COMMAND = "make tools"
SKIPPED = "Skipped: "  # with which pytest begins a reason


@dataclass(frozen=True)
class Tool:
    """What tests lack whose reason to be skipped has ``pattern``. ``program`` is one that makes further tests check more;
    ``installable`` says that ``COMMAND`` installs it."""

    name: str
    pattern: str
    program: str | None = None
    installable: bool = True


TOOLS = (
    Tool("qemu-user-static, g++-aarch64-linux-gnu", r"qemu-user-static"),
    Tool(
        "a Vulkan device: mesa-vulkan-drivers, libvulkan1, libvulkan-dev",
        r"[Vv]ulkan device|[Vv]ulkan.*(loader|header)",
    ),
    Tool("vulkan-validationlayers", r"vulkan-validationlayers"),
    Tool("glslang-tools", r"glslang"),
    Tool("spirv-tools: shaders are not validated", r"spirv-val", "spirv-val"),
    Tool("clang: sources for GPUs are not parsed", r"\bclang is not installed", "clang"),
    Tool("g++", r"g\+\+|C\+\+ compiler", "g++"),
    Tool("git", r"\bgit is not installed"),
    Tool("PoCL, an OpenCL platform of PyPI", r"OpenCL", installable=False),
    Tool("golden data in ../shared", r"golden", installable=False),
    Tool(
        "packages of PyPI in the extra test",
        r"could not import|pip (install|cannot download)|nvidia-cuda|NVRTC",
        installable=False,
    ),
    Tool("nvcc", r"nvcc", installable=False),
    Tool("Android's NDK", r"NDK", installable=False),
    Tool("instructions of other CPUs", r"this CPU (lacks|has no)", installable=False),
)


@dataclass(frozen=True)
class Skip:
    test: str
    reason: str

    @classmethod
    def of(cls, report) -> Skip:
        """``report`` is pytest's on a test, or on a file that was skipped as a whole."""
        *_, text = report.longrepr if isinstance(report.longrepr, tuple) else (str(report.longrepr),)
        return cls(report.nodeid, text.removeprefix(SKIPPED))


def table(skips: Iterable[Skip]) -> list[tuple[int, str]]:
    """How many tests lack what, the most first; a reason that no tool explains stands for itself."""
    lacking = Counter({tool.name: 0 for tool in TOOLS if tool.program and shutil.which(tool.program) is None})
    for skip in skips:
        names = [tool.name for tool in TOOLS if re.search(tool.pattern, skip.reason)]
        lacking[names[0] if names else skip.reason] += 1
    return [(count, name) for name, count in lacking.most_common()]


def installable(rows: Iterable[tuple[int, str]]) -> bool:
    """Whether ``COMMAND`` installs something that a row of ``table`` names."""
    names = {tool.name for tool in TOOLS if tool.installable}
    return any(name in names for _, name in rows)


def read_patterns(path: Path = ALLOWED) -> list[re.Pattern]:
    """One a line; lines that begin with # say why."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [re.compile(line) for line in lines if line and not line.startswith("#")]


def forbidden(skips: Iterable[Skip], patterns: list[re.Pattern]) -> list[Skip]:
    return [skip for skip in skips if not any(pattern.search(skip.reason) for pattern in patterns)]


def pytest_addoption(parser) -> None:
    text = f"name every skipped test; fail where {ALLOWED.name} does not know the reason"
    parser.addoption("--strict-skips", action="store_true", help=text)


def pytest_configure(config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers send their reports to the process that this is for
        config.pluginmanager.register(Summary(strict=config.getoption("--strict-skips")))


class Summary:
    def __init__(self, strict: bool):
        self.strict = strict
        self.skips: dict[str, Skip] = {}  # by test: every worker sends a report on a file that it skips

    def pytest_runtest_logreport(self, report) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skips[report.nodeid] = Skip.of(report)

    def pytest_collectreport(self, report) -> None:
        if report.skipped:
            self.skips[report.nodeid] = Skip.of(report)

    def pytest_sessionfinish(self, session) -> None:
        if self.strict and session.exitstatus == pytest.ExitCode.OK and forbidden(self.skips.values(), read_patterns()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        write, skips = terminalreporter.write_line, list(self.skips.values())
        rows = table(skips)
        if rows:
            terminalreporter.section("not proven here")
            write(f"{'tests':>5}  for lack of")
            for count, name in rows:
                write(f"{count:>5}  {name}")
            if installable(rows):
                write(f"`{COMMAND}` installs what Debian has of it, as root.")
        if self.strict:
            terminalreporter.section("skipped tests")
            for skip in skips:
                write(f"{skip.test}: {skip.reason}")
            for skip in forbidden(skips, read_patterns()):
                write(f"ERROR: {ALLOWED.name} does not allow this reason, of {skip.test}: {skip.reason}", red=True)
