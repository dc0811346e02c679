"""Stop strings are found wherever they fall and never shown, not even in part."""

from hypothesis import given
from hypothesis import strategies as st

from service.engine.stop_strings import StopStrings

TEXTS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """Push pieces until a stop string is met; what was shown, flushed at the end, and whether one was met."""
    matcher = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, met = matcher.push(piece)
        shown.append(text)
        if met is not None:
            return shown, True
    return [*shown, matcher.flush()], False


@given(TEXTS, STOPS)
def test_text_ends_before_the_earliest_stop_string_however_it_is_cut(text: str, stops: list[str]) -> None:
    """Character by character gives what a search of the whole text gives, up to the character that completes it."""
    shown, stopped = feed(stops, list(text))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if ends:
        seen = text[: min(ends)]
        assert "".join(shown) == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    else:
        assert "".join(shown) == text


@given(TEXTS, STOPS)
def test_nothing_shown_is_ever_taken_back(text: str, stops: list[str]) -> None:
    """No stop string appears in the shown text, even across pieces."""
    shown, _ = feed(stops, list(text))
    assert not any(stop in "".join(shown) for stop in stops)


def test_without_stop_strings_text_passes_at_once() -> None:
    """Requests that use none pay nothing and wait for nothing."""
    assert StopStrings(()).push("abc") == ("abc", None)


def test_the_start_of_a_stop_string_is_held_until_it_is_decided() -> None:
    """`EN` may become `END`, so it waits; `ENX` shows it."""
    matcher = StopStrings(["END"])
    assert matcher.push("text EN") == ("text ", None)
    assert matcher.push("X") == ("ENX", None)


def test_a_stop_string_is_shown_only_where_it_is_wanted() -> None:
    """The one that was met is named; with `is_included` the text ends with it."""
    assert StopStrings(["b", "bc"]).push("abc") == ("a", "b")
    assert StopStrings(["xx", "bc"], is_included=True).push("abcd") == ("abc", "bc")
