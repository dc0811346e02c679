"""A conversation line by line: what the model is asked, what is shown, how it goes on and how it ends."""

import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from model.errors import UserError
from service.cli.conversation import COMMANDS, Conversation, Message


class FakeAnswer:
    """Pieces of text, perhaps cut; it can be interrupted while it is made, or fail."""

    def __init__(self, pieces: Sequence[str], cut_note: str | None = None) -> None:
        self.pieces = pieces
        self.cut_note = cut_note
        self.num_made = 0

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            self.num_made += 1
            if piece == "^C":
                os.kill(os.getpid(), signal.SIGINT)
            elif piece == "!":
                raise UserError("the context is full")
            yield piece


class FakeModel:
    """Answers with what a test has prepared, and remembers what it was asked."""

    def __init__(self, *answers: FakeAnswer) -> None:
        self.answers = list(answers)
        self.asked: list[list[Message]] = []

    def reply(self, messages: list[Message]) -> FakeAnswer:
        self.asked.append([dict(message) for message in messages])
        return self.answers[len(self.asked) - 1]


class Shown:
    """What a conversation has shown."""

    def __init__(self) -> None:
        self.text = ""
        self.notes: list[str] = []

    def write(self, text: str) -> None:
        self.text += text

    def note(self, line: str) -> None:
        self.notes.append(line)


def user(text: str) -> Message:
    """What the user says."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """What the model says."""
    return {"role": "assistant", "content": text}


def talk(
    model: FakeModel, *lines: str, system: str | None = None, can_go_on: bool = True
) -> tuple[Conversation, Shown]:
    """Run a whole conversation."""
    shown = Shown()
    conversation = Conversation(model.reply, shown, system)
    conversation.run(lines, can_go_on=can_go_on)
    return conversation, shown


def test_each_line_is_asked_with_everything_before_it() -> None:
    """The history is what makes it a conversation."""
    model = FakeModel(FakeAnswer(["Hel", "lo"]), FakeAnswer(["Fine"]))
    _, shown = talk(model, "Hi\n", "How are you?\n", system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert model.asked == [
        [system, user("Hi")],
        [system, user("Hi"), assistant("Hello"), user("How are you?")],
    ]
    assert shown.text == "Hello\nFine\n"
    assert shown.notes == []


@pytest.mark.parametrize(
    ("lines", "num_asked", "reason"),
    [
        (["/exit", "more"], 0, "the word"),
        (["/quit\n", "more"], 0, "the other word that people try"),
        (["a", "  /exit  \n", "more"], 1, "with blanks around it"),
        (["a"], 1, "the end of the input, Ctrl-D"),
        (["", "\n", "   ", "a", "/exit"], 1, "empty lines are no messages"),
        (["please /exit", "/exit"], 1, "a message that mentions it"),
    ],
)
def test_it_ends_where_it_is_told_to(lines: list[str], num_asked: int, reason: str) -> None:
    """Nothing after that is asked."""
    model = FakeModel(FakeAnswer(["x"]), FakeAnswer(["y"]))
    talk(model, *lines)
    assert len(model.asked) == num_asked, reason


def test_clear_forgets_all_but_the_system_message() -> None:
    """Also the way on when the context is full."""
    model = FakeModel(FakeAnswer(["x"]), FakeAnswer(["y"]))
    talk(model, "a", "/clear", "b", system="s")
    assert model.asked[1] == [{"role": "system", "content": "s"}, user("b")]


def test_help_lists_the_commands() -> None:
    """And asks the model nothing."""
    model = FakeModel()
    _, shown = talk(model, "/help")
    assert shown.notes == [COMMANDS]


def test_ctrl_c_ends_the_answer_and_not_the_conversation() -> None:
    """What was said so far stays in the history, as the user has read it."""
    first = FakeAnswer(["One", "^C", " three", " four"])
    model = FakeModel(first, FakeAnswer(["Yes"]))
    _, shown = talk(model, "Count", "And now?")
    assert first.num_made == 2
    assert model.asked[1][1] == assistant("One^C")
    assert shown.notes == ["the answer is ended"]
    assert shown.text.endswith("\nYes\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_answer_ended_before_its_first_word_leaves_nothing_behind() -> None:
    """Two messages of the user in a row are refused by many templates."""
    model = FakeModel(FakeAnswer([]), FakeAnswer(["Yes"]))
    talk(model, "Count", "And now?")
    assert model.asked[1] == [user("And now?")]


def test_in_a_pipe_ctrl_c_ends_everything() -> None:
    """As for any command of a script."""
    with pytest.raises(KeyboardInterrupt):
        talk(FakeModel(FakeAnswer(["One", "^C"])), "Count", can_go_on=False)


def test_what_cannot_be_answered_is_said_and_the_conversation_goes_on() -> None:
    """The message is forgotten, so that the next one has a chance."""
    model = FakeModel(FakeAnswer(["!"]), FakeAnswer(["Yes"]))
    _, shown = talk(model, "long", "short")
    assert model.asked[1] == [user("short")]
    assert shown.notes == ["the context is full; /clear begins anew"]


def test_in_a_pipe_what_cannot_be_answered_is_an_error() -> None:
    """A script must not go on as if it had an answer."""
    with pytest.raises(UserError, match="the context is full"):
        talk(FakeModel(FakeAnswer(["!"])), "long", can_go_on=False)


def test_an_answer_that_is_cut_says_so() -> None:
    """Beside the answer, not in it."""
    _, shown = talk(FakeModel(FakeAnswer(["One"], cut_note="cut after 1 token")), "Count")
    assert shown.text == "One\n"
    assert shown.notes == ["cut after 1 token"]
