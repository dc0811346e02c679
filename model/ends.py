"""The ends of answers: the end tokens that the checkpoint's files name, and the one that its chat template uses.

Separate from reading, because the template must be run to find out. A model ends its turn as it was taught to, by the
token that the template writes behind an assistant's text; where no file names it, chats would never end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.config import UnsupportedModelError
from model.turn_ends import Speech, turn_ends


@dataclass(frozen=True)
class Ends:
    """End token ids, and lines about those that were added or could not be used."""

    token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


def settle_ends(stated: Sequence[int], eos_texts: Mapping[str, str], speech: Speech) -> Ends:
    """Every end: the stated ids, the tokens that the tokenizer's files call eos, and the chat template's end of turn.

    eos_texts: by the name of the file that names it.

    Raises:
        UnsupportedModelError: the model chats and has no end at all, or its template writes tokens that it lacks.
    """
    ids, notes = list(stated), []
    for where, text in eos_texts.items():
        token_id = speech.tokenizer.token_to_id(text)
        if token_id is None or token_id >= speech.vocab_size:
            notes.append(
                f"{where}'s eos_token {text!r} is not in the vocabulary of {speech.vocab_size}; it ends nothing"
            )
        else:
            ids.append(token_id)
    if speech.chat_template is not None:
        added, more_notes = _ends_of_turns(speech, ids)
        ids += added
        notes += more_notes
    if not ids and speech.chat_template is not None:
        raise UnsupportedModelError(
            "the checkpoint has a chat template and no end token, so its answers would never end; name one as "
            "eos_token_id in generation_config.json"
        )
    if not ids:
        notes.append("the checkpoint names no end token: answers end at max_tokens or a stop string")
    return Ends(tuple(dict.fromkeys(ids)), tuple(notes))


def _ends_of_turns(speech: Speech, known: Sequence[int]) -> tuple[list[int], list[str]]:
    """The chat template's ends that no file names, and lines about them."""
    found = dict(zip(("a turn", "a call"), turn_ends(speech), strict=True))
    added: list[int] = []
    notes: list[str] = []
    if found["a turn"] is None:
        notes.append("no end of turn was found in the chat template; answers end as the checkpoint's files say")
    for what, token_id in found.items():
        if token_id is not None and token_id not in (*known, *added):
            spelling = speech.spelling(token_id)
            added.append(token_id)
            notes.append(
                f"the chat template ends {what} with {spelling!r} ({token_id}), which no file calls an end; it is one "
                "now"
            )
    return added, notes
