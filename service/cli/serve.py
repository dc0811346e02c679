"""`attend serve`: SOURCE or a bundle over HTTP. Its options are the settings."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from model.bundle import Bundle
from model.errors import UserError
from service.cli.options import SOURCE_HELP, command_from_parameters, keyword, setting_parameters
from service.cli.progress import say
from service.ports import check_port
from service.settings import PREFIX, Settings, unknown_variables
from service.source import ModelChoice, find_bundle
from service.start_report import start_line

SERVE_HELP = """Serve a model over HTTP, under Ray Serve unless --standalone.

Without SOURCE and --bundle it is the default model. A source that is no bundle is first exported into the cache, once.
"""


def serve(**options: Any) -> None:
    """Serve until a signal; exits with the server's status."""
    from service.api.keys import read_keys

    started_s = time.monotonic()
    is_standalone = options.pop("standalone")
    settings = read_settings(options)
    has_keys = not read_keys(settings).is_open  # here too: a replica would find a bad one seconds later
    check_port(settings.host, settings.port)
    bundle = find_bundle(ModelChoice(settings.cache_dir, settings.source, settings.bundle, settings.precision), say)
    settings = settings.model_copy(update=_whole_paths(settings, bundle))
    print(f"attend: {start_line(bundle, settings, has_keys=has_keys)}", flush=True)
    sys.exit(_serve_standalone(settings, started_s) if is_standalone else _serve_cluster(settings, started_s))


def read_settings(options: dict[str, Any]) -> Settings:
    """Settings from the environment, overridden by the options that were given.

    Raises:
        UserError: one is out of range, or a variable looks like a setting and is none.
    """
    if unknown := unknown_variables(os.environ):
        raise UserError(
            f"{unknown[0]} is not a setting; `attend serve --help` lists them ({PREFIX}PORT is --port, and so on)"
        )
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')} ({PREFIX}{name.upper()})"
        raise UserError(f"{flag} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}") from None


def build_command() -> Callable[..., None]:
    """`serve` with its command line: SOURCE, --standalone and one option for each setting."""
    source = typer.Argument(metavar="SOURCE", help=f"Model: {SOURCE_HELP}.  [env var: {PREFIX}SOURCE]")
    standalone = typer.Option("--standalone", help="One process, without Ray.")
    parameters = [
        keyword("source", Annotated[str | None, source]),
        keyword("standalone", Annotated[bool, standalone], default=False),
        *setting_parameters("source"),
    ]
    return command_from_parameters(serve, "serve", SERVE_HELP, parameters)


def _whole_paths(settings: Settings, bundle: Bundle) -> dict[str, Path | None]:
    """Paths that hold in a replica's working directory too."""
    keys = settings.api_keys_file
    return {
        "bundle": bundle.path,
        "cache_dir": settings.cache_dir.resolve(),
        "api_keys_file": None if keys is None else keys.resolve(),
    }


def _serve_standalone(settings: Settings, started_s: float) -> int:
    from service.standalone import serve_standalone

    return serve_standalone(settings, started_s)


def _serve_cluster(settings: Settings, started_s: float) -> int:
    from service.deployment import serve_cluster

    return serve_cluster(settings, started_s=started_s)
