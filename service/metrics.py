"""Metrics: every metric of the service, on one registry per replica.

Separate from the engine, which reports plain snapshots and knows nothing of Prometheus. Names and buckets follow the
field's (docs/operations.md); units are base units; no request ids as labels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.engine.engine import StepReport
from service.engine.loop import EngineLoop
from service.engine.request import FinishReason, Request

TTFT_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
TOKEN_BUCKETS = (
    .001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
)  # fmt: skip
REQUEST_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
PHASE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, *REQUEST_BUCKETS)

ENGINE_FAILED = "engine_failed"
INVALID_REQUEST = "invalid_request"  # the reason of every refusal that has no other
REJECTION_REASONS = frozenset(
    {
        "body_too_large",
        "concurrent_requests",
        "context_length_exceeded",
        "draining",
        "headers_too_large",
        INVALID_REQUEST,
        "model_not_found",
        "origin_not_allowed",
        "queue_full",
        "requests_per_minute",
        "tokens_per_minute",
        "unauthorized",
        "unhealthy",
        "unsupported_encoding",
    }
)

METRIC_NAMES = frozenset(
    {
        "attend_time_to_first_token_seconds",
        "attend_inter_token_latency_seconds",
        "attend_e2e_request_latency_seconds",
        "attend_request_queue_time_seconds",
        "attend_request_prefill_time_seconds",
        "attend_request_decode_time_seconds",
        "attend_step_duration_seconds",
        "attend_batch_rows",
        "attend_requests_running",
        "attend_requests_waiting",
        "attend_kv_cache_usage_ratio",
        "attend_kv_cache_bytes",
        "attend_prompt_tokens_total",
        "attend_generation_tokens_total",
        "attend_preemptions_total",
        "attend_prefix_cache_hits_total",
        "attend_prefix_cache_queries_total",
        "attend_speculation_draft_tokens_total",
        "attend_speculation_accepted_tokens_total",
        "attend_requests_total",
        "attend_requests_rejected_total",
        "attend_http_requests_total",
        "attend_replicas_wanted",
        "attend_engine_alive",
    }
)


class Metrics:
    """One replica's metrics. Fed from the engine's thread and the event loop; prometheus_client locks each value.

    Every combination of labels that is known beforehand exists at zero from the start: Prometheus sees no increase in a
    series that is born with its first event.
    """

    def __init__(self, registry: CollectorRegistry, model: str, replica: str, num_replicas: int = 1) -> None:
        """model, replica: the labels that every metric carries. num_replicas: how many there should be."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per value, which nobody graphs
        self._registry = registry
        self._labels = {"model": model, "replica": replica}
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens.", TOKEN_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end.", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to admission.", PHASE_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "Admission to first token.", PHASE_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "First to last token.", REQUEST_BUCKETS)
        self._step = self._histogram("step_duration_seconds", "One engine step.", TOKEN_BUCKETS)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self._prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens taken from the prefix cache.")
        self._drafted = self._counter("speculation_draft_tokens", "Tokens guessed by speculation and verified.")
        self._accepted = self._counter("speculation_accepted_tokens", "Guessed tokens that the model chose too.")
        self._preemptions = self._counter("preemptions", "Requests that lost their cache row and had to replay.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._requests = Counter(
            "attend_requests", "Requests ended.", [*self._labels, "finish_reason", "error"], registry=registry
        )
        self._rejected = Counter(
            "attend_requests_rejected", "POST requests refused.", [*self._labels, "reason"], registry=registry
        )
        self._http = Counter(
            "attend_http_requests", "HTTP answers.", [*self._labels, "route", "code"], registry=registry
        )
        self._gauge("replicas_wanted", "Replicas that the service was started with.", lambda: num_replicas)
        for reason in FinishReason:
            self._ended(reason)
        for name in REJECTION_REASONS:
            self._rejected.labels(**self._labels, reason=name)

    def on_step(self, report: StepReport) -> None:
        """Record a step and the tokens it made."""
        self._step.observe(report.duration_s)
        self._prompt_tokens.inc(report.num_prefill_tokens)
        self._prefix_queries.inc(report.num_prompt_tokens)
        self._prefix_hits.inc(report.num_cached_tokens)
        self._drafted.inc(report.num_drafted_tokens)
        self._accepted.inc(report.num_accepted_tokens)
        self._preemptions.inc(report.num_preempted)
        made = [event for event in report.events if event.token_id is not None]
        self._generation_tokens.inc(len(made))
        for event in made:
            (self._ttft if event.num_generated == 1 else self._inter_token).observe(event.since_previous_s)

    def on_end(self, request: Request) -> None:
        """Record how a request ended and where its time went. Phases that it never reached are not recorded."""
        self._ended(request.finish_reason or FinishReason.ERROR).inc()
        times = request.timeline
        self._e2e.observe(times.finished_s - times.arrived_s)
        if times.admitted_s:
            self._queue.observe(times.admitted_s - times.arrived_s)
        if times.first_token_s:
            self._prefill.observe(times.first_token_s - times.admitted_s)
            self._decode.observe(times.last_token_s - times.first_token_s)

    def watch(self, engine_loop: EngineLoop) -> None:
        """Read liveness and load when scraped, so that they are true also while no step runs."""
        loop = engine_loop
        self._gauge("batch_rows", "Requests that decoded together in the last step.", lambda: loop.num_decode_rows)
        self._gauge("requests_running", "Requests that hold a cache row.", lambda: loop.load.num_running)
        self._gauge("requests_waiting", "Requests that wait for a row.", lambda: loop.num_waiting)
        self._gauge("kv_cache_bytes", "Bytes that the KV cache holds.", lambda: loop.load.kv_usage.committed_bytes)
        self._gauge("kv_cache_usage_ratio", "Share of the KV budget in use, 0 to 1.", lambda: loop.budget_ratio)
        text = "1 while the engine steps or has been told to stop, 0 when it has stopped by itself."
        self._gauge("engine_alive", text, lambda: not loop.has_stopped_by_itself)

    def expect_answers(self, statuses: Mapping[str, Iterable[int]]) -> None:
        """Let the counts of HTTP answers begin at zero. statuses: of each route."""
        for route, codes in statuses.items():
            for code in codes:
                self._http.labels(**self._labels, route=route, code=str(code))

    def count_http(self, route: str, status: int) -> None:
        """Count one HTTP answer."""
        self._http.labels(**self._labels, route=route, code=str(status)).inc()

    def count_rejection(self, reason: str) -> None:
        """Count one request that was refused; a reason that is not known counts as an invalid request."""
        known = reason if reason in REJECTION_REASONS else INVALID_REQUEST
        self._rejected.labels(**self._labels, reason=known).inc()

    def expose(self) -> tuple[bytes, str]:
        """All metrics in the text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _ended(self, reason: FinishReason) -> Counter:
        """Requests that ended so."""
        error = ENGINE_FAILED if reason is FinishReason.ERROR else ""
        return self._requests.labels(**self._labels, finish_reason=reason.value, error=error)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        metric = Histogram(f"attend_{name}", text, [*self._labels], registry=self._registry, buckets=buckets)
        return metric.labels(**self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"attend_{name}", text, [*self._labels], registry=self._registry).labels(**self._labels)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"attend_{name}", text, [*self._labels], registry=self._registry).labels(**self._labels)
        gauge.set_function(read)
