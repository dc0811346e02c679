"""Fake models that say what a test wants to hear."""

from collections.abc import Callable, Sequence

from tests.support.fake_decoder import END_ID
from tests.support.requests import TOKENIZER

ANSWER_BEGIN = "<assistant>"


def says(text: str, begin: str = ANSWER_BEGIN) -> Callable[[Sequence[int]], int]:
    """A `next_token` that spells a text behind the last `begin`, and then ends."""
    begin_ids, text_ids = TOKENIZER.encode(begin), TOKENIZER.encode(text)

    def next_token(token_ids: Sequence[int]) -> int:
        ids = list(token_ids)
        starts = range(len(ids) - len(begin_ids), -1, -1)
        at = next((start for start in starts if ids[start : start + len(begin_ids)] == begin_ids), 0)
        num_said = len(ids) - at - len(begin_ids)
        return text_ids[num_said] if 0 <= num_said < len(text_ids) else END_ID

    return next_token
