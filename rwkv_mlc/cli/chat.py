"""``chat``: a conversation in a terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..escaping import escaped, quoted, shortened
from ..numerals import number
from ..regular_files import check_name
from ..text_encoding import lines_in_utf8
from . import options, stop_strings
from .arguments import integer, named_path, path_or_name
from .faults import say, say_error, sentence

HELP = r"""You can use the following special commands:
  /help               print the special commands
  /exit               leave, as does Ctrl-D
  /stats              print the speed of reading and writing
  /retry              answer the last message once more
  /reset              start the conversation afresh
  /reload [model]     load this model again, or another
  /set key=value;...  change settings, such as
                      temperature=0.5;top_p=0.8;seed=23;
                      max_tokens=100;stop=a,b. In stop, \n is
                      a line end, \t a tab, \\ a backslash,
                      \x2c a comma; seed=none draws a new one
                      for each answer. Models that think first
                      take think=off, on, a bit or a lot, and
                      none for their own. Alone, print them
  /save FILE          write the state of the conversation
  /load FILE          go on from a saved state
  /tools FILE         offer the functions of a JSON list, in a
                      conversation begun afresh; /tools none
                      offers none. Alone, name them
  /call MESSAGE       have the answer be a call of one
  /result TEXT        tell what a called function gave
Messages may begin with a path, such as /home/me/x; where
one begins like a command, //help sends "/help".
Esc and Enter begin a new line, Ctrl-C stops an answer."""
FILLER, WRITTEN = 2, 6234  # what mlc_chat_cli evaluates with
COMMANDS = (
    *("help", "exit", "stats", "retry", "reset", "reload", "set", "save", "load"),
    *("tools", "call", "result"),
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Talk with a model.\n\n{HELP}",
    )
    options.add_engine(parser, required=False)
    options.add_think(parser)
    options.add_sampling(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message, in place of the template's")
    parser.add_argument("--state", type=named_path, metavar="FILE", help="go on from a saved state")
    parser.add_argument(
        "--tools",
        type=named_path,
        metavar="FILE",
        help='JSON list of functions that the model may call, each an object with a "name" and what else it should know of it',
    )
    group = parser.add_argument_group("flags of mlc_chat_cli")
    group.add_argument(
        "--model",
        type=path_or_name,
        metavar="NAME",
        dest="named",
        help="in place of DIST: a folder, or a name that is looked for in dist/prebuilt/NAME, dist/NAME/params and "
        "dist/prebuilt/mlc-chat-NAME",
    )
    group.add_argument(
        "--model-lib-path",
        type=named_path,
        metavar="FILE",
        help="the one of the artifact's libraries to run, where not the device's",
    )
    group.add_argument(
        "--evaluate", action="store_true", help="print how fast the model reads and writes, in place of a chat"
    )
    group.add_argument(
        "--eval-prompt-len", type=integer(1), metavar="N", default=128, help="tokens that --evaluate reads (128)"
    )
    group.add_argument(
        "--eval-gen-len", type=integer(1), metavar="N", default=1024, help="tokens that --evaluate writes (1024)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.named is None):
        given = "both were" if args.model else "neither was"
        raise UserError(f"Give the artifact's folder, or its name with --model NAME; {given} given.")
    if args.named is not None:
        from ..mlc_chat.search import find_model

        args.model = find_model(args.named)
    options.check_before_loading(args)
    if args.model_lib_path is not None:
        from ..mlc_chat.search import device_for_library

        args.device = device_for_library(args.model, args.device, args.model_lib_path)
    if args.evaluate:
        evaluate(args)
        return 0
    session = Session(args)
    for line in _lines(session):
        if not session.handle(line):
            break
    return 0


def evaluate(args: argparse.Namespace) -> None:
    """Print how fast a prompt is read and tokens are, by themselves, after a first round that does not count; the tokens are
    those of mlc_chat_cli, or the model's last."""
    from ..engine.engine import Engine
    from ..engine.stats import Stats

    engine = Engine(args.model, args.device, options.prompt_progress(), args.threads)
    last = engine.config.vocab_size - 1
    prompt = [*engine.encode(""), *[min(FILLER, last)] * (args.eval_prompt_len - 1)]
    for decoded in (1, args.eval_gen_len):
        engine.stats, state = Stats(), engine.new_state()
        engine.prefill(prompt, state)
        for _ in range(decoded):
            engine.decode(min(WRITTEN, last), state)
    print(engine.stats, flush=True)


