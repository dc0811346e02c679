"""Content codings of request bodies: gzip and deflate, undone as the bytes come and never beyond a limit.

Separate from `request_body.py` because it is the part that strangers can make expensive: a small body may unfold to
gigabytes, so what is unfolded is bounded at each call and not checked afterwards.
"""

import zlib
from collections.abc import Iterable
from typing import Protocol

from service.api.errors import ApiError, body_too_large

SUPPORTED = "gzip, deflate, identity"
ALIASES = {"x-gzip": "gzip"}
MAX_MEMBERS = 1000  # of one gzip body: each costs time, however little it holds
GZIP, ZLIB, RAW_DEFLATE = 31, 15, -15  # zlib's `wbits`
DEFLATE_METHOD = 8  # low half of the first byte of zlib's format; some clients send deflate without that frame


class BodyDecoder(Protocol):
    """Undoes a coding piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the body itself.

        Raises:
            ApiError: 413 for more than is allowed, 400 for what is not of this coding.
        """

    def finish(self) -> None:
        """Say that nothing follows.

        Raises:
            ApiError: 400, it ended too early.
        """


def decoder_for(codings: Iterable[str], max_bytes: int) -> BodyDecoder:
    """The decoder of a body. codings: values of its `Content-Encoding` headers. max_bytes: of the body decoded.

    Raises:
        ApiError: 415.
    """
    given = ", ".join(codings).lower()
    named = [ALIASES.get(name, name) for part in given.split(",") if (name := part.strip())]
    coded = [name for name in named if name != "identity"]
    if not coded:
        return Identity(max_bytes)
    if coded in (["gzip"], ["deflate"]):
        return Inflater(coded[0], max_bytes)
    message = f"a body with Content-Encoding {given[:100]!r} cannot be read; send it in one of {SUPPORTED}"
    raise ApiError(415, message, code="unsupported_encoding", headers={"Accept-Encoding": SUPPORTED})


class Identity:
    """Counts bytes, and changes none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise body_too_large(self._max_bytes)
        return data

    def finish(self) -> None:
        """See `BodyDecoder`."""


class Inflater:
    """Undoes gzip, of one member or several, or deflate. Holds at most one byte more than is allowed."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        """coding: `gzip` or `deflate`."""
        self._coding = coding
        self._max_bytes = max_bytes
        self._room = max_bytes
        self._num_coded = 0
        self._num_members = 0
        self._stream = zlib.decompressobj(GZIP)
        self._is_between = True  # members: before the first, or behind one that is complete

    def feed(self, data: bytes) -> bytes:
        """See `BodyDecoder`."""
        self._num_coded += len(data)
        if self._num_coded > self._max_bytes:
            raise body_too_large(self._max_bytes)
        pieces: list[bytes] = []
        while data:
            if self._is_between:
                data = data.lstrip(b"\0") if self._num_members else data  # padding, as gzip itself takes it
                if not data:
                    break
                self._begin(data[0])
            pieces.append(self._inflate(data))
            data = self._stream.unused_data
            self._is_between = self._stream.eof
        return b"".join(pieces)

    def finish(self) -> None:
        """See `BodyDecoder`."""
        if self._num_coded and not self._is_between:
            raise self._broken("it ends too early")

    def _begin(self, first_byte: int) -> None:
        """Prepare for the next member."""
        if self._num_members and (self._coding != "gzip" or self._num_members == MAX_MEMBERS):
            raise self._broken("something follows its end" if self._coding != "gzip" else "it has too many members")
        framed = ZLIB if first_byte & 0x0F == DEFLATE_METHOD else RAW_DEFLATE
        self._stream = zlib.decompressobj(GZIP if self._coding == "gzip" else framed)
        self._num_members += 1

    def _inflate(self, data: bytes) -> bytes:
        try:
            piece = self._stream.decompress(data, self._room + 1)
        except zlib.error as error:
            raise self._broken("its bytes are damaged") from error
        self._room -= len(piece)
        if self._room < 0:
            raise body_too_large(self._max_bytes)
        return piece

    def _broken(self, reason: str) -> ApiError:
        message = f"the request body is sent with Content-Encoding {self._coding} and is not valid {self._coding}"
        return ApiError(400, f"{message}: {reason}", code="invalid_encoding")
