"""``dump``: every named value of a few calls, of a library, of the reference or of the ``rwkv`` package."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .arguments import integer, integers, named_path, path_or_name, prompt
from .faults import say
from .progress import spinner

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..debug.dump import Dump
    from ..debug.recipe import Recipe
    from ..weights.checkpoint import Checkpoint

MOST_DECODES = 1 << 16
FAMILIES = ("fused", "plain")
DTYPES = ("float64", "float32", "float16")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("dump", help="write every layer's values to a folder, for compare")
    parser.add_argument(
        "path",
        metavar="DIST|CHECKPOINT",
        type=path_or_name,
        help="artifact folder, or a checkpoint with --reference or --with",
    )
    parser.add_argument("--device", default="auto", help="where an artifact runs (auto)")
    add_family(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--reference", action="store_true", help="compute in numpy")
    source.add_argument("--with", dest="peer", choices=("rwkv",), help="run the package that ChatRWKV is")
    parser.add_argument("--dtype", choices=DTYPES, default="float64", help="of --reference (float64)")
    parser.add_argument("--quantization", metavar="SCHEME", help="round a checkpoint's weights as an artifact's are")
    parser.add_argument(
        "--head-size-divisor", type=integer(1), metavar="N", help="of the heads' group norm, where not 8"
    )
    add_recipe(parser)
    parser.add_argument("--out", type=named_path, metavar="FOLDER", help="(dumps/NAME-SOURCE)")
    parser.set_defaults(run=run)


def add_family(parser: argparse.ArgumentParser) -> None:
    """Which library is dumped."""
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="compile a library of this family for the dump, where the artifact's is of the other: plain shows what fused "
        "kernels keep to themselves (the artifact's)",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """What is fed."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tokens", type=integers("token ids"), metavar="1,2,3", help="token ids (ten ones)")
    source.add_argument("--prompt", type=prompt, metavar="TEXT", help="text in their place")
    parser.add_argument(
        "--decode",
        type=integer(0, MOST_DECODES),
        default=2,
        metavar="N",
        help="single tokens after them, the same again (2)",
    )
    parser.add_argument(
        "--chunk", type=integer(1), metavar="N", help="most tokens of one prefill, where not the artifact's"
    )


def run(args: argparse.Namespace) -> int:
    from ..debug.dump import check_folder
    from ..debug.nonfinite import first_nonfinite

    check_folder(args.out or Path("dumps") / "new")
    with spinner() as tell:
        dump = _dump(args, tell)
    folder = args.out or Path("dumps") / f"{dump.header.name}-{dump.header.source}"
    dump.write(folder)
    say(f"{len(dump.tensors)} values of {', '.join(dump.header.calls)} in {folder}")
    for text in (*dump.header.notes, first_nonfinite(dump)):
        if text:
            say(text)
    return 0


def _dump(args: argparse.Namespace, tell: Callable[[str], None]) -> Dump:
    import numpy as np

    from ..artifact import Artifact, artifacts_in, is_artifact, no_artifact
    from ..debug.family import runner_of
    from ..debug.library import dump_library
    from ..debug.package import dump_package
    from ..debug.reference import dump_artifact, dump_checkpoint
    from ..models import ModelOptions
    from ..quantization.schemes import get_scheme
    from ..weights import open_checkpoint

    if args.family and (args.reference or args.peer):
        raise UserError("--family is of a library; leave --reference and --with out, or --family.")
    scheme, dtype = get_scheme(args.quantization) if args.quantization else None, np.dtype(args.dtype).type
    if is_artifact(args.path):
        artifact = Artifact.open(args.path)
        if args.peer or scheme or args.head_size_divisor:
            raise UserError(
                f"{args.path} is an artifact; --with, --quantization and --head-size-divisor are for a checkpoint."
            )
        recipe = recipe_of(args, artifact)
        if args.reference:
            tell("computing in NumPy")
            return dump_artifact(artifact, recipe, dtype)
        runner = runner_of(artifact, args.device, args.family)
        tell(f"computing on {runner.device}")
        return dump_library(artifact, runner, recipe)
    if not (args.reference or args.peer):
        if artifacts_in(path := Path(args.path)) or not path.exists():
            raise no_artifact(path)
        raise UserError(f"{path} is no artifact; of a checkpoint --reference or --with rwkv gives a dump.")
    options = ModelOptions(head_size_divisor=args.head_size_divisor)
    checkpoint = open_checkpoint(args.path)
    recipe = recipe_of(args, checkpoint)
    tell("computing with the rwkv package" if args.peer else "computing in NumPy")
    if args.peer:
        return dump_package(checkpoint, recipe, scheme, options)
    return dump_checkpoint(checkpoint, recipe, scheme, dtype, options)


def recipe_of(args: argparse.Namespace, model: Artifact | Checkpoint) -> Recipe:
    """Raises UserError where a prompt needs a tokenizer that is not there."""
    from ..debug.recipe import Recipe

    return Recipe.of(model, args.tokens, args.prompt, args.decode, args.chunk)
