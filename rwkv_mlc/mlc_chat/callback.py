"""What a script is told of an answer while it is written: mlc_chat's ``progress_callback``."""

from __future__ import annotations

from queue import Queue


class DeltaCallback:
    """Told the whole message again and again, it hands on what is new of it; subclasses say where that goes.

    ``callback_interval`` is how many pieces of text come between two calls."""

    callback_interval = 2

    def __init__(self) -> None:
        self.curr_message = ""

    def __call__(self, message: str = "", stopped: bool = False) -> None:
        """Take the message as it is now, or, ``stopped``, note that it has ended."""
        if stopped:
            self.stopped_callback()
            self.curr_message = ""
            return
        delta = message.removeprefix(self.curr_message)
        self.curr_message = message
        self.delta_callback(delta)

    def delta_callback(self, delta_message: str) -> None:
        """Take what is new of the message; it may be empty."""
        raise NotImplementedError

    def stopped_callback(self) -> None:
        """The message has ended; to be overridden where that matters."""


class StreamToStdout(DeltaCallback):
    """Prints the message as it comes, and a line end after it."""

    def __init__(self, callback_interval: int = 2):
        super().__init__()
        self.callback_interval = callback_interval

    def delta_callback(self, delta_message: str) -> None:
        print(delta_message, end="", flush=True)

    def stopped_callback(self) -> None:
        print()


class StreamIterator(DeltaCallback):
    """Iterating gives the pieces of a message that another thread generates, and ends with the message.

    ``timeout`` is how many seconds to wait for a piece before ``queue.Empty`` is raised; None waits as long as it
    takes."""

    def __init__(self, callback_interval: int = 2, timeout: float | None = None):
        super().__init__()
        self.delta_messages: Queue[str | None] = Queue()
        self.callback_interval = callback_interval
        self.timeout = timeout

    def delta_callback(self, delta_message: str) -> None:
        if delta_message:
            self.delta_messages.put(delta_message, timeout=self.timeout)

    def stopped_callback(self) -> None:
        self.delta_messages.put(None, timeout=self.timeout)

    def __iter__(self) -> StreamIterator:
        return self

    def __next__(self) -> str:
        piece = self.delta_messages.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
