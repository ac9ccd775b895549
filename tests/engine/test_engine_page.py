"""docs/engine.md: its programs run, and print what it says."""

from __future__ import annotations

import re

from support.paths import ROOT


def test_the_page_does_what_it_says(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "rwkv-7-village-q4f16_1").symlink_to(demo)  # their greedy answers are the same
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    printed, names = "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL)), {}
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for program in programs:
        exec(program, names)
    assert len(programs) == 2 and capsys.readouterr().out == printed != ""
    assert [sequence.finish_reason for sequence in names["others"]] == ["stop", "stop"]
    assert (tmp_path / "common.state").exists() and names["pool"].free_slots == 0
