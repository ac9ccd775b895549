"""``convert-pth``: a checkpoint of any format as BlinkDL's ``.pth``."""

from __future__ import annotations

import argparse

from .arguments import named_path, path_or_name
from .convert_hf import add_overwrite, say_written
from .progress import counted


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("convert-pth", help="write a folder of Hugging Face's as BlinkDL's .pth")
    parser.add_argument(
        "model", metavar="HF_FOLDER", type=path_or_name, help="folder, checkpoint file of any format, or hub repository"
    )
    parser.add_argument("out", metavar="OUT.pth", type=named_path, help="file to write")
    add_overwrite(parser, "file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..conversion import convert_pth
    from ..weights import open_checkpoint

    checkpoint = open_checkpoint(args.model)
    with counted("writing tensors") as progress:
        convert_pth(checkpoint, args.out, overwrite=args.overwrite, progress=progress)
    say_written(args.out)
    return 0
