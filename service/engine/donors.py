"""Donors: running requests whose rows already hold the beginning of another prompt.

The prefix cache keeps whole blocks; where two prompts part within a block, the tokens up to there are in the row of
whoever computes or continues the other one, and are copied from it. Pure functions over requests.
"""

from collections.abc import Iterable

from model.prefix_cache import MIN_COMPUTED_TOKENS
from service.engine.request import Request


def furthest_donor(request: Request, running: Iterable[Request], start: int) -> tuple[Request | None, int]:
    """The running request that holds most of a prompt's beginning, and how many tokens; (None, start) if none goes on.

    start: tokens that are there already. Requests of another salt are strangers. Only tokens computed as a prompt
    count: what generation leaves in a row differs from them in the last bits (docs/adr/0008).
    """
    donor, end = None, start
    limit = request.num_prompt_tokens - MIN_COMPUTED_TOKENS
    for other in running:
        known = min(other.num_computed, other.num_prompt_tokens, limit)
        if known <= end or other is request or other.cache_salt != request.cache_salt:
            continue
        if other.prompt_ids[end] == request.prompt_ids[end] and other.prompt_ids[:end] == request.prompt_ids[:end]:
            donor, end = other, _num_alike(request.prompt_ids, other.prompt_ids, end, known)
    return donor, end


def _num_alike(first: tuple[int, ...], second: tuple[int, ...], start: int, stop: int) -> int:
    """How many tokens two prompts have in common, of which the first `start` are known to be; at most `stop`."""
    return next((index for index in range(start, stop) if first[index] != second[index]), stop)
