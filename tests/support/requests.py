"""Short ways to make engine requests."""

import itertools
from collections.abc import Sequence

from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.engine.request import Request, StopConditions
from tests.support.tiny_checkpoint import tiny_tokenizer_json

TOKENIZER = Tokenizer(tiny_tokenizer_json())
GREEDY = SamplingParams(temperature=0.0)
_names = itertools.count()


def make_request(
    prompt_ids: Sequence[int],
    max_tokens: int = 8,
    *,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    sampling: SamplingParams = GREEDY,
    priority: int = 0,
    deadline_s: float | None = None,
    arrived_s: float = 0.0,
) -> Request:
    """A greedy request over the byte-level tokenizer."""
    conditions = StopConditions(max_tokens, tuple(stop), frozenset(stop_ids))
    request = Request(
        f"r{next(_names)}",
        tuple(prompt_ids),
        sampling,
        conditions,
        TOKENIZER.incremental(),
        priority=priority,
        deadline_s=deadline_s,
    )
    request.timeline.arrived_s = arrived_s
    return request
