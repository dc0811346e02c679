"""What could never run is refused before it is queued, by a typed error: the field, what was given, what is allowed.

Separate from the request because the limits are the engine's: the model's vocabulary and the tokens that a row holds.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from model.errors import UserError
from service.engine.request import Request

CONTEXT_EXCEEDED = "context_length_exceeded"
MAX_PROMPT_LOGPROBS = 20


class InvalidRequestError(UserError, ValueError):
    """A request that can never run. `param` names the field at fault, `code` the fault, for programs."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@contextlib.contextmanager
def blaming(names: Mapping[str, str]) -> Iterator[None]:
    """Name the field that a client sent, where the engine's own name for it differs."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = names.get(error.param or "", error.param)
        raise


@dataclass(frozen=True)
class RequestLimits:
    """vocab_size: token ids are below it. context_tokens: most tokens of prompt and answer together."""

    vocab_size: int
    context_tokens: int

    def check(self, request: Request) -> None:
        """Refuse what the engine could never finish.

        Raises:
            InvalidRequestError: empty prompt, id out of vocabulary, more tokens than fit, limits that contradict.
        """
        self._check_prompt(request.prompt_ids)
        self._check_lengths(request)
        for name, token_ids in _named_token_ids(request).items():
            self.check_ids(name, token_ids)
        if "" in request.stop.strings:
            raise InvalidRequestError("stop has an empty string; each needs at least one character", "stop")
        if request.deadline_s is not None and math.isnan(request.deadline_s):
            raise InvalidRequestError("deadline_s is not a number", "deadline_s")
        count = request.prompt_logprobs
        if count is not None and not 0 <= count <= MAX_PROMPT_LOGPROBS:
            raise InvalidRequestError(
                f"prompt_logprobs is {count}; it must be from 0 to {MAX_PROMPT_LOGPROBS}", "prompt_logprobs"
            )

    def _check_prompt(self, prompt_ids: tuple[int, ...]) -> None:
        if not prompt_ids:
            raise InvalidRequestError("the prompt is empty; give at least one token", "prompt")
        self.check_ids("prompt", prompt_ids)
        if len(prompt_ids) >= self.context_tokens:
            raise InvalidRequestError(
                f"the prompt has {len(prompt_ids)} tokens; this model's context holds {self.context_tokens} tokens, "
                "at least one of them for the answer",
                "prompt",
                CONTEXT_EXCEEDED,
            )

    def _check_lengths(self, request: Request) -> None:
        max_tokens, min_tokens = request.stop.max_tokens, request.sampling.min_tokens
        room = self.context_tokens - request.num_prompt_tokens
        if not 1 <= max_tokens <= room:
            raise InvalidRequestError(
                f"max_tokens is {max_tokens}; after a prompt of {request.num_prompt_tokens} tokens it must be from 1 "
                f"to {room} (context: {self.context_tokens} tokens)",
                "max_tokens",
                CONTEXT_EXCEEDED if max_tokens > room else "invalid_value",
            )
        if min_tokens > max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {min_tokens}; it must be at most max_tokens, {max_tokens}", "min_tokens"
            )

    def check_ids(self, name: str, token_ids: tuple[int, ...]) -> None:
        """Refuse ids out of the vocabulary. name: of the field that has them.

        Raises:
            InvalidRequestError: the first bad one.
        """
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            bad = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise InvalidRequestError(
                f"{name}: token id {bad} is out of range; ids are from 0 to {self.vocab_size - 1}", name
            )


def _named_token_ids(request: Request) -> dict[str, tuple[int, ...]]:
    """Every token id that a request names beside its prompt, by the field that names it."""
    return {"stop_token_ids": tuple(request.stop.token_ids), **request.sampling.named_token_ids()}
