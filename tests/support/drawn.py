"""Checkpoints drawn at random, of RWKV-6, 7 and 7a: sizes, ranks, layouts and types as nobody has seen them yet.

PYTHONPATH=.:tests python -m support.drawn --hours 1 [--first 1000]     for so long; ends with 1 where one fails
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_mlc.errors import UserError
from rwkv_mlc.models import resolve
from rwkv_mlc.weights import open_checkpoint

from .accuracy import BOUND, trained_like_weights
from .checkpoint_layouts import DTYPES, LAYOUTS, write_safetensors
from .compiled import QUICK, Model, in_memory
from .kernel_build import error

GENERATIONS = ("6", "7", "7a")
SCHEMES = ("q0f32", "q4f16_1", "q8f16_1")
WIDTHS = (64, 80, 96, 128, 192, 256, 320, 512, 768, 1024, 2048, 2560)
HEAD_SIZES = (16, 32, 64, 128)
VOCABULARIES = {300: 300, 65529: 128, 65536: 128}
"""And the most channels that a model is drawn with that has one."""
TOKENS = 24
REFUSED = {"flat bonus": "should be [heads, channels of a head]", "last layer of other ranks": "blocks.{}.att."}
"""Checkpoints that cannot be built, and what must be said of them, with the number of the last layer."""
OTHER_HEADS = "heads with another epsilon"
REFUSED_FOLDERS = {OTHER_HEADS: "for the norm of heads"}
"""The same of folders, whatever their tensors are."""


@dataclass(frozen=True)
class Draw:
    """One checkpoint. ``values_of_layer_0`` says that it has the pair of the first layer's value, which nothing reads; it is
    ``refused`` where it is one of ``REFUSED`` or ``REFUSED_FOLDERS``."""

    number: int
    generation: str
    layout: str
    dtype: str
    scheme: str
    vocab_size: int
    hidden_size: int
    attention_size: int
    head_size: int
    intermediate_size: int
    layers: int
    ranks: tuple[int, ...]
    values_of_layer_0: bool
    refused: str | None

    @classmethod
    def of(cls, number: int) -> Draw:
        rng = random.Random(number)
        generation = rng.choice(GENERATIONS)
        layout = rng.choice([name for name, (built, *_) in LAYOUTS.items() if generation in built])
        hidden = rng.choices(WIDTHS, [8] * 9 + [3, 1, 1])[0]
        head_size = rng.choice([n for n in HEAD_SIZES if hidden % n == 0])
        attention = rng.choice((hidden, hidden, head_size * rng.randint(1, 2 * hidden // head_size)))
        largest = 64 if hidden > 512 else 160
        layers = rng.randint(1, 3) if hidden <= 512 else 1
        other_heads = OTHER_HEADS if "fla" in layout and head_size != 64 else None
        return cls(
            number,
            generation,
            layout,
            dtype=rng.choice(LAYOUTS[layout][1]),
            scheme=rng.choice(SCHEMES),
            vocab_size=300 if hidden > 128 else rng.choice((300, 300, 300, 65529, 65536)),
            hidden_size=hidden,
            attention_size=attention,
            head_size=head_size,
            intermediate_size=rng.choice((4 * hidden, int(3.5 * hidden), rng.randint(16, 4 * hidden))),
            layers=layers,
            ranks=tuple(rng.choice((32, 64, rng.randint(1, largest))) for _ in range(4)),
            values_of_layer_0=generation != "6" and "fla" not in layout and rng.random() < 0.5,
            refused=rng.choice(list(REFUSED)[:layers]) if rng.random() < 0.15 else other_heads,
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """Under BlinkDL's names, with values that ``dtype`` holds."""
        result = trained_like_weights(
            self.generation,
            seed=self.number,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=self.layers,
            head_size=self.head_size,
            intermediate_size=self.intermediate_size,
            attention_size=self.attention_size,
            ranks=self.ranks,
        )
        if self.values_of_layer_0:
            result |= {f"blocks.0.att.v{part[1:]}": result[f"blocks.0.att.{part}"] for part in ("a0", "a1", "a2")}
        return {name: array.astype(DTYPES[self.dtype]).astype(np.float32) for name, array in result.items()}


def hold(draw: Draw, folder: Path, libraries: Path) -> float:
    """The largest error of a drawn model's logits as a part of the largest logit: its file is read, compiled and run, for
    many tokens and for single ones, beside the float64 reference on what was drawn. ``folder`` is an empty one."""
    tensors = draw.tensors()
    expected = in_memory(tensors)
    checkpoint = open_checkpoint(str(LAYOUTS[draw.layout][2](folder / "drawn", tensors, draw.dtype)))
    config, parameters, found = resolve(checkpoint)
    right, _, originals = resolve(expected)
    assert config == right
    for p in parameters:
        assert np.array_equal(p.convert(found[p.source].read()), p.convert(originals[p.source].read())), p.source
    model = Model.of(checkpoint, draw.scheme, libraries, QUICK, functions=("score", "decode"))
    tokens = np.random.default_rng(draw.number).integers(0, draw.vocab_size, TOKENS).tolist()
    logits = model.reference(tokens)
    return max(error(model.score(tokens, chunk=17), logits), error(model.decode(tokens), logits))


def refusal(draw: Draw, folder: Path) -> str:
    """What is said of a drawn checkpoint that cannot be built."""
    tensors = draw.tensors()
    write = write_safetensors
    if draw.refused == OTHER_HEADS:
        write = LAYOUTS[draw.layout][2]
    elif draw.refused == "flat bonus":
        for name in tensors:
            if name.endswith(("r_k", "time_faaaa")):
                tensors[name] = tensors[name].reshape(-1)
    else:
        first, second = {"6": ("time_decay_w1", "time_decay_w2")}.get(draw.generation, ("g1", "g2"))
        block = f"blocks.{draw.layers - 1}.att"
        tensors[f"{block}.{first}"] = tensors[f"{block}.{first}"].repeat(2, 1)
        tensors[f"{block}.{second}"] = tensors[f"{block}.{second}"].repeat(2, 0)
    path = write(folder / "drawn", tensors, draw.dtype)
    try:
        resolve(open_checkpoint(str(path)))
    except UserError as refused:
        return str(refused)
    raise AssertionError(f"nothing was said of a {draw.refused}")


def check(draw: Draw, folder: Path, libraries: Path) -> str:
    """What came of a draw. Raises what is wrong with it."""
    if draw.refused:
        said = refusal(draw, folder)
        assert (REFUSED | REFUSED_FOLDERS)[draw.refused].format(draw.layers - 1) in said and "\n" not in said, said
        return "refused"
    found = hold(draw, folder, libraries)
    assert found < BOUND, f"{found:.1e}"
    return f"{found:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="drawn", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first draw")
    args = parser.parse_args()
    end, outcomes, kinds = time.monotonic() + 3600 * args.hours, Counter(), Counter()
    for number in itertools.count(args.first):
        if time.monotonic() > end:
            break
        draw, folder = Draw.of(number), Path(tempfile.mkdtemp())
        try:
            said = check(draw, folder, folder)
            outcomes["refused" if said == "refused" else "held"] += 1
        except Exception:
            said = f"FAILED {draw}\n{traceback.format_exc()}"
            outcomes["failed"] += 1
        finally:
            shutil.rmtree(folder)
        kinds[f"{draw.generation} {draw.layout}"] += 1
        print(number, draw.generation, draw.layout, draw.dtype, draw.scheme, draw.hidden_size, said, flush=True)
    print(dict(outcomes), dict(kinds))
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
