"""``PYTHONPATH=.:tests python -m fuzz``: the fuzzer by hand.

python -m fuzz --hours 1 [--first 100000] [--only pth,dump]     for so long; ends with 1 where it found anything
python -m fuzz --case pth:123                                   one case again, with its traceback
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.paths import DEMO

from . import seeds
from .campaign import Campaign
from .targets import TARGETS
from .worker import fenced_place


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--only", default=",".join(TARGETS), metavar="NAME,..", help="targets")
    parser.add_argument("--case", metavar="NAME:N", help="one case in this process")
    parser.add_argument(
        "--artifact", type=Path, help="one with a library for this CPU, instead of building the demo model"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "seeds")
        seeds.write(place, args.artifact or _build(Path(folder)))
        if args.case:
            name, _, number = args.case.rpartition(":")
            fenced = fenced_place(place, Path(folder))
            TARGETS[name](fenced, random.Random(f"{name} {number}"))
            return 1 if fenced.fence.breaches else 0
        campaign = Campaign(place, tell=lambda text: print(text, flush=True))
        end = time.monotonic() + 3600 * args.hours

        def cases() -> Iterator[tuple[str, int]]:
            for number in itertools.count(args.first):
                for name in args.only.split(","):
                    if time.monotonic() > end:
                        return
                    yield name, number

        campaign.run(cases())
    print(f"{sum(campaign.cases.values()):,} cases, {len(campaign.findings)} kinds of findings")
    print(", ".join(f"{name} {count:,}" for name, count in campaign.cases.items()))
    return 1 if campaign.findings else 0


def _build(folder: Path) -> Path:
    from rwkv_mlc import build

    return build(DEMO, "llvm", "q0f32", folder / "dist").path


if __name__ == "__main__":
    sys.exit(main())
