"""The share of strings that artifacts of ``rwkv-7-reverser`` reverse without a mistake, as in README's table of schemes.

    python build.py --model configs/demo/rwkv-7-reverser --quantization q3f16_1
    python tools/benchmarks/ruler.py dist/rwkv-7-reverser-* [--device vulkan]

Every answer is the likeliest text, without penalties.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from demo.reversal import exact_share

from rwkv_mlc import Engine, SamplingParams


def share(engine: Engine) -> float:
    def answer(prompt: str) -> str:
        return engine.generate(prompt, SamplingParams(temperature=0, max_tokens=len(prompt))).text

    return exact_share(answer)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--device")
    args = parser.parse_args(arguments)
    for path in args.artifacts:
        print(f"{path.name}: {share(Engine(path, *filter(None, [args.device]))):.1%}", flush=True)


if __name__ == "__main__":
    main()
