"""`attend bench`: what a bundle costs and how fast it is on this machine, each as a table."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.options import (
    INTEGERS,
    PATH,
    Bundle,
    CacheDir,
    Model,
    Precision,
    Threads,
    help_without_command,
    new_app,
)
from service.cli.progress import stages
from service.settings import default_cache_dir
from service.source import ModelChoice, find_bundle


def build_app() -> typer.Typer:
    """The group of commands."""
    app = new_app("Measure a bundle on this machine.", help_without_command)
    for command in (quality, engine, stall, speculation):
        app.command()(command)
    return app


def quality(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle folders; the first one is the reference.")
    ],
    text: Annotated[
        Path | None, typer.Option(metavar=PATH, help="UTF-8 text file; default: Python's language reference.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=512, metavar=INTEGERS, help="Tokens of the text to score.")] = 6144,
) -> None:
    """Print what each bundle's precision costs: perplexity, agreement with the first, memory, relative speed."""
    from service.bench.quality import quality_table

    with stages() as say:
        table = quality_table(bundles, text, max_tokens, say)
    Console().print(table)


def engine(
    model: Model = None,
    bundle: Bundle = None,
    precision: Precision = None,
    threads: Threads = 0,
    cache_dir: CacheDir = None,
) -> None:
    """Print step time, time inside the ONNX session and the rest, for 1 to 32 rows."""
    from service.bench.engine import engine_table

    path = _bundle_path(ModelChoice(cache_dir or default_cache_dir(), model, bundle, precision))
    with stages() as say:
        table = engine_table(path, threads, say)
    Console().print(table)


def stall(
    model: Model = None,
    bundle: Bundle = None,
    precision: Precision = None,
    chunk_tokens: Annotated[
        int, typer.Option(min=8, metavar=INTEGERS, help="Prompt tokens computed in one step.")
    ] = 256,
    threads: Threads = 0,
    cache_dir: CacheDir = None,
) -> None:
    """Print what a prompt of 6,000 tokens does to a running stream and to a short prompt."""
    from service.bench.stall import stall_table

    path = _bundle_path(ModelChoice(cache_dir or default_cache_dir(), model, bundle, precision))
    with stages() as say:
        table = stall_table(path, chunk_tokens, threads, say)
    Console().print(table)


def speculation(
    model: Model = None,
    bundle: Bundle = None,
    precision: Precision = None,
    threads: Threads = 0,
    cache_dir: CacheDir = None,
) -> None:
    """Print what speculation by prompt lookup saves, and how often it changes an answer."""
    from service.bench.speculation import speculation_table

    path = _bundle_path(ModelChoice(cache_dir or default_cache_dir(), model, bundle, precision))
    with stages() as say:
        table = speculation_table(path, threads, say)
    Console().print(table)


def _bundle_path(choice: ModelChoice) -> Path:
    """The bundle to measure, exported first if need be: no two progress displays at a time."""
    return find_bundle(choice).path
