"""Short ways to make engine requests."""

import itertools
from collections.abc import Sequence
from typing import Any

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
    eos_ids: Sequence[int] = (),
    includes_stop: bool = False,
    sampling: SamplingParams = GREEDY,
    arrived_s: float = 0.0,
    **fields: Any,
) -> Request:
    """A greedy request over the byte-level tokenizer. fields: of `Request`, as they are."""
    conditions = StopConditions(
        max_tokens, tuple(stop), frozenset(stop_ids), frozenset(eos_ids), is_included=includes_stop
    )
    request = Request(f"r{next(_names)}", tuple(prompt_ids), sampling, conditions, TOKENIZER.incremental(), **fields)
    request.timeline.arrived_s = arrived_s
    return request
