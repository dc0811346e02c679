"""ToolCallParser: finds function calls in an answer's text, piece by piece, as OpenAI clients read them.

Separate from the chat route because it is text matching and nothing else. The form is that which the constraint
enforces (`model/constraint.py`), so nothing here has to guess.
"""

import uuid
from typing import Any

from model.constraint import TOOL_CALL_BEGIN, TOOL_CALL_END

NAME_BEGIN = TOOL_CALL_BEGIN + '{"name": "'
NAME_END = '", "arguments": '
ARGUMENTS_END = "}" + TOOL_CALL_END

Delta = dict[str, Any]


class ToolCallParser:
    """Feed text; get deltas with `content` or `tool_calls`."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._buffer = ""
        self._ends_with = NAME_BEGIN  # what ends the present part: content, a name, or arguments

    @property
    def is_called(self) -> bool:
        """Whether there are calls, all of them complete."""
        return self.num_calls > 0 and self._ends_with == NAME_BEGIN

    def push(self, text: str) -> list[Delta]:
        """What became certain with this text."""
        self._buffer += text
        deltas: list[Delta] = []
        while True:
            shown, is_complete = self._take()
            deltas += self._deltas(shown, is_complete)
            if not is_complete:
                return deltas

    def flush(self) -> list[Delta]:
        """The rest of an answer that was cut inside a call, or that only looked like one."""
        rest, self._buffer = self._buffer, ""
        return self._deltas(rest, is_complete=False)

    def _take(self) -> tuple[str, bool]:
        """The text of the present part that is certain, and whether the part is complete."""
        at = self._buffer.find(self._ends_with)
        if at >= 0:
            shown, self._buffer = self._buffer[:at], self._buffer[at + len(self._ends_with) :]
            return shown, True
        if self._ends_with == NAME_END:
            return "", False  # a name is told whole
        keep = next(n for n in range(len(self._ends_with) - 1, -1, -1) if self._buffer.endswith(self._ends_with[:n]))
        cut = len(self._buffer) - keep
        if self._ends_with == NAME_BEGIN:
            cut = len(self._buffer[:cut].rstrip("\n"))  # a call's begin would take the newlines before it along
        shown, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return shown, False

    def _deltas(self, shown: str, is_complete: bool) -> list[Delta]:
        if self._ends_with == NAME_BEGIN:
            text = shown.lstrip("\n") if self.num_calls else shown.rstrip("\n") if is_complete else shown
            if is_complete:
                self._ends_with = NAME_END
            return [{"content": text}] if text else []
        if self._ends_with == NAME_END:
            if not is_complete:
                return []
            self._ends_with = ARGUMENTS_END
            self.num_calls += 1
            function = {"name": shown, "arguments": ""}
            call = {"index": self.num_calls - 1, "id": f"call_{uuid.uuid4().hex}", "type": "function"}
            return [{"tool_calls": [{**call, "function": function}]}]
        if is_complete:
            self._ends_with = NAME_BEGIN
        return [{"tool_calls": [{"index": self.num_calls - 1, "function": {"arguments": shown}}]}] if shown else []
