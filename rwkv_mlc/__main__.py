import sys


def start() -> int:
    """The command line; Ctrl-C is an exit code while it is still being loaded, too."""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(start())
