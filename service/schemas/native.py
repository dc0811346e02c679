"""POST /v1/generate, Attend's own route: everything that the engine can do."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from service.schemas.base import OptionalInteger, Text, TokenIdList, TokenLimit, Usage, refusal
from service.schemas.generation import NOTHING_IS_NONE, GenerationFields, ParseSpecial, StopReason


class GenerateRequest(GenerationFields):
    """Continue a prompt. `{"prompt": "…"}` is enough."""

    prompt: Text | TokenIdList = Field(description="Text, or token ids; used as it is, without a chat template.")
    model: Text | None = Field(default=None, description="Optional; if given, the served model's id.")
    max_tokens: TokenLimit = Field(default=128, description="Most tokens to generate; -1: what the context holds.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 takes the most likely token; up to 2.")
    logprobs: Annotated[OptionalInteger, NOTHING_IS_NONE] = Field(
        default=None, ge=0, le=20, description="Log-probabilities of the answer's tokens, with this many alternatives."
    )
    return_progress: bool = Field(
        default=False, description="With `stream`: send how much of the prompt has been computed, while it is."
    )

    parse_special: ParseSpecial = True

    @model_validator(mode="after")
    def _progress_needs_a_stream(self) -> "GenerateRequest":
        if self.return_progress and not self.stream:
            raise refusal("return_progress", "return_progress is only allowed with stream: true")
        return self


class Timings(BaseModel):
    """Where the time of a request went, seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


class GeneratedText(BaseModel):
    """One answer."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: StopReason = None
    logprobs: list[dict[str, Any]] | None = None
    timings: Timings


class GenerateResponse(BaseModel):
    """Body of /v1/generate. The fields beside `choices` are those of the first answer; `choices` is there if n > 1."""

    id: str
    model: str
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: StopReason = None
    logprobs: list[dict[str, Any]] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    choices: list[GeneratedText] | None = None
    usage: Usage
    timings: Timings
