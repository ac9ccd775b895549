"""A parser of arguments that knows what a mistyped word is meant to be, which argparse does from Python 3.14 on, and only of
commands."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from ..escaping import shortened, with_short_words

USAGE = 2  # the exit code
ALIKE = 0.7  # ratio of difflib's
NUMBER = re.compile(r"-\.?\d")


class Parser(argparse.ArgumentParser):
    """Flags are written in full. ``former_flags`` says of flags that there were elsewhere what to do in their place.
    Its sentences are as short as those of ``UserError``, whatever they quote."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.commands: Collection[str] = ()
        self.former_flags: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        super().error(with_short_words(message))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Exits for a flag and for a command that there is not, before it asks for what is required."""
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        if self.commands and not words:
            self.print_help(sys.stderr)
            self.exit(USAGE)
        before = ""
        for word in takewhile(lambda word: word != "--", words):
            if self.commands and not word.startswith("-"):
                if word not in self.commands:
                    self.error(
                        f"there is no command {shortened(word) or repr(word)}{_suggestion(word, self.commands, 'commands')}"
                    )
                break
            if self._is_unknown(flag := word.partition("=")[0]):
                self.error(f"there is no {shortened(flag)}{self._hint(flag, word, before)}")
            before = word
        return super().parse_known_args(words, namespace)

    def _is_unknown(self, flag: str) -> bool:
        """Whether argparse would take a word for a flag, and has none of that name; ``-oFILE`` is ``-o FILE``."""
        if not flag.startswith("-") or flag == "-" or " " in flag or NUMBER.match(flag):
            return False
        flags = self._option_string_actions
        return flag not in flags and (flag.startswith("--") or flag[:2] not in flags or f"-{flag}" in flags)

    def _hint(self, flag: str, word: str, before: str) -> str:
        if flag in self.former_flags:
            return f": {self.former_flags[flag]}"
        flags, meant = self._option_string_actions, f"--{flag.lstrip('-').replace('_', '-')}"
        if hint := _suggestion(meant, [name for name in flags if name.startswith("--")]):
            return hint
        if self.commands:
            return f"; the flags of a command follow it, and {self.prog} COMMAND --help lists them"
        if before in flags and flags[before].nargs != 0:
            return f"; a value that begins with - is written {before}={shortened(word)}"
        return f"; {self.prog} --help lists the flags"


def _suggestion(word: str, known: Collection[str], what: str = "") -> str:
    """What is likely meant: what begins so, or else what resembles it; the list where it is asked for and nothing does."""
    begun = [name for name in known if word and name.startswith(word)]
    near = [word] if word in known else begun or difflib.get_close_matches(word, known, 1, ALIKE)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; the {what} are {', '.join(known)}" if what else ""
