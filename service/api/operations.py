"""Routes for whoever runs the service: health, readiness, metrics, version."""

from importlib.metadata import version

from fastapi import APIRouter, Response

from service.api.dependencies import GeneratorDependency, MetricsDependency, TargetsDependency
from service.api.errors import from_exception
from service.api.responses import KEY_ERRORS, json_response
from service.engine.loop import EngineDrainingError, EngineUnhealthyError
from service.schemas.base import ErrorBody
from service.schemas.operations import Status, TargetGroup, Version

router = APIRouter(tags=["Operations"], responses=KEY_ERRORS)
UNAVAILABLE: dict[int | str, dict[str, object]] = {503: {"model": ErrorBody}}


@router.get("/health", response_model=Status, responses=UNAVAILABLE)
async def health(generator: GeneratorDependency) -> Response:
    """Live: 200 while the engine steps, 503 when it has stopped, even though this web server answers."""
    try:
        generator.engine_loop.check_health()
    except EngineUnhealthyError as error:
        return from_exception(error).response()
    return json_response(Status(status="ok"))


@router.get("/ready", response_model=Status, responses=UNAVAILABLE)
async def ready(generator: GeneratorDependency) -> Response:
    """Ready: 200 while new requests are taken; 503 when the engine has stopped or the service is draining."""
    try:
        generator.engine_loop.check_health()
        if generator.engine_loop.is_draining:
            raise EngineDrainingError("the service is shutting down and takes no new requests")
    except (EngineUnhealthyError, EngineDrainingError) as error:
        return from_exception(error).response()
    return json_response(Status(status="ready"))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(registry: MetricsDependency) -> Response:
    """This replica's metrics in the Prometheus text format."""
    body, content_type = registry.expose()
    return Response(body, headers={"Content-Type": content_type})


@router.get("/metrics/targets")
def metrics_targets(find_targets: TargetsDependency) -> list[TargetGroup]:
    """Where Prometheus finds each replica's own `/metrics`: its HTTP service discovery format."""
    return [TargetGroup(targets=find_targets())]


@router.get("/version")
async def get_version(generator: GeneratorDependency) -> Version:
    """What is running."""
    manifest = generator.manifest
    return Version(
        version=version("attend"),
        model=generator.model_id,
        precision=manifest.precision,
        licence=manifest.licence,
        onnxruntime=_onnxruntime_version(),
    )


def _onnxruntime_version() -> str:
    """Version of whichever onnxruntime wheel is installed."""
    from importlib.metadata import PackageNotFoundError

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "unknown"
