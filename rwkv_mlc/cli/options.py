"""Arguments that several commands share, and what they show while a prompt is read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..escaping import LAYOUT, escaped
from ..numerals import integer, number
from . import arguments, stop_strings
from .arguments import named_path

if TYPE_CHECKING:
    from ..engine.engine import Engine

DIM, NOT_DIM = "\033[2m", "\033[22m"

SAMPLING = {
    "temperature": (number, "0 takes the likeliest token"),
    "top_p": (number, "keep the likeliest tokens that make up this part; 1 keeps all"),
    "top_k": (integer, "keep this many of the likeliest tokens; 0 keeps all"),
    "presence_penalty": (number, "subtracted from the logit of a token that came before"),
    "frequency_penalty": (number, "subtracted for every time that it came"),
    "repetition_penalty": (number, "divides the logit of a token that came before; 1 is off"),
    "penalty_decay": (number, "factor on the counts of tokens at every step"),
    "seed": (integer, "of the random numbers; drawn anew for each answer where not given"),
    "max_tokens": (integer, "longest answer"),
}


def add_engine(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "model",
        metavar="DIST",
        nargs=None if required else "?",
        type=named_path,
        help="artifact folder, such as dist/rwkv-7-village-q4f16_1; its library is code, which runs with your rights",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, metal, vulkan or opencl, the second of several as cuda:1; auto is the best one here that the "
        "artifact has a library for",
    )
    parser.add_argument(
        "--threads",
        type=arguments.integer(1, 256),
        metavar="N",
        help="threads of the kernels on a CPU, instead of one a core that is allowed",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", "where not given, as the artifact's mlc-chat-config.json says")
    for name, (kind, text) in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X" if kind is number else "N", help=text)
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help=f"end before this text, in which {stop_strings.RULE}; may be given several times",
    )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that the command line gives, by the names of ``SamplingParams``. Raises UserError for a value that
    none of them takes."""
    from ..engine.sampler import SamplingParams

    settings = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    settings |= {"stop": tuple(map(stop_strings.parse, args.stop))} if args.stop else {}
    SamplingParams(**settings)
    return settings


def check_before_loading(args: argparse.Namespace) -> None:
    """Raises UserError for a device, a think mode and a saved state with which no model, or not this one, could be used."""
    from ..artifact import Artifact
    from ..engine.devices import check_name
    from ..engine.state_file import check_state
    from ..engine.templates import Template

    check_name(args.device)
    if args.think is not None:
        Template.of(Artifact.open(args.model).chat_config.conv_template).think_mode(args.think, "--think ")
    if args.state:
        check_state(args.state)


def speed(engine: Engine) -> str:
    """How fast it was, and on a CPU with which threads."""
    on_cpu = engine.runner.device.type == "cpu"
    return f"{engine.stats}, {engine.runner.pool}" if on_cpu else str(engine.stats)


def add_think(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--think",
        metavar="MODE",
        help="how much a model thinks before it answers, where its template has that: off, on, 'a bit' or 'a lot'",
    )


def shown(text: str) -> str:
    """What a model wrote, for stdout: as it is, but on a terminal, where control characters would be obeyed, escaped, and
    thoughts dimmed."""
    from ..engine.thoughts import Thought

    if not sys.stdout.isatty():
        return text
    return f"{DIM}{escaped(text, LAYOUT)}{NOT_DIM}" if isinstance(text, Thought) else escaped(text, LAYOUT)


def prompt_progress() -> Callable[[int, int], None]:
    """Shows on a terminal how much of a prompt of several chunks was read; for ``Engine(progress=...)``."""

    def show(read: int, total: int) -> None:
        nonlocal shown
        if read < total and sys.stderr.isatty():
            shown = True
            print(f"\rReading the prompt: {read} of {total} tokens", end="", file=sys.stderr, flush=True)
        elif shown:
            shown = False
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    shown = False
    return show
