"""The `attend` command: export, serve, generate, bench. Errors are one line and a non-zero exit, never a traceback."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from model.bundle import BundleError
from model.chat import ChatTemplateError
from model.config import UnsupportedModelError
from model.precision import DEFAULT_PRECISION, PRECISION_NAMES
from model.tokenizer import TokenizerError
from service.settings import Settings, unknown_variables

app = typer.Typer(
    name="attend",
    help="An LLM serving microservice that you can look inside.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Measure.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

CacheDir = Annotated[Path, typer.Option(envvar="ATTEND_CACHE_DIR", help="Downloads and default bundles.")]
DEFAULT_CACHE_DIR = Path(".cache/attend")
# Every error that a user can cause, by name and not by class where the class lives behind a heavy import.
USER_ERRORS: tuple[type[Exception], ...] = (
    BundleError,
    ChatTemplateError,
    TokenizerError,
    UnsupportedModelError,
    MemoryError,
    OSError,
)
USER_ERROR_NAMES = frozenset(
    {
        "BenchError",
        "CheckpointError",
        "DecoderError",
        "ExportError",
        "InvalidRequestError",
        "KeyRingError",
        "ServeError",
    }
)
EXPORT_EXTRA = {"gguf", "onnx", "onnxscript", "safetensors", "torch"}


def main() -> None:
    """Entry point: run a command and turn what a user can cause into one line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        _fail(_missing_module(error))
    except Exception as error:
        if isinstance(error, USER_ERRORS) or type(error).__name__ in USER_ERROR_NAMES:
            _fail(str(error))
        raise


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="`default`, a Hugging Face folder, a .gguf file, or hf:org/name.")],
    out: Annotated[Path | None, typer.Option(help="Bundle folder; for `default` it may be left out.")] = None,
    precision: Annotated[str, typer.Option(help=f"One of: {', '.join(PRECISION_NAMES)}.")] = DEFAULT_PRECISION,
    device: Annotated[str, typer.Option(help="Where the bundle will run: cpu.")] = "cpu",
    model_id: Annotated[str | None, typer.Option(help="Name to serve it under; default: from SOURCE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another bundle in the folder.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Turn a checkpoint into a bundle; an up-to-date one is reused."""
    from model.bundle_writer import ExportRequest, default_bundle_path, export_bundle
    from model.checkpoint import DEFAULT_SOURCE

    if out is None and source != DEFAULT_SOURCE:
        _fail("--out is missing; name the folder that the bundle is written to")
    target = out or default_bundle_path(cache_dir, precision)
    request = ExportRequest(source, target, precision, device, model_id, force=force)
    with _stages() as say:
        bundle = export_bundle(request, cache_dir, say)
    size_mb = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    print(f"{bundle.path}: {bundle.config.model_id}, {precision}, {size_mb:.0f} MB, licence {bundle.manifest.licence}")


def serve(**options: Any) -> None:
    """Serve a bundle over HTTP, under Ray Serve unless --standalone."""
    from service.api.keys import read_keys

    standalone = options.pop("standalone")
    settings = _read_settings(options)
    settings = settings.model_copy(update=_whole_paths(settings))
    read_keys(settings)  # a replica would find a bad key too, but only seconds after Ray has started
    sys.exit(_serve_standalone(settings) if standalone else _serve_cluster(settings))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    bundle: Annotated[Path | None, typer.Option(envvar="ATTEND_BUNDLE", help="Bundle folder.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Mass of the nucleus, above 0 to 1.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same answer.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Print the model's answer as it is made, without a server."""
    from model.sampling import SamplingParams
    from service.local import LocalModel

    try:
        sampling = SamplingParams(temperature, top_p, seed)
    except ValueError as error:
        _fail(str(error))
    model = LocalModel.load(_bundle_path(bundle, cache_dir))
    for piece in model.generate(prompt, max_tokens, sampling, use_template=not raw):
        print(piece, end="", flush=True)
    print()


@bench_app.command()
def quality(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders; the first one is the reference.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file; default: Python's language reference.")] = None,
    max_tokens: Annotated[int, typer.Option(min=512, help="Tokens of the text to score.")] = 6144,
) -> None:
    """Print what each bundle's precision costs: perplexity, agreement with the first, memory, relative speed."""
    from service.bench.quality import quality_table

    with _stages() as say:
        table = quality_table(bundles, text, max_tokens, say)
    Console().print(table)


@bench_app.command("engine")
def bench_engine(
    bundle: Annotated[Path | None, typer.Option(envvar="ATTEND_BUNDLE", help="Bundle folder.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the ONNX session; 0: the cores.")] = 0,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Print step time, time inside the ONNX session and the rest, for 1 to 32 rows."""
    from service.bench.engine import engine_table

    with _stages() as say:
        table = engine_table(_bundle_path(bundle, cache_dir), threads, say)
    Console().print(table)


@bench_app.command("stall")
def bench_stall(
    bundle: Annotated[Path | None, typer.Option(envvar="ATTEND_BUNDLE", help="Bundle folder.")] = None,
    chunk_tokens: Annotated[int, typer.Option(min=8, help="Prompt tokens computed in one step.")] = 256,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the ONNX session; 0: the cores.")] = 0,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Print what a prompt of 6,000 tokens does to a running stream and to a short prompt."""
    from service.bench.stall import stall_table

    with _stages() as say:
        table = stall_table(_bundle_path(bundle, cache_dir), chunk_tokens, threads, say)
    Console().print(table)


@bench_app.command("speculation")
def bench_speculation(
    bundle: Annotated[Path | None, typer.Option(envvar="ATTEND_BUNDLE", help="Bundle folder.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the ONNX session; 0: the cores.")] = 0,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Print what speculation by prompt lookup saves, and how often it changes an answer."""
    from service.bench.speculation import speculation_table

    with _stages() as say:
        table = speculation_table(_bundle_path(bundle, cache_dir), threads, say)
    Console().print(table)


def _whole_paths(settings: Settings) -> dict[str, Path | None]:
    """Paths that hold in a replica's working directory too."""
    keys = settings.api_keys_file
    return {
        "bundle": _bundle_path(settings.bundle, settings.cache_dir),
        "cache_dir": settings.cache_dir.resolve(),
        "api_keys_file": None if keys is None else keys.resolve(),
    }


def _bundle_path(bundle: Path | None, cache_dir: Path) -> Path:
    """The bundle named, or else the default model's, which must have been exported."""
    if bundle is not None:
        return bundle.resolve()
    path = cache_dir / "bundles" / f"default-{DEFAULT_PRECISION}"
    if not path.is_dir():
        raise BundleError(f"no bundle given and none at {path}; make one with `attend export default`")
    return path.resolve()


def _serve_standalone(settings: Settings) -> int:
    from service.standalone import serve_standalone

    return serve_standalone(settings)


def _serve_cluster(settings: Settings) -> int:
    from model.bundle import open_bundle
    from service.deployment import serve_cluster

    assert settings.bundle is not None
    open_bundle(settings.bundle)  # a replica would find out too, but only seconds after Ray has started
    return serve_cluster(settings)


def _read_settings(options: dict[str, Any]) -> Settings:
    """Settings from the environment, overridden by the options that were given."""
    if unknown := unknown_variables(os.environ):
        _fail(f"{unknown[0]} is not a setting; `attend serve --help` lists them (ATTEND_PORT is --port, and so on)")
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')} (ATTEND_{name.upper()})"
        _fail(f"{flag} is {first['input']!r}: {first['msg']}")


def _option(name: str, info: FieldInfo) -> inspect.Parameter:
    """One setting as a command-line option of the same name; its value is checked by Settings."""
    default = "" if info.default is None else f" Default: {info.default}."
    flag = f"--{name.replace('_', '-')}"
    is_switch = info.annotation is bool
    spelling = f"{flag}/--no-{flag.removeprefix('--')}" if is_switch else flag
    option = typer.Option(spelling, help=f"{info.description}{default}", show_default=False)
    annotation = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `serve` one option for each setting, so that a setting is stated once, in settings.py.

    But for `api_keys`: a command line is there for every user of the machine to read.
    """
    standalone = inspect.Parameter(
        "standalone",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--standalone", help="One process, without Ray.")],
    )
    parameters = [
        standalone,
        *(_option(name, info) for name, info in Settings.model_fields.items() if name != "api_keys"),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect's documented hook
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


app.command()(_with_settings_options(serve))


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Show the current stage: a spinner on a terminal, a line each elsewhere. Notes stay on the screen."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(line: str) -> None:
            if line.startswith("note: "):
                progress.console.print(line, markup=False, highlight=False)
            else:
                progress.update(task, description=line)

        yield show


def _missing_module(error: ModuleNotFoundError) -> str:
    name = (error.name or "").split(".")[0]
    if name in EXPORT_EXTRA:
        return f"exporting needs {name}; install it with `pip install 'attend[export]'`"
    if name == "onnxruntime":
        return "ONNX Runtime is not installed; install it with `pip install 'attend[cpu]'` (or `attend[gpu]`)"
    return f"the Python module {name!r} is missing; install Attend again"


def _fail(message: str) -> NoReturn:
    """One line to stderr, exit status 1."""
    print(f"attend: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
