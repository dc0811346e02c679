"""`attend generate` and `attend chat`: answers without a server."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UserError
from service.cli.conversation import COMMANDS, Conversation, Message
from service.cli.options import (
    FLOATS,
    INTEGER,
    INTEGERS,
    SOURCE_HELP,
    TEXT,
    Bundle,
    CacheDir,
    Model,
    Precision,
    Threads,
)
from service.cli.progress import say
from service.settings import PREFIX, default_cache_dir
from service.source import ModelChoice, find_bundle

if TYPE_CHECKING:
    from model.sampling import SamplingParams
    from service.local import LocalAnswer, LocalModel

STANDARD_INPUT = "-"
DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class TalkOptions:
    """Options of both `generate` and `chat`."""

    source: str | None = None
    bundle: Bundle = None
    precision: Precision = None
    system: Annotated[str | None, typer.Option(metavar=TEXT, help="System message: how the model is to behave.")] = None
    max_tokens: Annotated[int, typer.Option(min=1, metavar=INTEGERS, help="Most tokens of an answer.")] = (
        DEFAULT_MAX_TOKENS
    )
    temperature: Annotated[float, typer.Option(min=0, max=2, metavar=FLOATS, help="0 takes the most likely token.")] = (
        0.0
    )
    top_p: Annotated[float, typer.Option(metavar=FLOATS, help="Mass of the nucleus, above 0 to 1.")] = 1.0
    seed: Annotated[int, typer.Option(metavar=INTEGER, help="The same seed gives the same answer.")] = 0
    threads: Threads = 0
    cache_dir: CacheDir = None

    def __post_init__(self) -> None:
        """Refuse what sampling refuses, before a model is exported or loaded for it."""
        self.sampling()

    def sampling(self) -> "SamplingParams":
        """How tokens are chosen.

        Raises:
            UserError: a value that sampling refuses.
        """
        from model.sampling import SamplingParams

        return SamplingParams(self.temperature, self.top_p, self.seed)

    def load(self) -> "LocalModel":
        """The model, exported first if need be."""
        from service.local import LocalModel

        cache_dir = self.cache_dir or default_cache_dir()
        return LocalModel.load(
            find_bundle(ModelChoice(cache_dir, self.source, self.bundle, self.precision), say), self.threads
        )

    def conversation(self, model: "LocalModel") -> Conversation:
        """A conversation with the model, shown on stdout."""
        sampling = self.sampling()

        def reply(messages: list[Message]) -> "LocalAnswer":
            return model.reply(messages, self.max_tokens, sampling)

        return Conversation(reply, _Output(), self.system)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(TalkOptions):
    """Options of `generate`."""

    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to say to the model; `-`, or nothing in a pipe: standard input."),
    ] = None
    source: Model = None
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False
    chat: Annotated[bool, typer.Option("--chat", help="Go on talking, as `attend chat` does.")] = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UserError: `--raw` with what needs the chat template.
        """
        super().__post_init__()
        needing = [f"--{name}" for name, is_given in (("chat", self.chat), ("system", self.system)) if is_given]
        if self.raw and needing:
            raise UserError(f"{needing[0]} needs the chat template, which --raw leaves out; leave one of the two out")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(TalkOptions):
    """Options of `chat`."""

    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", envvar=f"{PREFIX}SOURCE", help=f"Model: {SOURCE_HELP}; unset: `default`."),
    ] = None


def generate(options: GenerateOptions) -> None:
    """Print the model's answer as it is made, without a server."""
    if options.chat:
        first = [] if options.prompt in (None, STANDARD_INPUT) else [str(options.prompt)]
        _talk(options, first)
        return
    prompt = _prompt(options.prompt)
    model = options.load()
    if options.raw or (model.template is None and options.system is None):
        _print_continuation(options, model, prompt)
    else:
        options.conversation(model).run([prompt], can_go_on=False)


def chat(options: ChatOptions) -> None:
    """Talk with the model, line by line; /exit or Ctrl-D leaves. In a pipe each line of standard input is a message."""
    _talk(options, [])


def _talk(options: TalkOptions, first: list[str]) -> None:
    """Answer the first lines, then those of standard input."""
    is_terminal = sys.stdin.isatty()
    conversation = options.conversation(options.load())
    if is_terminal:
        say(COMMANDS)
    conversation.run(first, can_go_on=is_terminal)
    conversation.run(_typed_lines() if is_terminal else _piped_lines(), can_go_on=is_terminal)


def _print_continuation(options: GenerateOptions, model: "LocalModel", text: str) -> None:
    answer, output = model.continue_text(text, options.max_tokens, options.sampling()), _Output()
    for piece in answer:
        output.write(piece)
    output.write("\n")
    if (note := answer.cut_note) is not None:
        output.note(note)


def _prompt(argument: str | None) -> str:
    """The prompt given, or standard input without its last newline.

    Raises:
        UserError: there is none, or it is no text.
    """
    if argument not in (None, STANDARD_INPUT):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise UserError("the prompt is missing; give one, or `-` to read standard input, or --chat to talk")
    text = _decoded(sys.stdin.buffer.read())
    if not text.strip():
        raise UserError("the prompt is missing: standard input is empty; give a PROMPT, or text in a pipe")
    return text.removesuffix("\n").removesuffix("\r")


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield _decoded(line)


def _typed_lines() -> Iterator[str]:
    """Lines typed at a terminal, with editing and history, until Ctrl-D. Ctrl-C drops a line."""
    import readline  # noqa: F401 - `input` edits lines once it is loaded

    mark = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            yield input(mark)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            say(COMMANDS)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from error


class _Output:
    """Answers on stdout, at once; notes on stderr."""

    def write(self, text: str) -> None:
        print(text, end="", flush=True)

    def note(self, line: str) -> None:
        say(f"attend: {line}")
