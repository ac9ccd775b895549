"""``debug``: dump an artifact's library and what it should compute, compare, and say where they part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import named_path, path_or_name
from .compare import DIFFER, add_output, check_outputs, show
from .dump import add_family, add_recipe, recipe_of
from .faults import say
from .progress import spinner

if TYPE_CHECKING:
    from ..debug.weights import WeightDifference

SHOWN = 5


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("debug", help="find the first value that an artifact computes wrong")
    parser.add_argument("model", metavar="DIST", type=path_or_name, help="artifact folder")
    parser.add_argument("--device", default="auto", help="where it runs (auto)")
    add_family(parser)
    parser.add_argument(
        "--against", metavar="CHECKPOINT", type=path_or_name, required=True, help="what it should be built from"
    )
    text = "take the package that ChatRWKV is for what is right, not our own numpy"
    parser.add_argument("--with", dest="peer", choices=("rwkv",), help=text)
    add_recipe(parser)
    parser.add_argument("--out", type=named_path, metavar="FOLDER", help="keep the two dumps there")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..artifact import Artifact
    from ..debug.diagnosis import diagnose
    from ..debug.dump import check_folder
    from ..weights import open_checkpoint
    from ..weights.lora import merged

    check_outputs(args)
    for folder in ("library", "reference", "rwkv") if args.out else ():
        check_folder(args.out / folder)
    artifact = Artifact.open(args.model)
    checkpoint = open_checkpoint(args.against)
    if lora := artifact.record.lora:
        checkpoint = merged(checkpoint, Path(lora.file), lora.alpha)
    chosen = {"family": args.family, "with_package": args.peer == "rwkv", "rtol": args.rtol}
    recipe = recipe_of(args, artifact)
    with spinner() as tell:
        diagnosis = diagnose(artifact, checkpoint, recipe, args.device, **chosen, tell=tell)
    if args.out:
        diagnosis.write(args.out)
    if not args.json:
        _print(diagnosis.weights)
    code = show(args, diagnosis.comparison, weights=[vars(difference) for difference in diagnosis.weights])
    return DIFFER if diagnosis.weights else code


def _print(different: list[WeightDifference]) -> None:
    for difference in different[:SHOWN]:
        say(difference.sentence())
    if len(different) > SHOWN:
        print(f"{len(different) - SHOWN} more tensors are stored with other values.")
    if not different:
        print("The stored weights are those of the checkpoint.")
