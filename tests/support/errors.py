"""What every error message of the model layer must be."""


def one_line(error: BaseException) -> str:
    """The message, after checking that it is one line with something in it."""
    message = str(error)
    assert message
    assert "\n" not in message
    return message
