"""Perplexity of artifacts on a text, such as the README's of the demo model in every scheme.

    python build.py --model configs/demo/rwkv-5-village --quantization q3f16_1
    python tools/benchmarks/perplexity.py dist/rwkv-5-village-*

It is per token of the whole text as one stream after the token that begins a text, as the compiled library computes it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from rwkv_mlc import Engine


def perplexity(engine: Engine, text: bytes) -> float:
    ids = engine.tokenizer.encode(text)
    read, lost, count = [*engine.encode(""), *ids[:-1]], 0.0, 0
    for logits in engine.score(read, engine.new_state()):
        scores = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
        following = ids[count : count + len(scores)]
        lost += float(np.sum(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), following]))
        count += len(scores)
    return math.exp(lost / count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, default=ROOT / "configs" / "demo" / "heldout.txt")
    args = parser.parse_args(arguments)
    text = args.text.read_bytes()
    for path in args.artifacts:
        print(f"{path.name}: {perplexity(Engine(path), text):.4f}", flush=True)


if __name__ == "__main__":
    main()
