"""API keys: who may call, and under which name.

Separate from the middleware that asks, because reading keys and comparing them is where a key could leak: only digests
are kept, and no message or repr repeats what was given.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import UserError
from service.settings import Settings

KEYS_SETTING, FILE_SETTING = "ATTEND_API_KEYS", "ATTEND_API_KEYS_FILE"
NAME = re.compile(r"[a-z0-9_-]{1,64}")
KEY = re.compile(r"[!-~]+")  # printable ASCII without spaces
MIN_KEY_CHARACTERS = 16
SCHEME = b"bearer"

Entry = tuple[str, str]  # where it stands, for messages; `KEY` or `NAME:KEY`


class KeyRingError(UserError, ValueError):
    """Keys that cannot be used. One line for the operator, which says where and never what."""


@dataclass(frozen=True)
class KeyRing:
    """The keys that are let in, as digests by name. Without any, the service is open to everybody."""

    _digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, keys: str | None, file: Path | None) -> "KeyRing":
        """Read both settings; what is `None` is not set.

        keys: entries with commas between them. file: one entry a line, `#` begins a line of comment. An entry is `KEY`
        or `NAME:KEY`; keys without a name are called key-1, key-2, … in the order in which they stand.

        A setting that is set and holds no key is refused: it would open a service that was meant to be closed.

        Raises:
            KeyRingError: an unreadable file, no keys, a bad or repeated name, a bad or repeated key.
        """
        entries: list[Entry] = []
        if keys is not None:
            entries += _entries(keys.split(","), KEYS_SETTING, "entry")
        if file is not None:
            lines = ("" if line.lstrip().startswith("#") else line for line in _read(file).split("\n"))
            entries += _entries(lines, f"{FILE_SETTING} {file}", "line")
        return cls(_digests_by_name(entries))

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def find(self, authorization_header: bytes | None) -> str | None:
        """Name of the key in `Bearer KEY`; `None` for any other bytes.

        Every key is compared, in constant time each, so that the time taken tells nothing about them.
        """
        scheme, _, key = (authorization_header or b"").strip().partition(b" ")
        if scheme.lower() != SCHEME:
            return None
        digest = _digest(key.strip())
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _entries(texts: Iterable[str], source: str, unit: str) -> list[Entry]:
    """What is not blank, with its place.

    Raises:
        KeyRingError: everything is blank.
    """
    places = ((f"{source}, {unit} {number}", text.strip()) for number, text in enumerate(texts, 1))
    entries = [(place, text) for place, text in places if text]
    if not entries:
        raise KeyRingError(f"{source} is set but holds no key; add a key, or unset it to serve everybody")
    return entries


def _read(file: Path) -> str:
    """The file's text. Bytes that are no UTF-8 become a character that no key may have."""
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise KeyRingError(f"{FILE_SETTING} {file} cannot be read: {error.strerror}") from error


def _digests_by_name(entries: Iterable[Entry]) -> dict[str, bytes]:
    """Check each entry, and each against those before it.

    Raises:
        KeyRingError: naming the entry by its place only, as a misplaced colon could make a name of a key.
    """
    place_of_name: dict[str, str] = {}
    place_of_digest: dict[bytes, str] = {}
    digests: dict[str, bytes] = {}
    num_unnamed = 0
    for place, text in entries:
        name, key = _split(place, text)
        if name is None:
            num_unnamed += 1
            name = f"key-{num_unnamed}"
        digest = _digest(key.encode("ascii"))
        if name in place_of_name:
            raise KeyRingError(f"{place}: its name is taken by {place_of_name[name]}; give each key a name of its own")
        if digest in place_of_digest:
            raise KeyRingError(f"{place}: its key is that of {place_of_digest[digest]}; remove one of them")
        place_of_name[name] = place_of_digest[digest] = place
        digests[name] = digest
    return digests


def _split(place: str, text: str) -> tuple[str | None, str]:
    """Name, if one is given, and key.

    Raises:
        KeyRingError: a name or key that is not allowed.
    """
    head, colon, tail = text.partition(":")
    name, key = (head, tail) if colon else (None, text)
    if name is not None and not NAME.fullmatch(name):
        raise KeyRingError(
            f"{place}: the name before the colon must be 1 to 64 characters of a-z, 0-9, _ and -; "
            "a key with a colon in it needs a name"
        )
    if len(key) < MIN_KEY_CHARACTERS:
        raise KeyRingError(f"{place}: the key has {len(key)} characters; it needs at least {MIN_KEY_CHARACTERS}")
    if not KEY.fullmatch(key):
        raise KeyRingError(f"{place}: the key has a space or a character that is not printable ASCII")
    return name, key


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(settings: Settings) -> KeyRing:
    """The keys that the settings name.

    Raises:
        KeyRingError: they cannot be used.
    """
    keys = settings.api_keys.get_secret_value() if settings.api_keys is not None else None
    return KeyRing.load(keys, settings.api_keys_file)
