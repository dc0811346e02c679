"""Composition root: settings -> decoder -> engine -> api. Nothing else builds these objects."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from model.bundle import MANIFEST_NAME, Bundle, open_bundle
from model.chat import ChatTemplate
from model.constraint import ConstraintCompiler
from model.decoder import Decoder, DecoderError
from model.kv_cache import KVCache
from model.prepared_graph import prepared_graph
from model.tokenizer import Tokenizer
from service.api import (
    chat,
    completions,
    cors,
    errors,
    generate,
    middleware,
    models,
    operations,
    protection,
    request_body,
    request_line,
    responses_api,
    tokenization,
)
from service.api.generation import CLIENT_CLOSED_REQUEST, GenerationSettings, Generator, request_log
from service.api.keys import read_keys
from service.api.limits import Limiter, Limits
from service.api.prompts import PromptMaker
from service.engine.engine import Engine
from service.engine.loop import EngineLoop, LoopCallbacks
from service.engine.runner import TokenDecoder
from service.engine.scheduler import Scheduler
from service.memory import available_bytes
from service.metrics import Metrics
from service.settings import Settings

logger = logging.getLogger(__name__)
DOCS_FILES = "/docs/files"  # scripts and styles of /docs, so that it needs no network
DOCS_PAGES = ("/docs", "/docs/oauth2-redirect", "/openapi.json")
ROUTE_MODULES = (chat, completions, responses_api, generate, tokenization, models, operations)


@dataclass(frozen=True)
class Runtime:
    """What a server needs to run and stop an app well, whichever server it is."""

    engine_loop: EngineLoop

    def begin_drain(self) -> None:
        """Refuse new requests; let running ones finish."""
        self.engine_loop.begin_drain()

    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return self.engine_loop.num_in_flight

    def stop_engine(self) -> None:
        """End what still runs, each with an error that its client sees; blocks until the engine has stopped."""
        self.engine_loop.stop()

    def check_health(self) -> None:
        """Raise if the engine is dead or stalled."""
        self.engine_loop.check_health()


def context_tokens(bundle: Bundle, settings: Settings) -> int:
    """Most tokens of one request, prompt and answer: the smaller of the model's limit and the setting."""
    return min(bundle.config.context_tokens, settings.max_context_tokens or bundle.config.context_tokens)


def kv_budget_tokens(kv_cache: KVCache, bytes_per_token: int, settings: Settings) -> int:
    """Tokens that all rows together may hold: the setting, or half of the free memory; at most all rows full."""
    budget_bytes = settings.kv_budget_bytes or available_bytes() // 2
    whole_pages = budget_bytes // bytes_per_token // kv_cache.tokens_per_page * kv_cache.tokens_per_page
    return max(kv_cache.tokens_per_page, min(whole_pages, kv_cache.num_rows * kv_cache.capacity_tokens))


def build_app(settings: Settings, replica: str = "0", *, returns_request_id: bool = True) -> FastAPI:
    """The whole service in one process: open the bundle, load the decoder, build the app.

    returns_request_id: False where the server around the app adds `x-request-id` to answers itself.

    Raises:
        BundleError, DecoderError, TokenizerError, ChatTemplateError, MemoryError: the model cannot be served.
    """
    assert settings.bundle is not None, "the command line resolves the bundle"
    bundle = open_bundle(settings.bundle)
    kv_cache = KVCache(bundle.config, settings.max_num_rows, context_tokens(bundle, settings))
    decoder = Decoder(bundle, kv_cache, settings.threads, _prepared_graph(bundle, settings))
    return assemble(settings, bundle, decoder, replica, returns_request_id=returns_request_id)


def _prepared_graph(bundle: Bundle, settings: Settings) -> Path | None:
    """The graph in files that all replicas map; None where they cannot be made, with the reason in the log."""
    try:
        return prepared_graph(bundle, settings.cache_dir)
    except (OSError, DecoderError) as error:
        logger.warning("every replica holds the weights for itself: no prepared graph: %s", error)
        return None


