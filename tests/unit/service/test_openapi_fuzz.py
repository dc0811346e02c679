"""Whatever the OpenAPI document allows, and much that it does not, is answered as it documents; never with a 5xx.

The requests are schemathesis's. Its pytest decorator does not work with this pytest; its strategies do.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import MODEL_ID, fake_app
from tests.support.server import free_port

REQUIRED = {"model", "prompt", "messages", "input", "tokens"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = {
    "POST /v1/chat/completions": 40,  # operation: examples of each kind
    "POST /v1/completions": 40,
    "POST /v1/responses": 40,
    "POST /v1/generate": 40,
    "POST /tokenize": 30,
    "POST /detokenize": 30,
    "POST /v1/embeddings": 2,
    "GET /tokenizer_info": 2,
    "GET /v1/models": 2,
    "GET /v1/models/{model_id}": 20,
    "GET /health": 2,
    "GET /ready": 2,
    "GET /metrics": 2,
    "GET /metrics/targets": 2,
    "GET /version": 2,
}


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The operations of a real server on the loopback, over a fake decoder with a short context."""
    app = fake_app(tmp_path_factory.mktemp("fuzz"), FakeDecoder(num_rows=8), max_context_tokens=256)
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.config.port}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    yield {f"{operation.method.upper()} {operation.path}": operation for operation in found}
    server.should_exit = True
    thread.join()


def test_every_documented_operation_is_tried(operations: dict[str, Any]) -> None:
    """A new route needs a line above."""
    assert set(operations) == set(OPERATIONS)


def thinned(body: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """A body with the required fields and a few others, for the served model.

    With all fields at once something is always refused. A whole number with a fraction, 2.0, is a JSON schema's integer
    but not ours.
    """
    kept = data.draw(st.sets(st.sampled_from(sorted(body)), max_size=4)) if body else set()
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in body.items()
    }
    model = {"model": MODEL_ID} if isinstance(body.get("model"), str) else {}
    return {name: whole[name] for name in body if name in kept | REQUIRED} | model


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_one_that_the_document_promises(
    operations: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    """Valid and broken requests to each route: documented status, content type and body."""
    operation = operations[name]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        return  # nothing that could be wrong
    statuses = Counter[int]()

    @seed(1)
    @settings(max_examples=OPERATIONS[name], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(mode))
        if isinstance(case.body, dict):
            case.body = thinned(case.body, data)
        statuses[case.call_and_validate(checks=CHECKS, timeout=30).status_code] += 1

    try_it()
    if operation.body and "embeddings" not in name:
        assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses, statuses
