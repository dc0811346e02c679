"""A conversation line by line: messages in, answers out, the history between them. Knows no model and no terminal.

Separate from the commands so that it can be tested with lists of lines and answers.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from model.errors import UserError

LEAVE = frozenset({"/exit", "/quit"})
CLEAR, HELP = "/clear", "/help"
COMMANDS = "/exit or Ctrl-D leaves, /clear forgets the conversation, Ctrl-C ends an answer"

Message = dict[str, str]


class Answer(Protocol):
    """An answer that is being made."""

    def __iter__(self) -> Iterator[str]:
        """Its text, piece by piece."""

    @property
    def cut_note(self) -> str | None:
        """Why it ends before its end, if it does."""


class Screen(Protocol):
    """The place where a conversation is shown."""

    def write(self, text: str) -> None:
        """A piece of an answer."""

    def note(self, line: str) -> None:
        """A line about the conversation, not part of it."""


class Conversation:
    """The messages so far, and how the next one is answered."""

    def __init__(self, reply: Callable[[list[Message]], Answer], screen: Screen, system: str | None = None) -> None:
        """reply: asks the model to answer messages. system: the message that stands before all others."""
        self._reply = reply
        self._screen = screen
        self._start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = [*self._start]

    def run(self, lines: Iterable[str], *, can_go_on: bool) -> None:
        """Answer line after line until they end or one says so.

        can_go_on: Ctrl-C and what cannot be answered end one answer, as a person at a terminal wants; else everything.

        Raises:
            UserError: what cannot be answered, unless `can_go_on`.
        """
        for line in lines:
            text = line.strip()
            if text in LEAVE:
                return
            if text == CLEAR:
                self.messages = [*self._start]
                self._screen.note("the conversation is forgotten")
            elif text == HELP:
                self._screen.note(COMMANDS)
            elif text:
                self._turn(text, can_go_on=can_go_on)

    def _turn(self, text: str, *, can_go_on: bool) -> None:
        """One message and its answer; both are forgotten if there is no answer."""
        self.messages.append({"role": "user", "content": text})
        try:
            spoken = self._speak(self._reply(self.messages), can_be_ended=can_go_on)
        except UserError as error:
            if not can_go_on:
                raise
            spoken = ""
            self._screen.note(f"{error}; {CLEAR} begins anew")
        if spoken:
            self.messages.append({"role": "assistant", "content": spoken})
        else:
            self.messages.pop()

    def _speak(self, answer: Answer, *, can_be_ended: bool) -> str:
        """Show an answer as it is made; what was shown of it."""
        with _interrupts(is_caught=can_be_ended) as is_interrupted:
            pieces = []
            for piece in answer:
                self._screen.write(piece)
                pieces.append(piece)
                if is_interrupted():
                    break
        self._screen.write("\n")
        if is_interrupted():
            self._screen.note("the answer is ended")
        elif (note := answer.cut_note) is not None:
            self._screen.note(note)
        return "".join(pieces)


@contextmanager
def _interrupts(*, is_caught: bool) -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C, if so; yield what tells whether it came. A step of the engine is never cut in the middle by it."""
    received: list[int] = []

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    if not is_caught:
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, receive)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
