class UserError(Exception):
    """What a user gave cannot be used: one sentence on what was expected and found, and what to do next.

    The command line prints the message and exits with code 2; every other exception is a bug.
    """
