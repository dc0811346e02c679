"""Wire models: what a request may say, with types, ranges and defaults. Imports pydantic only.

Strict on purpose: a number in quotes, an unknown field or NaN is refused with a message, never guessed at or ignored.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 512
MAX_MESSAGES = 2048

MAX_INTEGER = 2**31 - 1


def _refuse_surrogates(text: str) -> str:
    """A lone half of a UTF-16 pair is no character: JSON can spell it, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("surrogate", "text has a lone surrogate, which is not a character") from None
    return text


Text = Annotated[str, AfterValidator(_refuse_surrogates)]
TokenId = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]  # the engine checks it against the vocabulary
TokenCount = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), AfterValidator(_refuse_surrogates)]


class WireModel(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(WireModel):
    """Options of a streamed answer."""

    include_usage: bool = Field(default=False, description="Send a last chunk with the token counts.")


class GenerationFields(WireModel):
    """What every generation route accepts."""

    max_tokens: TokenCount | None = Field(default=None, description="Most tokens to generate.")
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the most likely token; up to 2.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample among the likeliest tokens of this joint mass.")
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        default=None, description="End before any of these texts; they are not returned."
    )
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63, description="Same seed, same request: same answer. Random if not given."
    )
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class OpenAIFields(GenerationFields):
    """What both OpenAI routes accept."""

    model: Text = Field(description="The served model's id, as GET /v1/models gives it.")
    n: int = Field(default=1, ge=1, le=1, description="Number of answers; this release makes one.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with `stream`.")

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(OpenAIFields):
    """POST /v1/completions."""

    prompt: Text | list[TokenId] = Field(description="Text, or token ids.")
    max_tokens: TokenCount | None = Field(default=16, description="Most tokens to generate.")


class ChatMessage(WireModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ChatCompletionRequest(OpenAIFields):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: TokenCount | None = Field(
        default=None,
        description="The newer name of max_tokens; give one of them. Default: what the context holds.",
    )


class GenerateRequest(GenerationFields):
    """POST /v1/generate: the native route. `{"prompt": "…"}` is enough."""

    prompt: Text | list[TokenId] = Field(description="Text, or token ids; used as it is, without a chat template.")
    model: Text | None = Field(default=None, description="Optional; if given, the served model's id.")
    max_tokens: TokenCount | None = Field(default=128, description="Most tokens to generate.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 takes the most likely token; up to 2.")


class ErrorDetail(BaseModel):
    """What went wrong: for people (`message`), for programs (`type`, `code`), and the field at fault (`param`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(BaseModel):
    """The answer of /v1/completions."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: None = None


class CompletionResponse(BaseModel):
    """Body of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatAnswer(BaseModel):
    """The message that the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The answer of /v1/chat/completions."""

    index: int
    message: ChatAnswer
    finish_reason: str | None
    logprobs: None = None


class ChatCompletionResponse(BaseModel):
    """Body of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Timings(BaseModel):
    """Where the time of a request went, seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


class GenerateResponse(BaseModel):
    """Body of /v1/generate."""

    id: str
    model: str
    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    timings: Timings


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "attend"
    context_tokens: int
    precision: str


class ModelList(BaseModel):
    """Body of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(BaseModel):
    """Body of /health and /ready."""

    status: str


class TargetGroup(BaseModel):
    """One group of Prometheus's HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str] = Field(default_factory=dict)


class Version(BaseModel):
    """Body of /version."""

    version: str
    model: str
    precision: str
    licence: str
    onnxruntime: str
