"""Checkpoints as nobody has made them yet: some draws, and hundreds by ``python -m support.drawn``."""

from __future__ import annotations

import pytest

from support.drawn import Draw, check

NUMBERS = (22, 90, 94, 128, 140, 152, 217, 247, 281, 350, 359, 1072, 1367, 10, 54, 63)
"""Small ones of every layout and generation; the last three cannot be built."""


@pytest.mark.parametrize("number", NUMBERS)
def test_drawn_checkpoints(number, tmp_path, libraries):
    draw = Draw.of(number)
    print(draw, check(draw, tmp_path, libraries))
