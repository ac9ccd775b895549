"""Pages that name one another, and files, by names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:rwkv_mlc|tir_kernels|tests|tools|docs|configs)/[\w./-]*[\w/])`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in LINK.findall(text) if "://" not in link]
    files = [ROOT / name for name in FILE.findall(text) if "kvN" not in name]  # which stands for any of them
    assert [str(path) for path in (*links, *files) if not path.exists()] == []


def test_the_index_lists_every_page():
    listed = {
        (ROOT / "docs" / link).resolve() for link in LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8"))
    }
    assert {page for page in PAGES if page.name != "README.md"} <= listed
