"""API keys: what is accepted, who is found, and that nothing ever repeats a key."""

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.keys import KeyRing, KeyRingError

ALICE, BOB, CAROL = "alice-0123456789abcdef", "bob-0123456789abcdef", "carol:0123456789abcdef"
RING = KeyRing.load(f"alice:{ALICE},{BOB}", None)


def bearer(key: str) -> bytes:
    """The header that carries a key."""
    return f"Bearer {key}".encode()


def written(folder: Path, text: str) -> Path:
    """A file of keys."""
    path = folder / "keys"
    path.write_bytes(text.encode())
    return path


def test_without_keys_the_ring_is_open_and_knows_nobody() -> None:
    """Neither setting given."""
    ring = KeyRing.load(None, None)
    assert ring.is_open
    assert ring.find(bearer(ALICE)) is None


def test_a_key_is_found_by_its_name_or_its_number() -> None:
    """Keys without a name are counted, named ones are not among them."""
    ring = KeyRing.load(f" {BOB} , alice:{ALICE},{BOB}2,", None)
    assert not ring.is_open
    assert [ring.find(bearer(key)) for key in (ALICE, BOB, f"{BOB}2")] == ["alice", "key-1", "key-2"]


def test_a_file_has_one_entry_a_line_with_comments_and_blank_lines(tmp_path: Path) -> None:
    """Also with a byte order mark and Windows line ends; a named key may hold a colon, a comma or a `#`."""
    file = written(tmp_path, f"\ufeff# who\r\n\r\nalice:{ALICE}\r\n  # x:y\r\ncarol:{CAROL},#\r\n")
    ring = KeyRing.load(None, file)
    assert ring.find(bearer(ALICE)) == "alice"
    assert ring.find(bearer(f"{CAROL},#")) == "carol"


def test_both_settings_together_make_one_ring(tmp_path: Path) -> None:
    """Numbers of unnamed keys go on from one to the other."""
    ring = KeyRing.load(ALICE, written(tmp_path, BOB))
    assert [ring.find(bearer(key)) for key in (ALICE, BOB)] == ["key-1", "key-2"]


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  ", b" Bearer "])
def test_the_scheme_has_no_case_and_spaces_do_not_count(scheme: bytes) -> None:
    """As RFC 9110 wants it."""
    assert RING.find(scheme + ALICE.encode()) == "alice"
    assert RING.find(scheme + ALICE.encode() + b" ") == "alice"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer" + ALICE.encode(),
        ALICE.encode(),
        b"Basic " + ALICE.encode(),
        b"Bearer alice:" + ALICE.encode(),
        b"Bearer alice",
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        bearer(f"{ALICE} {BOB}"),
        b"Bearer Bearer " + ALICE.encode(),
    ],
)
def test_anything_but_a_whole_key_is_nobody(header: bytes | None) -> None:
    """Parts of keys, names, other schemes, two keys."""
    assert RING.find(header) is None


@settings(deadline=None)
@given(st.binary() | st.binary().map(lambda key: b"Bearer " + key))
def test_arbitrary_bytes_are_nobody_and_raise_nothing(header: bytes) -> None:
    """Headers are the client's."""
    assert RING.find(header) is None


TOO_SHORT = "secret-of-carol"  # one character less than allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ATTEND_API_KEYS is set but holds no key"),
        (" , ", "ATTEND_API_KEYS is set but holds no key"),
        (f"{ALICE},{TOO_SHORT}", "entry 2: the key has 15 characters; it needs at least 16"),
        ("carol:", "entry 1: the key has 0 characters"),
        (f"{ALICE}, ,secret of carol, with spaces", "entry 3: the key has 15 characters"),
        ("secret of carol with spaces", "entry 1: the key has a space or a character that is not printable ASCII"),
        (f"carol: {ALICE}", "entry 1: the key has a space"),
        ("secret-of-carol-\u00e4\u00f6", "entry 1: the key has a space or a character that is not printable ASCII"),
        ("secret-of-carol-\x7f", "entry 1: the key has a space or a character that is not printable ASCII"),
        (f"Carol:{ALICE}", "entry 1: the name before the colon must be 1 to 64 characters of a-z, 0-9, _ and -"),
        (f":{ALICE}", "entry 1: the name before the colon"),
        (f"{'c' * 65}:{ALICE}", "entry 1: the name before the colon"),
        (f"carol:{ALICE},carol:{BOB}", "entry 2: its name is taken by ATTEND_API_KEYS, entry 1"),
        (f"{ALICE},key-1:{BOB}", "entry 2: its name is taken by ATTEND_API_KEYS, entry 1"),
        (f"key-1:{ALICE},{BOB}", "entry 2: its name is taken by ATTEND_API_KEYS, entry 1"),
        (f"{ALICE},carol:{ALICE}", "entry 2: its key is that of ATTEND_API_KEYS, entry 1"),
    ],
)
def test_a_bad_entry_is_named_by_its_place_and_never_shown(text: str, message: str) -> None:
    """One line that says which entry and which rule."""
    with pytest.raises(KeyRingError) as caught:
        KeyRing.load(text, None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for secret in (ALICE, BOB, "secret"):
        assert secret not in str(caught.value)


def test_a_bad_line_of_a_file_is_named_by_its_number(tmp_path: Path) -> None:
    """Comments and blank lines count, as they do in an editor."""
    file = written(tmp_path, f"# keys\n\n{ALICE}\n{TOO_SHORT}\n")
    with pytest.raises(
        KeyRingError, match=r"^ATTEND_API_KEYS_FILE .*keys, line 4: the key has 15 characters"
    ) as caught:
        KeyRing.load(None, file)
    assert TOO_SHORT not in str(caught.value)


def test_a_name_is_unique_across_both_settings(tmp_path: Path) -> None:
    """The message names both places."""
    with pytest.raises(KeyRingError, match=r"keys, line 1: its name is taken by ATTEND_API_KEYS, entry 1"):
        KeyRing.load(f"carol:{ALICE}", written(tmp_path, f"carol:{BOB}"))


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_without_keys_does_not_open_the_service(tmp_path: Path, text: str) -> None:
    """Also where the other setting has keys: the file was meant to have some."""
    file = written(tmp_path, text)
    for keys in (None, ALICE):
        with pytest.raises(KeyRingError, match="is set but holds no key"):
            KeyRing.load(keys, file)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    """Missing, a folder, or not text."""
    with pytest.raises(KeyRingError, match=r"missing cannot be read: No such file or directory"):
        KeyRing.load(None, tmp_path / "missing")
    with pytest.raises(KeyRingError, match=r"cannot be read: Is a directory"):
        KeyRing.load(None, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 16)
    with pytest.raises(KeyRingError, match=r"line 1: the key has a space or a character that is not printable"):
        KeyRing.load(None, tmp_path / "binary")


def test_a_ring_holds_no_key_that_could_leak() -> None:
    """Not in its repr, nor anywhere in its memory."""
    for ring in (RING, copy.copy(RING)):
        assert repr(ring) == "KeyRing()"
        assert ALICE.encode() not in pickle.dumps(ring)
