"""The `attend` command: its sub-commands, and its errors: one line and a non-zero exit, never a traceback."""

import contextlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer

from model.errors import UserError
from service.cli import bench, serve
from service.cli.export import export
from service.cli.generate import ChatOptions, GenerateOptions, chat, generate
from service.cli.options import USAGE_STATUS, command_from_fields, help_without_command, new_app
from service.source import EXPORT_MODULES, missing_export_message

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def main() -> None:
    """Entry point: run a command and turn what a user can cause into one line."""
    try:
        status = build_app()(prog_name="attend", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except typer.TyperException as error:
        _fail_usage(error)
    except ModuleNotFoundError as error:
        _fail(_missing_module(error))
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, MemoryError, OSError) as error:
        _fail(str(error) or type(error).__name__)
    sys.exit(status if isinstance(status, int) else 0)


def build_app() -> typer.Typer:
    """The command with its sub-commands."""
    app = new_app("An LLM serving microservice that you can look inside.", _options)
    app.command()(export)
    app.command()(serve.build_command())
    app.command()(command_from_fields(generate, GenerateOptions))
    app.command()(command_from_fields(chat, ChatOptions))
    app.add_typer(bench.build_app(), name="bench")
    return app


def version_line() -> str:
    """`attend 0.1.0 (onnxruntime 1.32.0)`."""
    runtime = "no onnxruntime"
    for name in RUNTIMES:
        with contextlib.suppress(PackageNotFoundError):
            runtime = f"{name} {version(name)}"
    return f"attend {version('attend')} ({runtime})"


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        print(version_line())
        raise typer.Exit


def _options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    help_without_command(context)


def _missing_module(error: ModuleNotFoundError) -> str:
    name = (error.name or "").split(".")[0]
    if name in EXPORT_MODULES:
        return missing_export_message(name)
    if name == "onnxruntime":
        return "ONNX Runtime is not installed; install it with `pip install 'attend[cpu]'` (or `attend[gpu]`)"
    return f"the Python module {name!r} is missing; install Attend again"


def _fail_usage(error: typer.TyperException) -> NoReturn:
    """A command line that cannot be read: what is wrong, and where the right ones are listed."""
    command = getattr(getattr(error, "ctx", None), "command_path", "attend")
    _fail(f"{error.format_message().rstrip('.')}; `{command} --help` lists what there is", USAGE_STATUS)


def _fail(message: str, status: int = 1) -> NoReturn:
    """One line to stderr, and out."""
    print(f"attend: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
