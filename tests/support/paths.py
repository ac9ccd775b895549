"""Where the files lie that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMOS = ROOT / "configs" / "demo"
DEMO = DEMOS / "rwkv-5-village"
GOLDEN = ROOT.parent / "shared" / "golden" / "rwkv.cpp"
