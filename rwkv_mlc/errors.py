"""The exception for what a user can mend."""

from .escaping import with_short_words

NO_MEMORY = "There is not enough memory for this; free some, or raise the limit (ulimit -v)."


class UserError(Exception):
    """What a user gave cannot be used: one sentence on what was expected and found, and what to do next.

    The command line prints the message and exits with code 2; every other exception is a bug. Words of the message that are
    longer than a file's name, such as a number of 4,000 digits that it quotes, are shortened.
    """

    def __init__(self, message: str):
        super().__init__(with_short_words(message))
