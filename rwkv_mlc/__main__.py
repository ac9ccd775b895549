import sys


def start() -> int:
    """The command line; Ctrl-C is an exit code while it is still being loaded, and when it is done, too."""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what Python does at its end is no business of the user's


if __name__ == "__main__":
    sys.exit(start())
