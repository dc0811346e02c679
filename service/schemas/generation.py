"""What every generation route accepts: OpenAI's sampling fields, and vLLM's beside them."""

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.schemas.base import (
    MAX_INTEGER,
    Integer,
    JsonObject,
    OptionalInteger,
    RequestBody,
    Seed,
    Text,
    TokenIdList,
    TokenLimit,
    WireModel,
    refusal,
    refuse_surrogates,
)

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 512
MAX_CHOICES = 16
MAX_NAMED_TOKENS = 1024
MAX_BAD_WORDS = 256
MAX_DEADLINE_MS = 86_400_000

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), AfterValidator(refuse_surrogates)]
TokenIds = Annotated[TokenIdList, Field(max_length=MAX_NAMED_TOKENS)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
MAX_LABEL_CHARACTERS = 256


def _without_empty_texts(value: Any) -> Any:
    """No stop strings where forms of clients left theirs empty."""
    if isinstance(value, list) and "" in value:
        value = [text for text in value if text != ""]
    return None if value in ("", []) else value


def _none_if_nothing(value: Any) -> Any:
    """None for an empty list and for false, which clients of other servers send for nothing."""
    return None if value is False or value == [] else value


def _schema_in_text(value: Any) -> Any:
    """A JSON schema that was sent as text, as vLLM's clients may."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value)
    return value


def _label(value: Any) -> Any:
    """A label for the log, whatever it is, shortened and with every character that UTF-8 can hold."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # too deep to be written again
        text = ""
    return text[:MAX_LABEL_CHARACTERS].encode("utf-8", "replace").decode()


NOTHING_IS_NONE = BeforeValidator(_none_if_nothing)
Schema = Annotated[JsonObject, BeforeValidator(_schema_in_text)]
Label = Annotated[str, BeforeValidator(_label)]
GUIDES = ("regex", "choice", "json", "grammar")


ParseSpecial = Annotated[
    bool, Field(description="Whether control tokens that the prompt spells are read as such; false: all is text.")
]


class StructuredOutputs(WireModel):
    """A constraint on the answer's form; give one of them. The names are vLLM's."""

    regex: Text | None = Field(default=None, description="The whole answer matches this regular expression.")
    choice: list[Text] | None = Field(default=None, description="The answer is one of these texts.")
    json_: Schema | None = Field(default=None, alias="json", description="The answer fits this JSON schema.")
    grammar: Text | None = Field(default=None, description="The answer is derived from this Lark grammar.")


class EngineFields(RequestBody):
    """What the engine can do beyond OpenAI's fields; accepted on every generation route. Most names are vLLM's."""

    top_k: Integer = Field(default=0, ge=-1, le=MAX_INTEGER, description="Sample among this many; 0 or -1: all.")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest."
    )
    repetition_penalty: float = Field(
        default=1.0, ge=0.01, le=2, description="Divides the logits of tokens that prompt or answer have."
    )
    stop_token_ids: TokenIds | None = Field(default=None, description="End at any of these tokens.")
    include_stop_str_in_output: bool = Field(
        default=False, description="Return the stop string or stop token's text that ended the answer."
    )
    ignore_eos: bool = Field(default=False, description="Go on after the model's own end token.")
    min_tokens: Integer = Field(default=0, ge=0, le=MAX_INTEGER, description="No end before this many tokens.")
    skip_special_tokens: bool = Field(default=True, description="Leave special tokens out of the text.")
    truncate_prompt_tokens: OptionalInteger = Field(
        default=None, ge=-1, le=MAX_INTEGER, description="Keep only the last tokens of the prompt; -1: what fits."
    )
    prompt_logprobs: OptionalInteger = Field(
        default=None, ge=0, le=20, description="Log-probabilities of the prompt's tokens, with this many alternatives."
    )
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = Field(
        default=None, description="Choose among these tokens only."
    )
    bad_words: list[StopString] | None = Field(
        default=None,
        max_length=MAX_BAD_WORDS,
        description="Words never written as their usual tokens, at the start of a text or after a space.",
    )
    priority: Integer = Field(
        default=0, ge=-MAX_INTEGER, le=MAX_INTEGER, description="Lower is served earlier among those that wait."
    )
    structured_outputs: StructuredOutputs | None = Field(default=None, description="The answer's form.")
    guided_regex: Text | None = Field(default=None, description="The same as structured_outputs.regex.")
    guided_choice: list[Text] | None = Field(default=None, description="The same as structured_outputs.choice.")
    guided_json: Schema | None = Field(default=None, description="The same as structured_outputs.json.")
    guided_grammar: Text | None = Field(default=None, description="The same as structured_outputs.grammar.")
    deadline_ms: OptionalInteger = Field(
        default=None, ge=1, le=MAX_DEADLINE_MS, description="End with an error if not complete after this time."
    )
    cache_salt: Text | None = Field(
        default=None, min_length=1, max_length=256, description="Share computed prompts only within this salt."
    )
    speculation: bool = Field(
        default=False,
        description="Guess tokens by looking them up in the text so far: faster where an answer repeats its prompt.",
    )

    @property
    def guides(self) -> list[tuple[str, str, object]]:
        """Every constraint given: the field, its kind, its value."""
        given = [(f"guided_{kind}", kind, getattr(self, f"guided_{kind}")) for kind in GUIDES]
        if self.structured_outputs is not None:
            inner = {kind: getattr(self.structured_outputs, "json_" if kind == "json" else kind) for kind in GUIDES}
            given += [(f"structured_outputs.{kind}", kind, value) for kind, value in inner.items()]
        return [(field, kind, value) for field, kind, value in given if value is not None]

    @property
    def guide(self) -> tuple[str, object] | None:
        """The kind of constraint and its value."""
        return self.guides[0][1:] if self.guides else None

    @property
    def guide_field(self) -> str | None:
        """The field that gave the constraint."""
        return self.guides[0][0] if self.guides else None

    @model_validator(mode="after")
    def _one_guide(self) -> "EngineFields":
        given = [field for field, _, _ in self.guides]
        if self.structured_outputs is not None and not any(field.startswith("structured") for field in given):
            message = "structured_outputs is empty; give one of regex, choice, json, grammar"
            raise refusal("structured_outputs", message)
        if len(given) > 1:
            raise refusal(given[1], f"{given[0]} and {given[1]} cannot be given together")
        if given and self.speculation:
            raise refusal("speculation", f"speculation and {given[0]} cannot be given together")
        return self


