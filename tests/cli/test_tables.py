"""What commands print: at every width the same, of which nothing is cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rwkv_mlc.cli import bench, build_output, compare, inspect, tables, verify
from rwkv_mlc.cli.main import main
from rwkv_mlc.cli.tables import Table, size
from support.paths import DEMO

WIDTHS = (60, 80)


@pytest.fixture(scope="module")
def dumps(demo, tmp_path_factory):
    """Of the library, and of the reference with another tail."""
    folder = tmp_path_factory.mktemp("dumps")
    recipe = ["--prompt", "Tom", "--decode", "1"]
    assert main(["dump", str(demo), *recipe, "--out", str(folder / "a")]) == 0
    assert (
        main(["dump", str(DEMO), "--reference", *recipe, "--head-size-divisor", "4", "--out", str(folder / "b")]) == 0
    )
    return str(folder / "a"), str(folder / "b")


COMMANDS = [
    "compare A B --all",
    "compare A B",
    "inspect DEMO --errors",
    "inspect MODEL --quantization all",
    "verify DEMO",
    "bench DEMO --prefill 4 --decode 4 --breakdown",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut(command, demo, dumps, monkeypatch, capsys, quick):
    words = dict(zip("AB", dumps)) | {"DEMO": str(demo), "MODEL": str(DEMO)}
    arguments = [words.get(word, word) for word in command.split()]
    module = {"compare": compare, "inspect": inspect, "verify": verify, "bench": bench}[arguments[0]]
    printed: list = []
    capture = Console.print
    monkeypatch.setattr(
        Console, "print", lambda self, *what, **how: printed.append(what) or capture(self, *what, **how)
    )
    assert main(arguments) in (0, 1) and module.console is tables.console
    rendered = [what for (what,) in printed if isinstance(what, Table)]
    assert rendered and "…" not in capsys.readouterr().out
    for width in WIDTHS:
        out = Console(width=width, markup=False, highlight=False, record=True, file=io.StringIO())
        for what in rendered:
            capture(out, what)
            text = out.export_text()
            assert max(map(len, text.splitlines())) <= width
            for row in what.rows:
                for cell in row:
                    assert " ".join(cell.split()) in " ".join(text.split()) or what.justify == "left"


def test_a_table_that_does_not_fit():
    table = Table("value", "shape", "relative RMS", "limit")
    table.add_row("> prefill/blocks.0.att.key", "2 x 64 x 64", "1.4e+00", "1e-04")
    table.add_row("b", "1", "", "1e-04")

    def printed(width: int) -> list[str]:
        out = Console(width=width, markup=False, highlight=False, record=True, file=io.StringIO())
        out.print(table)
        return [line.rstrip() for line in out.export_text().splitlines() if line.strip()]

    assert printed(80)[2:] == [
        "  > prefill/blocks.0.att.key  2 x 64 x 64       1.4e+00  1e-04",
        "  b                                     1                1e-04",
    ]
    assert printed(50) == [
        "> prefill/blocks.0.att.key",
        "    shape 2 x 64 x 64, relative RMS 1.4e+00,",
        "    limit 1e-04",
        "b",
        "    shape 1, limit 1e-04",
    ]
    assert "".join(printed(10)).replace(" ", "") == "".join(printed(50)).replace(" ", "")


def test_words_go_on_below_each_other():
    table = Table("check", "", "found", justify="left")
    table.add_row("the library", "passed", "a sentence of many words that goes on and on")
    out = Console(width=40, record=True, file=io.StringIO())
    out.print(table)
    text = out.export_text()
    assert len(text.splitlines()) > 6 and text.split()[-1] == "on" and "found" in text


def test_sizes_say_something():
    assert [size(n) for n in (12, 4100, 31e6, 2.5e9)] == ["12 bytes", "4.10 kB", "31.00 MB", "2.50 GB"]


def test_a_benchmark_says_how_large(demo, capsys, quick):
    assert main(["bench", str(demo), "--prefill", "4", "--decode", "4"]) == 0
    out = capsys.readouterr().out
    assert "0.00 GB" not in out and re.search(r"for \d+\.\d\d MB of weights", out)
    (choosing,) = re.findall(r"(\d+\.\d)% choosing tokens", out)
    assert 0 < float(choosing) < 100
    assert not set("┃┏┡│") & set(out) and build_output.console is tables.console
