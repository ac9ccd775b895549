"""``debug``: dump an artifact's library and what it should compute, compare, and say where they part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .compare import DIFFER, add_output, show
from .dump import add_recipe, dump_peer, open_artifact, recipe_of

if TYPE_CHECKING:
    from ..debug.weights import WeightDifference

SHOWN = 5


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("debug", help="find the first value that an artifact computes wrong")
    parser.add_argument("model", metavar="DIST", help="artifact folder")
    parser.add_argument("--device", default="auto", help="where it runs (auto)")
    parser.add_argument("--against", metavar="CHECKPOINT", required=True, help="what it should be built from")
    text = "take the package that ChatRWKV is for what is right, not our own numpy"
    parser.add_argument("--with", dest="peer", choices=("rwkv",), help=text)
    add_recipe(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the two dumps there")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..debug import library, reference
    from ..debug.compare import compare
    from ..debug.weights import StoredWeights, different_weights
    from ..engine.engine import Engine
    from ..models import ModelOptions
    from ..weights import open_checkpoint

    artifact = open_artifact(args.model)
    if artifact is None:
        raise UserError(f"{args.model} is no artifact; name a folder written by rwkv-mlc build.")
    checkpoint = open_checkpoint(args.against)
    options = ModelOptions(
        head_size_divisor=artifact.record.head_size_divisor,
        rescale_every=artifact.config.rescale_every,
        float32=artifact.config.float32,
    )
    recipe, weights = recipe_of(args, artifact), StoredWeights.of(artifact)
    with Console(stderr=True).status("") as status:
        status.update(f"Computing what {checkpoint.name} should give...")
        dump = dump_peer if args.peer else reference.dump_checkpoint
        right = dump(checkpoint, recipe, artifact.scheme, options=options)
        status.update(f"Dumping {artifact.name}...")
        found = library.dump_library(Engine(args.model, args.device), recipe)
        status.update("Comparing...")
        comparison = compare(found, right, args.rtol, weights)
        different = different_weights(weights, checkpoint, options=options)
    if args.out:
        found.write(args.out / "library")
        right.write(args.out / right.header.source)
    if not args.json:
        _print(different)
    code = show(args, comparison, weights=[vars(difference) for difference in different])
    return DIFFER if different else code


def _print(different: list[WeightDifference]) -> None:
    for difference in different[:SHOWN]:
        print(difference.sentence())
    if len(different) > SHOWN:
        print(f"{len(different) - SHOWN} more tensors are stored with other values.")
    if not different:
        print("The stored weights are those of the checkpoint.")
