"""What routes are given: the objects that service/app.py built, typed."""

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import Depends, Request

from service.api.generation import Generator
from service.metrics import Metrics


def get_generator(request: Request) -> Generator:
    """The generator of this app."""
    return cast(Generator, request.app.state.generator)


def get_metrics(request: Request) -> Metrics:
    """The metrics of this replica."""
    return cast(Metrics, request.app.state.metrics)


def get_targets(request: Request) -> Callable[[], list[str]]:
    """What lists the addresses of all replicas; it may block."""
    return cast(Callable[[], list[str]], request.app.state.metrics_targets)


GeneratorDependency = Annotated[Generator, Depends(get_generator)]
MetricsDependency = Annotated[Metrics, Depends(get_metrics)]
TargetsDependency = Annotated[Callable[[], list[str]], Depends(get_targets)]
