"""``convert-hf``: a checkpoint as a folder that transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import named_path, path_or_name
from .faults import say
from .progress import counted


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("convert-hf", help="write a checkpoint as a folder that transformers loads")
    parser.add_argument("model", metavar="MODEL", type=path_or_name, help="checkpoint file, folder or hub repository")
    parser.add_argument("out", metavar="OUT", type=named_path, help="folder to write")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights (as in the checkpoint)")
    parser.add_argument(
        "--max-shard-size", default="2GB", metavar="SIZE", help="of a file of weights, such as 500MB (2GB)"
    )
    parser.add_argument(
        "--tokenizer", type=named_path, metavar="PATH", help="vocabulary, where not beside the checkpoint"
    )
    parser.add_argument("--template", help="prompt template of configs/templates, where not the model's usual one")
    add_overwrite(parser, "folder of a model")
    parser.set_defaults(run=run)


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--overwrite", action="store_true", help=f"replace a {what} that is there")


def run(args: argparse.Namespace) -> int:
    from ..building.options import BuildOptions
    from ..building.source import Source
    from ..conversion import convert_hf
    from ..conversion.output import check_free
    from ..weights import open_checkpoint

    check_free(args.out, args.overwrite)
    tokenizer = str(args.tokenizer) if args.tokenizer else None
    source = Source.of(open_checkpoint(args.model), BuildOptions(tokenizer=tokenizer, template=args.template))
    with counted("writing tensors") as progress:
        convert_hf(source, args.out, args.dtype, args.max_shard_size, overwrite=args.overwrite, progress=progress)
    say_written(args.out)
    return 0


def say_written(out: Path) -> None:
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()))
    say(f"{out}, {size:,} bytes")
