from __future__ import annotations

import sys


def start(arguments: list[str] | None = None, build_program: str | None = None) -> int:
    """The command line, or other arguments, of a program that may be ``build`` alone and be called ``build_program``.

    Ctrl-C is an exit code while it is still being loaded, and when it is done, too, and so is too little memory."""
    try:
        from .cli.main import main

        return main(arguments, build_program)
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        from .errors import NO_MEMORY

        print(f"error: {NO_MEMORY}", file=sys.stderr)
        return 2
    finally:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what Python does at its end is no business of the user's


if __name__ == "__main__":
    sys.exit(start())
