"""CheckpointError, and how other libraries' errors become one line of it."""

import contextlib
from pathlib import Path

from model.errors import UserError

LFS_POINTER = b"version https://git-lfs"


class CheckpointError(UserError, ValueError):
    """A source that cannot be read; the message is one line that names the file and what is wrong."""


def reason(error: Exception) -> str:
    """An error in one short line; its type too where the text alone says little."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def way_out(file: Path) -> str:
    """The advice for a file that is damaged."""
    return pointer_hint(file) or "fetch it again"


def pointer_hint(file: Path) -> str | None:
    """A line about the text that `git clone` without git-lfs leaves in a file's place; None for other files."""
    with contextlib.suppress(OSError), file.open("rb") as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            return "it is a git-lfs pointer, not the file; run `git lfs pull` in its repository"
    return None
