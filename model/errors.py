"""UserError: the base of every error that a user or an operator can cause.

Separate, and importing nothing, so that the command line can catch all of them without loading what raises them.
"""


class UserError(Exception):
    """The message is one line: what was given, what is allowed, what to do. Commands print it and exit with 1."""