class Session:
    """A conversation and the settings that outlive a change of the model."""

    def __init__(self, args: argparse.Namespace):
        """Raises UserError for a model that cannot be loaded, and for bad settings."""
        from ..engine.tools import read_tools

        self.device, self.threads, self.system, self.model = args.device, args.threads, args.system, args.model
        self.settings = options.given_settings(args)
        self.think = args.think
        self.tools = read_tools(args.tools) if args.tools else []
        self.interrupted = False
        self.load_model(self.model)
        if args.state:
            self.chat.load(args.state)
        print(HELP, flush=True)

    def label(self, role: str) -> str:
        """What stands before the lines of ``user`` or ``assistant``."""
        name = self.chat.engine.template.roles[role]
        return f"{escaped(name)}: " if name else ""

    def handle(self, line: str) -> bool:
        """Run a command or answer a message; whether to go on."""
        word, argument = (*line.split(maxsplit=1), "", "")[:2]
        with self._deferred_interrupt():
            try:
                if name := command_of(word):
                    if name == "exit":
                        return False
                    self.command(name, argument.strip())
                elif word:
                    self.answer(self.chat.send(line.replace("//", "/", 1) if word.startswith("//") else line))
            except UserError as error:
                say_error(str(error))
            except KeyboardInterrupt:
                print("Stopped before the whole message was read; it counts as never sent.", file=sys.stderr)
            except Exception as error:  # the conversation goes on
                say_error(sentence(error))
        return True

    def answer(self, pieces: Generator[str]) -> None:
        """Print an answer as it comes, until it ends or Ctrl-C."""
        label = self.label("assistant")
        try:
            with closing(pieces):
                for piece in self.chat.displayed(pieces):
                    print(label + options.shown(piece), end="", flush=True)
                    label = ""
                    if self.interrupted:
                        break
        finally:
            print(flush=True)
        self._warn_of_length()
        self._name_calls()
        self._tell_of_mere_thoughts()

    def _warn_of_length(self) -> None:
        """Once a conversation."""
        length, trained = self.chat.length, self.chat.engine.config.context_length
        if length <= trained:
            self.warned = False
        elif not self.warned:
            self.warned = True
            print(
                f"The conversation has {length:,} tokens, more than the {trained:,} of the texts that the model was "
                "trained on; where it gets worse, /reset starts afresh.",
                file=sys.stderr,
            )

    def _tell_of_mere_thoughts(self) -> None:
        answer = self.chat.answer
        if answer is None or answer.text or not answer.reasoning:
            return
        count = len(answer.tokens)
        if answer.finish_reason == "length":
            print(f"The {count} tokens were thoughts alone; /set max_tokens={4 * count} allows more.", file=sys.stderr)
        elif answer.finish_reason == "stop":
            print("The answer has thoughts alone; /retry begins it once more.", file=sys.stderr)

    def _name_calls(self) -> None:
        if self.tools and (calls := self.chat.calls):
            said = ", ".join(f"{call.name}({_arguments(call.arguments)})" for call in calls)
            print(f"The model calls {escaped(said)}; /result TEXT tells it what that gave.", file=sys.stderr)

    def command(self, name: str, argument: str) -> None:
        """Raises UserError for what the command refuses."""
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "stats": lambda _: print(options.speed(self.chat.engine)),
            "retry": lambda _: self.answer(self.chat.retry()),
            "reset": self._reset,
            "reload": lambda path: self.load_model(_path(path) if path else self.model),
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "tools": self._tools,
            "call": self._call,
            "result": self._result,
        }
        commands[name](argument)
        sys.stdout.flush()

    def load_model(self, path: Path) -> None:
        """Begin a conversation with the artifact ``path``. Raises UserError, and keeps the model there was."""
        from ..artifact import CHAT_CONFIG, PARAMS
        from ..artifact.names import TENSOR_INDEX
        from ..engine.chat import Chat
        from ..engine.engine import Engine

        print("Loading model...", flush=True)
        engine = Engine(path, self.device, self._progress(), self.threads)
        print(f'Use MLC config: "{engine.artifact.path / PARAMS / CHAT_CONFIG}"')
        print(f'Use model weights: "{engine.artifact.path / PARAMS / TENSOR_INDEX}"')
        print(f'Use model library: "{engine.library.path}"')
        print("Loading finished\nRunning system prompts...", flush=True)
        if self.system is not None:
            engine.template = engine.template.model_copy(update={"system_message": self.system})
        self.chat = Chat(engine, engine.chat_params(**self.settings), self.think, self.tools)
        self.model, self.warned = path, False
        print("System prompts finished", flush=True)

    def _reset(self, _: str) -> None:
        self.chat.reset()
        self.warned = False
        print("RESET CHAT SUCCESS")

    def _set(self, argument: str) -> None:
        given = dict(map(_setting, filter(str.strip, argument.split(";"))))
        think = given.pop("think", self.think)
        settings = {**self.settings, **given}
        params = self.chat.engine.chat_params(**settings)
        self.chat.think = self.think = think
        self.chat.params, self.settings = params, settings
        shown = vars(params)
        if thinking := self.chat.engine.template.think:
            shown = shown | {"think": think or thinking.default}
        say("; ".join(f"{name}={_spelled(value)}" for name, value in shown.items()))

    def _save(self, argument: str) -> None:
        self.chat.save(_path(argument))
        say(f"Saved the conversation to {argument}")

    def _load(self, argument: str) -> None:
        self.chat.load(_path(argument))
        self.warned = False
        say(f"Go on from {argument}")

    def _tools(self, argument: str) -> None:
        from ..engine.tools import read_tools, tool_name

        if argument:
            tools = [] if argument == "none" else read_tools(_path(argument))
            before = self.chat.tools
            self.chat.tools = tools
            try:
                self.chat.reset()
            except BaseException:
                self.chat.tools = before
                raise
            self.tools, self.warned = tools, False
        names = ", ".join(map(tool_name, self.tools))
        say(f"The model may call {names}" if names else "The model is offered no functions")

    def _call(self, argument: str) -> None:
        if not argument:
            raise UserError("Give the message that a call is to answer.")
        self.answer(self.chat.send(argument, call=True))

    def _result(self, argument: str) -> None:
        if not argument:
            raise UserError("Give what the function gave, such as /result 30 degrees.")
        self.answer(self.chat.send_result(argument))

    def _progress(self) -> Callable[[int, int], None]:
        show = options.prompt_progress()

        def progress(read: int, total: int) -> None:
            stop = self.interrupted and read < total
            show(total if stop else read, total)
            if stop:
                raise KeyboardInterrupt

        return progress

    @contextmanager
    def _deferred_interrupt(self) -> Iterator[None]:
        """Ctrl-C sets ``interrupted``, which is looked at between pieces: an exception in the midst of a call could
        leave the state and the account of what it has read apart."""

        def interrupt(*_: Any) -> None:
            self.interrupted = True

        self.interrupted = False
        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def command_of(word: str) -> str | None:
    """The command that the first word of a line names; None where the line is a message, which may begin with a path.

    Raises UserError for another word of nothing but letters, which is a mistyped command rather than a path."""
    name = word[1:].rstrip(".,!?")
    if word[1:] in COMMANDS and word.startswith("/"):
        return word[1:]
    if not word.startswith("/") or not re.fullmatch("[A-Za-z]+", name):
        return None
    similar = difflib.get_close_matches(name.lower(), COMMANDS, 1)
    hint = f"did you mean /{similar[0]}? " if similar else ""
    word = shortened(word)
    raise UserError(f"Unknown command {word}; {hint}/help lists the commands, and /{word} sends {word} as text.")


