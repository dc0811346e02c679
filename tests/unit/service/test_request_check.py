"""What the engine could never finish is refused before it is queued."""

from typing import Any

import pytest

from model.sampling import SamplingParams
from service.engine.request_check import InvalidRequestError, RequestLimits
from tests.support.requests import make_request

LIMITS = RequestLimits(vocab_size=257, context_tokens=512)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message", "param"),
    [
        ([], 1, "the prompt is empty", "prompt"),
        ([257], 1, "prompt: token id 257 is out of range; ids are from 0 to 256", "prompt"),
        ([-1], 1, "prompt: token id -1 is out of range", "prompt"),
        ([1] * 512, 1, "the prompt has 512 tokens; this model's context holds 512", "prompt"),
        ([1] * 10, 0, "max_tokens is 0; after a prompt of 10 tokens it must be from 1 to 502", "max_tokens"),
        ([1] * 10, 503, "max_tokens is 503", "max_tokens"),
    ],
)
def test_prompts_and_lengths_that_cannot_be_are_refused_with_their_field(
    prompt: list[int], max_tokens: int, message: str, param: str
) -> None:
    """The message says what was given and what is allowed."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        LIMITS.check(make_request(prompt, max_tokens))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"sampling": SamplingParams(logit_bias={300: 1.0})}, "logit_bias: token id 300", "logit_bias"),
        (
            {"sampling": SamplingParams(allowed_token_ids=(1, -2))},
            "allowed_token_ids: token id -2",
            "allowed_token_ids",
        ),
        ({"sampling": SamplingParams(banned_token_ids=(257,))}, "banned_token_ids: token id 257", "banned_token_ids"),
        ({"stop_ids": [999]}, "stop_token_ids: token id 999", "stop_token_ids"),
        ({"sampling": SamplingParams(min_tokens=9)}, "min_tokens is 9; it must be at most max_tokens, 8", "min_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21; it must be from 0 to 20", "prompt_logprobs"),
        (
            {"sampling": SamplingParams(banned_sequences=((1, 300),))},
            "banned_sequences: token id 300",
            "banned_sequences",
        ),
        ({"sampling": SamplingParams(end_token_ids=(999,))}, "end_token_ids: token id 999", "end_token_ids"),
        ({"stop": [""]}, "stop has an empty string", "stop"),
        ({"deadline_s": float("nan")}, "deadline_s is not a number", "deadline_s"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1", "prompt_logprobs"),
    ],
)
def test_ids_and_limits_that_contradict_are_refused_with_their_field(
    fields: dict[str, Any], message: str, param: str
) -> None:
    """Token ids out of the vocabulary, wherever they are named; a least length above the most."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        LIMITS.check(make_request([1, 2, 3], **fields))
    assert caught.value.param == param


def test_what_fits_exactly_is_taken() -> None:
    """The last place of the context and the last id of the vocabulary count."""
    LIMITS.check(make_request([256] * 511, 1, stop_ids=[0]))
