"""Where an answer ends: the end tokens that the checkpoint's files name, and the one that its chat template uses.

Separate from reading, because the template must be run to find out. A model ends its turn as it was taught to, by the
token that the template writes behind an assistant's text; where no file names it, chats would never end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as FastTokenizer

from model.chat import ChatTemplate, ChatTemplateError
from model.config import UnsupportedModelError

QUESTION, ANSWER = "QUESTIONTEXT", "ANSWERTEXT"
CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (  # the first in which the template ends a turn decides
    (("user", QUESTION), ("assistant", ANSWER)),
    (("system", "S"), ("user", QUESTION), ("assistant", ANSWER)),
)
FOLLOWED = (("user", QUESTION), ("assistant", ANSWER), ("user", "U"))  # some end only turns that another follows


@dataclass(frozen=True)
class Ends:
    """End token ids, and lines about those that were added or could not be used."""

    token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speech:
    """What an answer is written with. vocab_size: ids below it have an embedding."""

    tokenizer: FastTokenizer
    vocab_size: int
    chat_template: str | None
    special_tokens: Mapping[str, str]
    bos_token_id: int | None = None


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
    turn_end = _turn_end(speech)
    if turn_end is not None and turn_end not in ids:
        spelling = speech.tokenizer.id_to_token(turn_end)
        notes.append(
            f"the chat template ends a turn with {spelling!r} ({turn_end}), which no file calls an end; it is one now"
        )
        ids.append(turn_end)
    if not ids and speech.chat_template is not None:
        raise UnsupportedModelError(
            "the checkpoint has a chat template and no end token, so its answers would never end; name one as "
            "eos_token_id in generation_config.json"
        )
    if not ids:
        notes.append("the checkpoint names no end token: answers end at max_tokens or a stop string")
    return Ends(tuple(dict.fromkeys(ids)), tuple(notes))


def _turn_end(speech: Speech) -> int | None:
    """The special token that the template writes behind an assistant's text, blanks between them aside."""
    if speech.chat_template is None:
        return None
    try:
        template = ChatTemplate(speech.chat_template, speech.special_tokens)
    except ChatTemplateError:
        return None  # whoever checks the template says so
    named_bos = speech.tokenizer.token_to_id(speech.special_tokens.get("bos_token", ""))
    for conversation in (*CONVERSATIONS, FOLLOWED):
        try:
            rendered = template.render(
                [{"role": role, "content": content} for role, content in conversation], add_generation_prompt=False
            )
        except ChatTemplateError:  # it wants other roles
            continue
        _refuse_strange_tokens(rendered, speech)
        found = _first_special(rendered.rpartition(ANSWER)[2], speech) if ANSWER in rendered else None
        opener = _last_special(rendered.partition(QUESTION)[0], speech) if conversation is FOLLOWED else None
        if found not in (None, speech.bos_token_id, named_bos, opener):
            return found
    return None


def _refuse_strange_tokens(rendered: str, speech: Speech) -> None:
    """Refuse a template that writes tokens which the model has no embedding for: no chat could be computed."""
    ids = speech.tokenizer.encode(rendered, add_special_tokens=False).ids
    strange = next((token_id for token_id in ids if token_id >= speech.vocab_size), None)
    if strange is not None:
        raise UnsupportedModelError(
            f"the chat template writes {speech.tokenizer.id_to_token(strange)!r} ({strange}), but the model's "
            f"vocabulary has {speech.vocab_size} tokens; the tokenizer and the weights must be of one model"
        )


def _first_special(text: str, speech: Speech) -> int | None:
    """The added token that a text begins with, blanks aside; None if it begins with anything else."""
    added = speech.tokenizer.get_added_tokens_decoder()
    for token_id in speech.tokenizer.encode(text, add_special_tokens=False).ids:
        token = added.get(token_id)
        shown = speech.tokenizer.decode([token_id]) if token is None else token.content
        if shown.strip():
            return token_id if token is not None and token_id < speech.vocab_size else None
    return None


def _last_special(text: str, speech: Speech) -> int | None:
    """The last added token of a text: before a user's words it is what opens a turn."""
    added = speech.tokenizer.get_added_tokens_decoder()
    ids = speech.tokenizer.encode(text, add_special_tokens=False).ids
    return next((token_id for token_id in reversed(ids) if token_id in added and added[token_id].content.strip()), None)
