"""``generate``: text that goes on from a prompt."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..errors import UserError
from ..text_encoding import in_utf8
from . import options
from .arguments import named_path, path_or_name, prompt
from .faults import say


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="go on from a prompt",
        description=(
            "Print what the model writes after a prompt, which is read from stdin where none is given. Prompts need "
            "not be UTF-8; a byte order mark is left out, UTF-16 with one understood, and line ends stay as they are given. "
            "The end-of-text token stands for an empty prompt; with --state it goes on with the next token."
        ),
    )
    options.add_engine(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", type=prompt, metavar="TEXT")
    source.add_argument("--prompt-file", type=path_or_name, metavar="FILE", help="- is stdin")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    options.add_think(parser)
    options.add_sampling(parser)
    parser.add_argument("--state", type=named_path, metavar="FILE", help="go on from a saved state")
    parser.add_argument(
        "--save-state", type=named_path, metavar="FILE", help="write the state after exactly the prompt and the text"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text as it comes")
    parser.add_argument("--stats", action="store_true", help="print counts, seed and speed on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..artifact.disk import check_output
    from ..engine.chat import Chat
    from ..engine.engine import Engine
    from ..engine.thoughts import Thought

    if args.think is not None and not args.chat:
        raise UserError("--think is said in the model's chat template; give --chat, too.")
    if args.save_state:
        check_output(args.save_state)
    settings = options.given_settings(args)
    options.check_before_loading(args)
    prompt = _prompt(args)
    engine = Engine(args.model, args.device, options.prompt_progress(), args.threads)
    if args.chat:
        chat = Chat(engine, engine.chat_params(**settings), args.think)
        if args.state:
            chat.load(args.state)
        pieces = chat.displayed(chat.send(prompt))
    else:
        params = dataclasses.replace(engine.defaults, **settings)
        state = engine.load_state(args.state) if args.state else engine.new_state() if args.save_state else None
        pieces = answer = engine.stream(prompt, params, state)
    text = ""
    for piece in pieces:
        text += "" if isinstance(piece, Thought) else piece
        if not args.json:
            print(options.shown(piece), end="", flush=True)
    if args.chat:
        answer = chat.answer
    if args.json:
        say(json.dumps(_report(engine, answer, prompt, text), ensure_ascii=False))
    else:
        print(flush=True)
    if args.stats:
        counts = f"prompt: {len(answer.prompt)} tokens, answer: {len(answer.tokens)} tokens ({answer.finish_reason})"
        print(f"{counts}, seed: {answer.seed}, {options.speed(engine)}", file=sys.stderr)
    if args.save_state:
        engine.save_state(answer.state, args.save_state)
    return 0


def _prompt(args: argparse.Namespace) -> str:
    """The prompt's bytes as text, those that are not UTF-8 as ``surrogateescape`` writes them, which is how the system
    gives arguments and how tokenizers take text."""
    if args.prompt is not None:
        return args.prompt
    if args.prompt_file in (None, "-"):
        if sys.stdin is None:
            raise UserError("Standard input is closed; give the prompt with --prompt or --prompt-file.")
        data, source = sys.stdin.buffer.read(), "Standard input"
    else:
        source = args.prompt_file
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise UserError(f"The prompt {source} cannot be read: {error.strerror}.") from None
    return in_utf8(data, source).decode("utf-8", "surrogateescape")


def _report(engine, answer, prompt: str, text: str) -> dict:
    stats = engine.stats
    return {
        "model": engine.name,
        "prompt": prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
        "text": text,
        **({"reasoning": answer.reasoning} if engine.template.think else {}),
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "prompt_tokens": len(answer.prompt),
        "stats": {
            "prefill_tokens": stats.prefill_tokens,
            "prefill_seconds": stats.prefill_seconds,
            "prefill_tokens_per_second": stats.prefill_rate,
            "decode_tokens": stats.decode_tokens,
            "decode_seconds": stats.decode_seconds,
            "decode_tokens_per_second": stats.decode_rate,
        },
    }
