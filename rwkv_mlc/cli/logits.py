"""``logits``: what the model computes at every position, for scripts and doubters."""

from __future__ import annotations

import argparse

from . import options
from .arguments import integers, named_path, prompt


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("logits", help="write the logits after every token to a .npy file")
    options.add_engine(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", type=integers("token ids"), metavar="1,2,3", help="token ids")
    source.add_argument(
        "--prompt", type=prompt, metavar="TEXT", help="text; the end-of-text token stands for an empty one"
    )
    parser.add_argument("--decode", action="store_true", help="feed the tokens one by one, as in generation")
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="FILE.npy", help="float32 [tokens, vocabulary]"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..artifact.disk import check_output
    from ..engine.engine import Engine
    from ..engine.logits import write_logits

    check_output(args.out)
    engine = Engine(args.model, args.device, threads=args.threads)
    write_logits(engine, args.tokens or engine.encode(args.prompt), args.out, one_by_one=args.decode)
    return 0