def _lines(session: Session) -> Iterator[str]:
    """The user's lines, until end of file."""
    if sys.stdin is None:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in lines_in_utf8(sys.stdin.buffer, "Standard input"):
            yield line.decode("utf-8", "surrogateescape")
        return

    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    prompt = PromptSession(multiline=True, key_bindings=keys)
    while True:
        try:
            yield prompt.prompt(session.label("user") or "> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _setting(text: str) -> tuple[str, Any]:
    """One ``key=value`` of ``/set``."""
    name, separator, value = (part.strip() for part in text.partition("="))
    if name == "stop" and separator:
        return name, tuple(stop_strings.parse(stop) for stop in value.split(",") if stop)
    if name == "think" and separator:
        return name, None if value == "none" else value
    if name not in options.SAMPLING or not separator:
        keys = ", ".join((*options.SAMPLING, "stop", "think"))
        raise UserError(f"/set takes key=value with a key of {keys}, not {quoted(text)}.")
    if name == "seed" and value == "none":
        return name, None
    kind = options.SAMPLING[name][0]
    try:
        return name, kind(value)
    except ValueError:
        raise UserError(
            f"{name} must be {'a number' if kind is number else 'an integer'}, not {quoted(value)}."
        ) from None


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(stop_strings.spelled, value))
    return "none" if value is None else str(value)


def _arguments(arguments: Mapping[str, Any]) -> str:
    """Of a call, as one would write it."""
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _path(text: str) -> Path:
    if not text:
        raise UserError("Give the name of a file.")
    try:
        path = Path(text).expanduser()
        check_name(path)
    except (OSError, RuntimeError) as error:  # there is no such user, or the name is too long
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{text} is no path ({reason}); give another.") from None
    return path