def assemble(
    settings: Settings,
    bundle: Bundle,
    decoder: TokenDecoder,
    replica: str = "0",
    *,
    returns_request_id: bool = True,
) -> FastAPI:
    """The app around a decoder: the real one, or a fake in tests."""
    served_name = (*settings.served_model_names, bundle.config.model_id)[0]
    metrics = Metrics(CollectorRegistry(), served_name, replica, settings.replicas)
    metrics.expect_answers(_known_answers())
    budget_tokens = kv_budget_tokens(decoder.kv_cache, bundle.config.kv_bytes_per_token, settings)
    engine_loop = EngineLoop(
        Engine(
            decoder,
            Scheduler(settings.prefill_chunk_tokens, settings.starvation_s),
            context_tokens=context_tokens(bundle, settings),
            kv_budget_tokens=budget_tokens,
            prefix_cache_bytes=settings.prefix_cache_bytes,
        ),
        max_waiting_requests=settings.max_waiting_requests,
        max_waiting_tokens=settings.max_waiting_tokens,
        stall_timeout_s=settings.stall_timeout_s,
        callbacks=LoopCallbacks(on_step=metrics.on_step, on_end=metrics.on_end),
    )
    metrics.watch(engine_loop)
    app = _create_app(engine_loop)
    app.state.runtime = Runtime(engine_loop)
    app.state.metrics = metrics
    # a deployment of several replicas puts its own here
    app.state.metrics_targets = lambda: [f"{settings.host}:{settings.port}"]
    app.state.generator = _generator(settings, bundle, engine_loop)
    _add_middleware(app, settings, metrics, returns_request_id=returns_request_id)
    _log_requests(settings)
    return app


def _known_answers() -> dict[str, set[int]]:
    """Statuses of each route, as it documents them, and those that are answered before a route is found."""
    before_routing = {401, 403, 431}
    other_methods = {204, 405}  # 204 to OPTIONS
    known: dict[str, set[int]] = {
        middleware.UNMATCHED: {200, 404, 413, 500, *other_methods, *before_routing},
        **{page: {200, *other_methods} for page in DOCS_PAGES},
    }
    for module in ROUTE_MODULES:
        for route in module.router.routes:
            assert isinstance(route, APIRoute), "the modules have no other"
            statuses = {int(status) for status in route.responses} | {route.status_code or 200, 500} | other_methods
            statuses |= {CLIENT_CLOSED_REQUEST} if 408 in statuses else set()
            known[route.path] = statuses - before_routing
    return known


def _log_requests(settings: Settings) -> None:
    """Let the request log through, or not; it has a handler of its own, so that no other log changes."""
    request_log.propagate = False
    request_log.handlers = [logging.StreamHandler()] if settings.log_requests else []
    request_log.setLevel(logging.INFO if settings.log_requests else logging.CRITICAL)


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, *, returns_request_id: bool) -> None:
    """From the inside out: a request passes the last one first."""
    app.add_middleware(request_body.RequestBody, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(cors.OriginGuard, origins=settings.origins)
    app.add_middleware(protection.Authentication, ring=read_keys(settings))
    app.add_middleware(protection.HeaderLimit)
    app.add_middleware(middleware.LastResort)
    if settings.origins:
        app.add_middleware(cors.Cors, origins=settings.origins)
    app.add_middleware(middleware.HttpMetrics, metrics=metrics)
    app.add_middleware(protection.RequestId, returns_id=returns_request_id)
    app.add_middleware(request_line.RequestLine)


def _generator(settings: Settings, bundle: Bundle, engine_loop: EngineLoop) -> Generator:
    """What the routes submit to."""
    config = bundle.config
    tokenizer = Tokenizer(bundle.tokenizer_json)
    return Generator(
        manifest=bundle.manifest,
        prompts=PromptMaker(
            (*settings.served_model_names, config.model_id)[0],
            tokenizer,
            _chat_template(bundle, tokenizer),
            engine_loop.limits.context_tokens,
        ),
        engine_loop=engine_loop,
        constraints=ConstraintCompiler(bundle.tokenizer_json, config.vocab_size, config.eos_token_ids),
        limiter=Limiter(
            Limits(settings.max_requests_per_minute, settings.max_tokens_per_minute, settings.max_concurrent_requests)
        ),
        created=int((bundle.path / MANIFEST_NAME).stat().st_mtime),
        settings=GenerationSettings(
            settings.request_timeout_s,
            settings.cache_per_key,
            settings.unknown_fields == "ignore",
            settings.open_objects,
        ),
        served_names=settings.served_model_names,
    )


def _create_app(engine_loop: EngineLoop) -> FastAPI:
    """The FastAPI app with its routes; its lifespan is the engine's."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine_loop.start()
        await asyncio.to_thread(app.state.generator.constraints.warm_up)
        yield
        engine_loop.stop()

    app = FastAPIOffline(
        title="Attend",
        version=version("attend"),
        description="An LLM you can look inside.",
        lifespan=lifespan,
        redirect_slashes=False,  # RequestLine has seen to them
        redoc_url=None,  # it fetches a picture from its maker
        static_url=DOCS_FILES,
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True, "displayRequestDuration": True},
    )
    for module in ROUTE_MODULES:
        app.include_router(module.router)
    errors.install(app)
    request_line.install(app)
    return app


def _chat_template(bundle: Bundle, tokenizer: Tokenizer) -> ChatTemplate | None:
    source = bundle.chat_template
    return None if source is None else ChatTemplate(source, bundle.manifest.special_tokens, tokenizer.control_tokens)
