"""What holds for every breakdown of a demo model's time."""

from __future__ import annotations

import pytest

from rwkv_mlc.bench.breakdown import NORMS

HALF_BLOCKS = ("time_mixing", "channel_mixing")


def check_parts(parts: dict) -> None:
    for rows in (parts["groups"], parts["kernels"]):
        assert sum(row["seconds"] for row in rows) == pytest.approx(parts["kernel_seconds"])
    assert sum(row["calls"] for row in parts["groups"]) == sum(row["calls"] for row in parts["kernels"])
    assert not any(row["kernel"].startswith("vm.builtin") for row in parts["kernels"])
    assert parts["outside_seconds"] == pytest.approx(parts["seconds"] - parts["kernel_seconds"])
    layers = parts["layers"]
    assert len(layers) == 6 and all(set(layer) == set(HALF_BLOCKS) and min(layer.values()) > 0 for layer in layers)
    groups = {row["group"]: row["seconds"] for row in parts["groups"]}
    around = sum(groups.get(name, 0) for name in ("embedding", "head", "border_slots", "shape_func"))
    # What else is in no layer: the first and the last norm, and what comes before the head. ``last_rows`` has no parameters
    # and counts with the last layer, which it follows, however long it takes.
    rest = parts["kernel_seconds"] - around - sum(sum(layer.values()) for layer in layers)
    assert 0 < rest + 1e-9 <= groups[NORMS] + groups.get("quantize_activation", 0) + 2e-9, (rest, groups, layers)
