"""CheckpointError, and how other libraries' errors become one line of it."""


class CheckpointError(ValueError):
    """A source that cannot be read; the message is one line that names the file and what is wrong."""


def reason(error: Exception) -> str:
    """An error in one short line; its type too where the text alone says little."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
