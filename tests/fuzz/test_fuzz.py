"""Some cases of every target, the same ones each time; ``python -m fuzz`` runs others, for as long as one likes."""

from __future__ import annotations

import pytest

from fuzz import seeds
from fuzz.campaign import Campaign
from fuzz.targets import TARGETS

CASES = 80
SLOW = dict.fromkeys(("chat", "command", "library", "objects", "target"), 40)


@pytest.fixture(scope="module")
def campaign(demo, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("fuzz") / "seeds"
    seeds.write(folder, demo)
    return Campaign(folder)


def test_strangers_files_and_arguments(campaign):
    campaign.run((name, number) for name in TARGETS for number in range(SLOW.get(name, CASES)))
    assert not campaign.findings, "\n\n".join(campaign.findings.values())
    assert set(campaign.cases) == set(TARGETS)
