"""The commands. Errors are one line and a non-zero exit; Ctrl-C stops whatever was started."""

import datetime
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from loadtest.peers import installation, weights
from loadtest.peers.benchmark import Benchmark, Plan
from loadtest.peers.contestants import Contestant, contestants
from loadtest.peers.hardware import cpu_flags, read_hardware
from loadtest.peers.installation import INSTALLATIONS, PeerError
from loadtest.peers.plot import svg
from loadtest.peers.prompts import SCENARIOS
from loadtest.peers.quality import measure_perplexity, text_windows
from loadtest.peers.report import grids, markdown
from loadtest.peers.results import Results

app = typer.Typer(
    help="Attend beside other LLM servers, on the same weights and the same CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DEFAULT_CACHE_DIR = Path(".cache/attend")
RESULTS_DIR = Path("loadtest/results")
CacheDir = Annotated[Path, typer.Option(envvar="ATTEND_CACHE_DIR", help="Where downloads, bundles and peers are kept.")]
Only = Annotated[str, typer.Option(help="Names of servers, or beginnings of names, separated by commas; empty: all.")]
Bundles = Annotated[list[Path] | None, typer.Option("--attend-bundle", help="A bundle to serve; may be repeated.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that each server computes with.")]
StartTimeout = Annotated[float, typer.Option(help="Longest start of a server, seconds (vLLM compiles the first time).")]
ResultFile = Annotated[Path, typer.Argument(help="A file that `run` wrote.")]
# Each peer with its fastest weights of like quality: where float32 has a perplexity of 18.4, 4 bits as OpenVINO
# (21.9) or ORT GenAI (24.1) make them lose too much.
DEFAULT_ONLY = "attend,llama.cpp,vLLM,OpenVINO GenAI int8,ORT GenAI int8,transformers serve"


def main() -> None:
    """Entry point: what a user can cause is one line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped then too
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (PeerError, OSError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"peers: {message}", err=True)
    sys.exit(1)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def install(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(INSTALLATIONS)}; none: all.")] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Make a virtual environment for each peer from pinned packages."""
    unknown = sorted(set(names or ()) - set(INSTALLATIONS))
    if unknown:
        raise PeerError(f"no peer is named {unknown[0]!r}; choose among {', '.join(INSTALLATIONS)}")
    installation.install(cache_dir, names or list(INSTALLATIONS), _say)


@app.command()
def prepare(cache_dir: CacheDir = DEFAULT_CACHE_DIR) -> None:
    """Make each peer's weights from the GGUF that Attend's default bundle comes from."""
    weights.prepare(cache_dir, _say)


@app.command()
def run(  # noqa: PLR0913, PLR0917 - each is an option of the command
    only: Only = DEFAULT_ONLY,
    scenarios: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(SCENARIOS),
    streams: Annotated[str, typer.Option(help="Requests at a time, separated by commas.")] = "1,4,16,64",
    rounds: Annotated[int, typer.Option(min=1, help="How often each server is measured, interleaved.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Window of a cell.")] = 20.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Load before the window of a cell, seconds.")] = 5.0,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    threads: Threads = 2,
    attend_bundle: Bundles = None,
    standalone: Annotated[bool, typer.Option("--standalone", help="Attend without Ray too.")] = False,
    seed: Annotated[str, typer.Option(help="Same seed, same prompts.")] = "0",
    quality_windows: Annotated[int, typer.Option(min=0, help="Windows of 512 tokens for perplexity; 0: none.")] = 2,
    start_timeout_s: StartTimeout = 900.0,
    out: Annotated[Path | None, typer.Option(help="Results; default: loadtest/results/peers-DATE.json.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables here too.")] = None,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Measure Attend and every installed peer, one at a time, interleaved over the rounds."""
    chosen = _choose(contestants(cache_dir, attend_bundle or [], cpu_flags()), only, standalone)
    plan = Plan(
        scenarios=tuple(_known_scenarios(scenarios)),
        num_streams=tuple(int(number) for number in streams.split(",")),
        num_rounds=rounds,
        num_threads=threads,
        max_tokens=max_tokens,
        window_s=seconds,
        longest_window_s=4 * seconds,
        warm_up_s=warm_up,
        drain_s=2 * seconds,
        start_timeout_s=start_timeout_s,
        seed=seed,
    )
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = out or RESULTS_DIR / f"peers-{started[:10]}.json"
    results = Results(started=started, hardware=asdict(read_hardware()), options=asdict(plan))
    with tempfile.TemporaryDirectory(prefix="attend-peers-") as logs:
        _say(f"logs of the servers in {logs} while this runs; results in {path}")
        Benchmark(plan, chosen, results, path, Path(logs), _say).run()
        if quality_windows:
            _measure_quality(results, chosen, cache_dir, quality_windows, Path(logs), plan)
            results.save(path)
    _show(results, markdown_file)


@app.command()
def quality(
    only: Only = "",
    num_windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of 512 tokens.")] = 2,
    threads: Threads = 2,
    attend_bundle: Bundles = None,
    start_timeout_s: StartTimeout = 900.0,
    cache_dir: CacheDir = DEFAULT_CACHE_DIR,
) -> None:
    """Perplexity of the weights that each server really runs."""
    windows = text_windows(weights.hugging_face_dir(cache_dir) / "tokenizer.json", num_windows)
    with tempfile.TemporaryDirectory(prefix="attend-peers-") as logs:
        for contestant in _choose(contestants(cache_dir, attend_bundle or [], cpu_flags()), only, standalone=False):
            if contestant.scoring == "none":
                continue
            log = Path(logs) / "quality.log"
            value = measure_perplexity(contestant, cache_dir, windows, log, start_timeout_s, threads)
            typer.echo(f"{contestant.name}: {value if isinstance(value, str) else f'{value:.4f}'}")


@app.command()
def tables(
    result_file: ResultFile,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write them here too.")] = None,
) -> None:
    """Show the tables of a run again."""
    _show(Results.load(result_file), markdown_file)


@app.command()
def plot(
    result_files: Annotated[list[Path], typer.Argument(help="Files that `run` wrote.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/peers.svg"),
) -> None:
    """Draw the output tokens per second of one or several runs as an SVG."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(svg(*map(Results.load, result_files)), encoding="utf-8")


def _choose(everybody: Sequence[Contestant], only: str, standalone: bool) -> list[Contestant]:
    """Those whose names begin with one of the names given; Attend without Ray only when asked for."""
    names = [name.strip().lower() for name in only.split(",") if name.strip()]
    for name in names:
        if not any(contestant.name.lower().startswith(name) for contestant in everybody):
            known = ", ".join(dict.fromkeys(contestant.name for contestant in everybody))
            raise PeerError(f"no server is named {name!r}; choose among {known}")
    chosen = [c for c in everybody if not names or any(c.name.lower().startswith(name) for name in names)]
    return [c for c in chosen if standalone or not c.name.startswith("attend standalone") or c.name.lower() in names]


def _known_scenarios(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or not names:
        raise PeerError(f"no scenario is named {(unknown or [''])[0]!r}; choose among {', '.join(SCENARIOS)}")
    return names


def _measure_quality(
    results: Results, chosen: Sequence[Contestant], cache_dir: Path, num_windows: int, logs: Path, plan: Plan
) -> None:
    windows = text_windows(weights.hugging_face_dir(cache_dir) / "tokenizer.json", num_windows)
    for contestant in chosen:
        _say(f"perplexity: {contestant.name}")
        log = logs / f"quality-{contestant.name.replace(' ', '-')}.log"
        results.perplexities[contestant.name] = measure_perplexity(
            contestant, cache_dir, windows, log, plan.start_timeout_s, plan.num_threads
        )


def _show(results: Results, markdown_file: Path | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180)
    for grid in grids(results):
        console.print(grid.rich())
    if markdown_file:
        markdown_file.write_text(markdown(results), encoding="utf-8")
