"""POST /v1/completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from service.schemas.base import (
    MAX_INTEGER,
    MINUS_ONE_IS_NONE,
    OptionalInteger,
    Text,
    TokenIdList,
    Usage,
    refusal,
)
from service.schemas.generation import MAX_CHOICES, NOTHING_IS_NONE, OpenAIFields, ParseSpecial, StopReason

MAX_PROMPTS = 128
Ids = TokenIdList
ScoringLimit = Annotated[Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None, MINUS_ONE_IS_NONE]


class CompletionRequest(OpenAIFields):
    """Continue one prompt or several."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="Text, token ids, a list of texts, or a list of lists of token ids; up to 128.")
    max_tokens: ScoringLimit = Field(
        default=16,
        description="Most tokens to generate; -1: what the context holds; 0 with `echo`: score the prompt only.",
    )
    best_of: OptionalInteger = Field(
        default=None,
        ge=1,
        le=MAX_CHOICES,
        description="Make this many answers and return the `n` likeliest per token. Default: n. Not with `stream`.",
    )
    echo: bool = Field(default=False, description="Return the prompt in front of the answer.")
    logprobs: Annotated[OptionalInteger, NOTHING_IS_NONE] = Field(
        default=None,
        ge=0,
        le=20,
        description="Log-probabilities with this many alternatives; of the prompt too with echo.",
    )

    parse_special: ParseSpecial = True

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, whichever way they were given."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [part for part in self.prompt if isinstance(part, str)]
        lists = [part for part in self.prompt if isinstance(part, list)]
        ids = [part for part in self.prompt if isinstance(part, int)]
        return texts or lists or [ids]

    @model_validator(mode="after")
    def _best_of_is_enough(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < self.n:
            raise refusal("best_of", f"best_of is {self.best_of}; it must be at least n, {self.n}")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise refusal("best_of", "best_of above n cannot be streamed: the best are known at the end only")
        return self

    @model_validator(mode="after")
    def _an_answer_or_a_score(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise refusal("max_tokens", "max_tokens is 0; give at least 1, or echo: true to score the prompt")
        return self

    @property
    def is_scoring(self) -> bool:
        """Whether only the prompt is returned, with its log-probabilities if they are asked for."""
        return self.max_tokens == 0


class CompletionLogprobs(BaseModel):
    r"""Log-probabilities of an answer's tokens, as lists of equal length; a part of a character reads `bytes:\xe2`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    finish_reason: str | None
    stop_reason: StopReason = None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class CompletionResponse(BaseModel):
    """Body of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
