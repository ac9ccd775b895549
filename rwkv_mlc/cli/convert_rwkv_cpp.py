"""``convert-rwkv-cpp``: a checkpoint of any format as rwkv.cpp's file."""

from __future__ import annotations

import argparse

from .arguments import named_path, path_or_name
from .convert_hf import add_overwrite, say_written
from .progress import counted


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("convert-rwkv-cpp", help="write a checkpoint as rwkv.cpp's file")
    parser.add_argument("model", metavar="MODEL", type=path_or_name, help="checkpoint file, folder or hub repository")
    parser.add_argument("out", metavar="OUT.bin", type=named_path, help="file to write")
    parser.add_argument(
        "--dtype", choices=("FP16", "FP32"), default="FP16", help="of the matrices, vectors are FP32 always (FP16)"
    )
    add_overwrite(parser, "file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..conversion import convert_rwkv_cpp
    from ..weights import open_checkpoint

    checkpoint = open_checkpoint(args.model)
    with counted("writing tensors") as progress:
        convert_rwkv_cpp(checkpoint, args.out, args.dtype, overwrite=args.overwrite, progress=progress)
    say_written(args.out)
    return 0
