"""Requests that get their rows in one step, whose prompts share more than the plan of the step could know."""

import pytest

from tests.support.engines import make_engine, run
from tests.support.fake_decoder import expected_tokens
from tests.support.requests import make_request

STORED = [5] * 150


@pytest.mark.parametrize(
    "num_alike",
    [
        pytest.param(100, id="parts within the second block"),
        pytest.param(65, id="parts just after the first block"),
        pytest.param(127, id="parts just before the end of the second block"),
        pytest.param(30, id="parts within the first block"),
        pytest.param(128, id="parts where a block ends"),
    ],
)
def test_a_prompt_that_parts_within_a_stored_block_is_admitted_beside_the_stored_one(num_alike: int) -> None:
    """The first takes 128 tokens from the cache and is thereby a donor for the second, which the plan did not see."""
    engine, decoder = make_engine(4, 512, prefix_cache_bytes=1 << 20)
    engine.add(make_request(STORED, 2))
    run(engine, decoder)
    requests = [make_request([*STORED, 7], 5), make_request([*STORED[:num_alike], *[9] * 40], 5)]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, 5)
