"""The special tokens with which a chat template ends an assistant's turn, found by rendering conversations.

Separate from ends.py, which settles them with what the files name. Probes are found in whatever case a template writes
them; contents are text, as serving sends them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.chat import ChatTemplate, ChatTemplateError
from model.config import UnsupportedModelError
from model.tool_messages import PROBE_TOOLS

QUESTION, ANSWER, NEXT = "questiontext", "answertext", "nexttext"
CALL = {"id": "call_00000", "name": "look_up", "arguments": {"word": ANSWER}}
SYSTEM = ("system", "systemtext")
ASKED, ANSWERED, FOLLOWED = ("user", QUESTION), ("assistant", ANSWER), ("user", NEXT)
CONVERSATIONS = (  # the first in which the template ends a turn decides; some end only turns that another one follows
    (ASKED, ANSWERED),
    (SYSTEM, ASKED, ANSWERED),
    (ASKED, ANSWERED, FOLLOWED),
)


@dataclass(frozen=True)
class Speech:
    """The means that an answer is written with. vocab_size: ids below it have an embedding."""

    tokenizer: FastTokenizer
    vocab_size: int
    chat_template: str | None
    special_tokens: Mapping[str, str]
    bos_token_id: int | None = None

    def added(self, text: str) -> Iterator[tuple[int, bool, bool]]:
        """Ids of the added tokens in a text: (id, whether it is special, whether only blanks stand before it)."""
        known = self.tokenizer.get_added_tokens_decoder()
        only_blanks = True
        for token_id in self.tokenizer.encode(text, add_special_tokens=False).ids:
            token = known.get(token_id)
            shown = self.tokenizer.decode([token_id]) if token is None else token.content
            if token is not None and shown.strip() and token_id < self.vocab_size:
                yield token_id, token.special, only_blanks
            only_blanks = only_blanks and not shown.strip()

    def spelling(self, token_id: int) -> str:
        """A token as templates write it."""
        return self.tokenizer.id_to_token(token_id) or ""

    def is_start(self, token_id: int) -> bool:
        """Whether it begins a text."""
        named = self.tokenizer.token_to_id(self.special_tokens.get("bos_token", ""))
        return token_id in (self.bos_token_id, named)


def turn_ends(speech: Speech) -> tuple[int | None, int | None]:
    """The tokens that end an assistant's text and a call of a tool; None where the template writes none.

    Raises:
        UnsupportedModelError: the template writes tokens that the model lacks.
    """
    try:
        template = ChatTemplate(speech.chat_template or "", speech.special_tokens)
    except ChatTemplateError:
        return None, None  # whoever checks the template says so
    of_text = _end_of_text(template, speech)
    return of_text, _end_of_call(template, speech, of_text)


def _end_of_text(template: ChatTemplate, speech: Speech) -> int | None:
    for conversation in CONVERSATIONS:
        head, ending = _around_answer(_rendered(template, speech, _messages(conversation)), speech)
        found = _first_end(head, ending, speech)
        if found is not None:
            return found
    return None


def _end_of_call(template: ChatTemplate, speech: Speech, of_text: int | None) -> int | None:
    """A text's end or the last special token behind a call: a closing tag of calls may stand before it."""
    messages = [*_messages((ASKED,)), {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    rendered = _rendered(template, speech, messages, PROBE_TOOLS)
    if ANSWER not in rendered.lower():
        return None
    tail = rendered[rendered.lower().rindex(ANSWER) + len(ANSWER) :]
    special = [token_id for token_id, is_special, _ in speech.added(tail) if is_special]
    if of_text in special:
        return of_text
    if not special or speech.is_start(special[-1]):
        return None
    spelling = speech.spelling(special[-1])
    closes_calls = "tool" in spelling.lower()
    return None if closes_calls or tail.rpartition(spelling)[2].strip() else special[-1]


def _messages(conversation: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in conversation]


def _rendered(
    template: ChatTemplate,
    speech: Speech,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The conversation as the template writes it; nothing if it wants other roles or contents."""
    try:
        rendered = template.render(messages, tools=tools, add_generation_prompt=False)
    except ChatTemplateError:
        return ""
    _refuse_strange_tokens(rendered, speech)
    return rendered


def _around_answer(rendered: str, speech: Speech) -> tuple[str, str]:
    """The text before the question, and that behind the answer, up to where the next turn begins; "" if unseen."""
    lowered = rendered.lower()
    if ANSWER not in lowered or len(lowered) != len(rendered):
        return "", ""
    head = rendered[: max(lowered.find(QUESTION), 0)]
    at = lowered.rindex(ANSWER) + len(ANSWER)
    if NEXT not in lowered[at:]:
        return head, rendered[at:]
    return head, _without_opening(rendered[at : lowered.index(NEXT, at)], head, speech)


def _without_opening(between: str, head: str, speech: Speech) -> str:
    """The text between two turns, less the opening of the second, which the first user's turn has as well.

    Where all of it stands before the first question, too, a turn of the template's own ended there: then the last token
    opens.
    """
    same = 0
    while same < min(len(between), len(head)) and between[-1 - same] == head[-1 - same]:
        same += 1
    if same < len(between):
        return between[: len(between) - same]
    last = next(reversed([token_id for token_id, _, _ in speech.added(between)]), None)
    return "" if last is None else between.rpartition(speech.spelling(last))[0]


def _first_end(head: str, ending: str, speech: Speech) -> int | None:
    """The first special token of what ends a turn, or the added one that it begins with; no start, no opening."""
    added = list(speech.added(ending))
    special = [token_id for token_id, is_special, _ in added if is_special]
    direct = [token_id for token_id, _, is_direct in added if is_direct]
    found = next(iter((*special, *direct)), None)
    if found is None or speech.is_start(found):
        return None
    opens = found in [token_id for token_id, _, _ in speech.added(head)]
    words_behind = ending.partition(speech.spelling(found))[2].strip()
    return None if opens and words_behind else found


def _refuse_strange_tokens(rendered: str, speech: Speech) -> None:
    """Refuse a template that writes tokens which the model has no embedding for: no chat could be computed."""
    ids = speech.tokenizer.encode(rendered, add_special_tokens=False).ids
    strange = next((token_id for token_id in ids if token_id >= speech.vocab_size), None)
    if strange is not None:
        raise UnsupportedModelError(
            f"the chat template writes {speech.tokenizer.id_to_token(strange)!r} ({strange}), but the model's "
            f"vocabulary has {speech.vocab_size} tokens; the tokenizer and the weights must be of one model"
        )
