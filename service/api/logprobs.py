"""Log-probabilities as the clients read them: OpenAI's two formats, vLLM's for prompts.

Separate because three routes report the same numbers in different shapes.
"""

from collections.abc import Sequence
from typing import Any

from model.sampler import TokenLogprobs
from model.tokenizer import Tokenizer
from service.engine.request import Request

LEAST_LOGPROB = -9999.0  # JSON has no infinity


def readable(tokenizer: Tokenizer, token_id: int) -> str:
    r"""A token's text; bytes that are no UTF-8 by themselves as `bytes:\xe2\x82`, so that tokens stay apart."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB)


def completion_entry(
    tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs
) -> tuple[str, float, dict[str, float]]:
    """Token, log-probability, and alternatives, the token itself among them: one column of `logprobs`."""
    token = readable(tokenizer, token_id)
    top = {readable(tokenizer, other): finite(value) for other, value in logprobs.top}
    return token, finite(logprobs.logprob), {**top, token: finite(logprobs.logprob)}


def chat_entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """One element of `logprobs.content`."""
    own = _chat_token(tokenizer, token_id, logprobs.logprob)
    return {**own, "top_logprobs": [_chat_token(tokenizer, other, value) for other, value in logprobs.top]}


def native_entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    """Ids and texts, for programs that work with tokens."""
    top = [
        {"token_id": other, "token": readable(tokenizer, other), "logprob": finite(value)}
        for other, value in logprobs.top
    ]
    own = {"token_id": token_id, "token": readable(tokenizer, token_id), "logprob": finite(logprobs.logprob)}
    return {**own, "rank": logprobs.rank, "top": top}


def prompt_entries(tokenizer: Tokenizer, request: Request, num_top: int | None = None) -> list[dict[str, Any] | None]:
    """VLLM's `prompt_logprobs`: null for the first token, then by token id: log-probability, rank, text.

    num_top: alternatives to report, where more are known than were asked for.
    """
    known = zip(request.prompt_ids[1:], request.prompt_token_logprobs, strict=True)
    return [None, *(_prompt_entry(tokenizer, token_id, logprobs, num_top) for token_id, logprobs in known)]


def _prompt_entry(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs, num_top: int | None) -> dict[str, Any]:
    top = enumerate(logprobs.top[:num_top], 1)
    ranked: Sequence[tuple[int, float, int]] = [(i, value, rank) for rank, (i, value) in top]
    entries = [*ranked, (token_id, logprobs.logprob, logprobs.rank)]
    return {
        str(i): {"logprob": finite(value), "rank": rank, "decoded_token": readable(tokenizer, i)}
        for i, value, rank in entries
    }


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": readable(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
