"""What must hold between any two steps. Pure checks over a snapshot; on in every test."""

from collections import Counter
from collections.abc import Iterator

from model.kv_cache import KVCache
from service.engine.engine import Engine
from service.engine.request import RequestStatus


def violations(engine: Engine, kv_cache: KVCache) -> list[str]:
    """Every broken invariant, each as one sentence; empty when all is well."""
    return [*_rows(engine, kv_cache), *_statuses(engine), *_tokens(engine, kv_cache), *_budget(engine, kv_cache)]


def _rows(engine: Engine, kv_cache: KVCache) -> Iterator[str]:
    held = Counter(request.row for request in engine.running)
    for row, count in held.items():
        if row is None:
            yield "a running request holds no row"
        elif count > 1:
            yield f"row {row} is held by {count} requests"
    owned = {row for row in held if row is not None}
    if owned != set(kv_cache.rows_used()):
        yield f"rows held {sorted(owned)} differ from rows allocated {kv_cache.rows_used()}"


def _statuses(engine: Engine) -> Iterator[str]:
    for request in engine.waiting:
        if request.status is not RequestStatus.WAITING or request.row is not None:
            yield f"{request.request_id} waits with status {request.status.value} and row {request.row}"
    for request in engine.running:
        if request.status is not RequestStatus.RUNNING or request.finish_reason is not None:
            yield f"{request.request_id} runs with status {request.status.value}"


def _tokens(engine: Engine, kv_cache: KVCache) -> Iterator[str]:
    computed = sum(request.num_computed for request in engine.running)
    if computed != kv_cache.usage().num_tokens:
        yield f"requests have computed {computed} tokens, the cache holds {kv_cache.usage().num_tokens}"
    for request in engine.running:
        behind = request.num_tokens - request.num_computed
        if not (request.is_prefilling or request.awaits_first_token) and behind != 1 and not request.num_preemptions:
            yield f"{request.request_id} is {behind} tokens behind; a decoding request is behind by one"


def _budget(engine: Engine, kv_cache: KVCache) -> Iterator[str]:
    page = kv_cache.tokens_per_page
    held = sum(-(-request.num_computed // page) * page for request in engine.running)
    if held > engine.budget_tokens and len(engine.running) > 1:
        yield f"requests hold {held} tokens in whole pages, the budget is {engine.budget_tokens}"
