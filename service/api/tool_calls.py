"""ToolCallParser: finds function calls in an answer's text, piece by piece, as OpenAI clients read them.

Separate from the chat route because it is text matching and nothing else. The form is that which the constraint
enforces (`model/constraint`), so nothing here has to guess: only an answer that was cut can end inside a call, and of
such a call neither content nor arguments show the markup.
"""

import uuid
from enum import Enum, auto
from typing import Any

from model.constraint import TOOL_CALL_BEGIN, TOOL_CALL_END
from service.engine.request import TokenEvent

NAME_BEGIN = TOOL_CALL_BEGIN + '{"name": "'
NAME_END = '", "arguments": '
CALL_END = "}" + TOOL_CALL_END

Delta = dict[str, Any]


class _Part(Enum):
    """The part of an answer that the text belongs to."""

    CONTENT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    CALL_END = auto()


class ToolCallParser:
    """Feed text; get deltas with `content` or `tool_calls`."""

    def __init__(self, *, calls_follow_text: bool = True) -> None:
        """calls_follow_text: a call may come after other text; otherwise only at the answer's beginning."""
        self.num_calls = 0
        self._calls_follow_text = calls_follow_text
        self._has_content = False
        self._buffer = ""
        self._part = _Part.CONTENT
        self._arguments = _ObjectEnd()

    @property
    def is_called(self) -> bool:
        """Whether there are calls, and the arguments of all of them are complete."""
        return self.num_calls > 0 and not self.is_inside_arguments

    @property
    def is_inside_arguments(self) -> bool:
        """Whether the last call's arguments are incomplete."""
        return self._part is _Part.ARGUMENTS

    def read(self, event: TokenEvent) -> list[Delta]:
        """The deltas that an event adds; after the last one nothing is held back."""
        # Half a character, as a cut leaves it, would be no beginning of the arguments.
        deltas = self.push(event.text.rstrip("\ufffd") if event.is_cut else event.text)
        return deltas if event.finish_reason is None else deltas + self.flush(is_cut=event.is_cut)

    def push(self, text: str) -> list[Delta]:
        """What became certain with this text."""
        self._buffer += text
        deltas: list[Delta] = []
        part = None
        while self._buffer and part is not self._part:
            part = self._part
            deltas += self._take()
        return deltas

    def flush(self, *, is_cut: bool) -> list[Delta]:
        """The rest of the content. is_cut: the answer did not end by itself; a call begun is dropped."""
        rest, self._buffer = self._buffer, ""
        # What is still held back in content could have become a call: its mark, or newlines in front of it.
        return [] if is_cut or self._part is not _Part.CONTENT else self._content(rest)

    def _take(self) -> list[Delta]:
        match self._part:
            case _Part.CONTENT:
                return self._take_content()
            case _Part.NAME:
                return self._take_name()
            case _Part.ARGUMENTS:
                return self._take_arguments()
            case _Part.CALL_END:
                return self._take_call_end()

    def _take_content(self) -> list[Delta]:
        at = self._buffer.find(NAME_BEGIN)
        if self._has_content and not self._calls_follow_text:
            shown, self._buffer = self._buffer, ""
        elif at >= 0:
            shown, self._buffer = self._buffer[:at].rstrip("\n"), self._buffer[at + len(NAME_BEGIN) :]
            self._part = _Part.NAME
        else:
            cut = len(self._buffer) - _cut_off(self._buffer, NAME_BEGIN)
            cut = len(self._buffer[:cut].rstrip("\n"))  # a call's begin would take the newlines before it along
            shown, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return self._content(shown)

    def _content(self, text: str) -> list[Delta]:
        shown = text.lstrip("\n") if self.num_calls else text
        self._has_content |= bool(shown)
        return [{"content": shown}] if shown else []

    def _take_name(self) -> list[Delta]:
        """A call's first delta, once its name is whole."""
        name, end, rest = self._buffer.partition(NAME_END)
        if not end:
            return []
        self._buffer, self._part, self._arguments = rest, _Part.ARGUMENTS, _ObjectEnd()
        self.num_calls += 1
        function = {"name": name, "arguments": ""}
        call = {"index": self.num_calls - 1, "id": f"call_{uuid.uuid4().hex}", "type": "function"}
        return [{"tool_calls": [{**call, "function": function}]}]

    def _take_arguments(self) -> list[Delta]:
        end = self._arguments.find(self._buffer)
        shown, self._buffer = self._buffer[:end], "" if end is None else self._buffer[end:]
        if end is not None:
            self._part = _Part.CALL_END
        return [{"tool_calls": [{"index": self.num_calls - 1, "function": {"arguments": shown}}]}]

    def _take_call_end(self) -> list[Delta]:
        if self._buffer.startswith(CALL_END):
            self._buffer, self._part = self._buffer[len(CALL_END) :], _Part.CONTENT
        return []


class _ObjectEnd:
    """Finds where a JSON object ends, in a text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """The index behind the object's last brace, None if it is not in this piece."""
        for index, character in enumerate(text):
            if self._is_in_string:
                self._is_in_string = character != '"' or self._is_escaped
                self._is_escaped = character == "\\" and not self._is_escaped
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return index + 1
        return None


def _cut_off(text: str, mark: str) -> int:
    """How many characters at a text's end may be the beginning of a mark."""
    most = min(len(text), len(mark) - 1)
    return next(count for count in range(most, -1, -1) if text.endswith(mark[:count]))
