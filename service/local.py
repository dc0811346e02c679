"""LocalModel: a bundle driven in this process, without a server. Behind `attend generate` and `attend chat`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from model.bundle import Bundle
from model.chat import ChatTemplate
from model.decoder import Decoder
from model.errors import UserError
from model.kv_cache import KVCache
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.engine.engine import Engine
from service.engine.request import FinishReason, Request, StopConditions
from service.engine.scheduler import Scheduler

CHUNK_TOKENS = 512
PREFIX_CACHE_BYTES = 256 << 20  # a conversation's next turn continues what is computed already


class LocalModelError(UserError):
    """The model could not answer; the message is one line."""


class LocalAnswer:
    """One answer: iterate over it for its text, piece by piece. Stopping early frees the engine for the next one."""

    def __init__(self, engine: Engine, request: Request, max_tokens: int) -> None:
        """Check and queue a request. max_tokens: what was asked for, which the context may have cut.

        Raises:
            InvalidRequestError: the prompt is empty or longer than the context.
        """
        engine.limits.check(request)
        self._engine = engine
        self._request = request
        self._max_tokens = max_tokens

    def __iter__(self) -> Iterator[str]:
        """Run the engine until the answer ends.

        Raises:
            LocalModelError: the engine failed.
        """
        self._engine.add(self._request)
        try:
            while not self._request.is_finished:
                for event in self._engine.step().events:
                    yield event.text
                    if event.finish_reason is FinishReason.ERROR:
                        raise LocalModelError(f"the model failed: {event.error}")
        finally:
            self._engine.abort(self._request)

    @property
    def cut_note(self) -> str | None:
        """Why the answer ends before its end; None where the model itself ended it."""
        if self._request.finish_reason is not FinishReason.LENGTH:
            return None
        limit = self._request.stop.max_tokens
        if limit < self._max_tokens:
            return f"the answer is cut: the context of {self._engine.limits.context_tokens} tokens is full"
        return f"the answer is cut after {limit} tokens; --max-tokens allows more"


@dataclass(frozen=True)
class LocalModel:
    """A tokenizer, a chat template where there is one, and an engine with a single row."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    eos_token_ids: frozenset[int]
    engine: Engine

    @classmethod
    def load(cls, bundle: Bundle, threads: int = 0) -> "LocalModel":
        """Load a bundle.

        Raises:
            DecoderError, TokenizerError, ChatTemplateError: it cannot be used.
        """
        source = bundle.chat_template
        tokenizer = Tokenizer(bundle.tokenizer_json)
        special_tokens = bundle.manifest.special_tokens
        kv_cache = KVCache(bundle.config, num_rows=1, capacity_tokens=bundle.config.context_tokens)
        return cls(
            tokenizer,
            None if source is None else ChatTemplate(source, special_tokens, tokenizer.control_tokens),
            frozenset(bundle.config.eos_token_ids),
            Engine(Decoder(bundle, kv_cache, threads), Scheduler(CHUNK_TOKENS), prefix_cache_bytes=PREFIX_CACHE_BYTES),
        )

    def continue_text(self, text: str, max_tokens: int, sampling: SamplingParams) -> LocalAnswer:
        """The model's continuation of `text` as it is, without the chat template.

        Raises:
            InvalidRequestError: the text is empty or longer than the context.
        """
        return self._answer(self.tokenizer.encode(text), max_tokens, sampling)

    def reply(self, messages: Sequence[Mapping[str, str]], max_tokens: int, sampling: SamplingParams) -> LocalAnswer:
        """The model's answer in a conversation. messages: each with `role` and `content`.

        Raises:
            LocalModelError: a model without a chat template.
            ChatTemplateError: the template refuses the conversation.
            InvalidRequestError: the conversation is longer than the context.
        """
        if self.template is None:
            raise LocalModelError("this model has no chat template; use `attend generate --raw`")
        return self._answer(self.tokenizer.encode_pieces(self.template.pieces(messages)), max_tokens, sampling)

    def _answer(self, prompt_ids: Sequence[int], max_tokens: int, sampling: SamplingParams) -> LocalAnswer:
        room = max(1, self.engine.limits.context_tokens - len(prompt_ids))
        stop = StopConditions(min(max_tokens, room), eos_token_ids=self.eos_token_ids)
        request = Request("local", tuple(prompt_ids), sampling, stop, self.tokenizer.incremental())
        return LocalAnswer(self.engine, request, max_tokens)
