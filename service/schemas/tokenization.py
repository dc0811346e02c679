"""GET /tokenizer_info, POST /tokenize and /detokenize, with vLLM's field names."""

from pydantic import BaseModel, Field, model_validator

from service.schemas.base import RequestBody, Text, TokenIdList, refusal
from service.schemas.chat import MAX_TOOLS, Tool
from service.schemas.generation import ParseSpecial
from service.schemas.messages import MAX_MESSAGES, ChatMessage


class TokenizeRequest(RequestBody):
    """A text, or a conversation through the model's chat template."""

    model: Text | None = Field(default=None, description="Optional; if given, the served model's id.")
    prompt: Text | None = Field(default=None, description="A text.")
    messages: list[ChatMessage] | None = Field(
        default=None, min_length=1, max_length=MAX_MESSAGES, description="A conversation; give this or prompt."
    )
    tools: list[Tool] | None = Field(
        default=None, max_length=MAX_TOOLS, description="With messages: functions the model may call."
    )
    add_special_tokens: bool | None = Field(
        default=None, description="What the model's post-processor adds; default: true for prompt, false for messages."
    )
    parse_special: ParseSpecial = True
    add_generation_prompt: bool = Field(default=True, description="With messages: open the assistant's turn.")
    continue_final_message: bool = Field(default=False, description="With messages: end inside the last message.")
    return_token_strs: bool = Field(default=False, description="Return each token's text too.")

    @model_validator(mode="after")
    def _one_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise refusal("prompt", "prompt or messages: give one of them")
        if self.tools and self.messages is None:
            raise refusal("tools", "tools needs messages: a plain prompt has no place for them")
        if not self.parse_special and self.messages is not None:
            message = "parse_special needs prompt: what messages spell is plain text, what the template writes is not"
            raise refusal("parse_special", message)
        for name in ("add_generation_prompt", "continue_final_message"):
            if name in self.model_fields_set and self.messages is None:
                raise refusal(name, f"{name} needs messages: a plain prompt has no turns")
        return self


class TokenizeResponse(BaseModel):
    """Token ids of the text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestBody):
    """Token ids to turn into text."""

    model: Text | None = Field(default=None, description="Optional; if given, the served model's id.")
    tokens: TokenIdList = Field(description="Token ids.")
    skip_special_tokens: bool = Field(default=False, description="Leave special tokens out of the text.")


class DetokenizeResponse(BaseModel):
    """The text of the tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer as its `tokenizer_config.json` would tell of it; special tokens as text, null where it has none."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