class GenerationFields(EngineFields):
    """What the generation routes share: OpenAI's sampling fields, and the engine's own."""

    max_tokens: TokenLimit = Field(default=None, description="Most tokens to generate; -1: what the context holds.")
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the most likely token; up to 2.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample among the likeliest tokens of this joint mass.")
    stop: Annotated[
        StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
        BeforeValidator(_without_empty_texts),
    ] = Field(default=None, description="End before any of these texts; they are not returned. Up to 16.")
    seed: Seed = Field(default=None, description="Same seed, same request: same answer. Random if -1 or not given.")
    n: Integer = Field(default=1, ge=1, le=MAX_CHOICES, description="Number of answers; the prompt is computed once.")
    stream: bool = Field(default=False, description="Send the answer as server-sent events while it is made.")
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Subtracted from the logits of tokens that the answer has."
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Subtracted for each time that the answer has a token."
    )
    logit_bias: Annotated[dict[TokenKey, Bias] | None, NOTHING_IS_NONE] = Field(
        default=None, max_length=MAX_NAMED_TOKENS, description="Added to the logits of these token ids, -100 to 100."
    )
    user: Label | None = Field(default=None, description="Your end user's name; written to the service's request log.")
    safety_identifier: Label | None = Field(default=None, description="OpenAI's newer name of user.")

    @property
    def end_user(self) -> str | None:
        """The end user's name, by whichever field it came."""
        return self.user if self.user is not None else self.safety_identifier

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class StreamOptions(WireModel):
    """Options of a streamed answer."""

    include_usage: bool = Field(default=False, description="Send a last chunk with the token counts.")
    continuous_usage_stats: bool = Field(default=False, description="Send the token counts so far with every chunk.")
    include_obfuscation: bool = Field(default=False, description="Accepted without effect: no padding is sent.")


class OpenAIFields(GenerationFields):
    """What both OpenAI routes accept."""

    model: Text = Field(description="The served model's id, as GET /v1/models gives it.")
    stream_options: StreamOptions | None = Field(default=None, description="Without effect but with `stream`.")

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk has the token counts so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


StopReason = int | str | None
FinishName = Literal["stop", "length", "tool_calls"]
