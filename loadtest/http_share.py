"""What HTTP, HAProxy and Ray leave of the engine's speed: `python -m loadtest.http_share`.

The same closed loops, prompts and number of tokens three ways, in turn, over several rounds: straight into the engine's
loop in one process ("engine"), over HTTP into one process ("standalone"), and over HTTP through HAProxy into a
replica of Ray Serve ("ray"). The load client is a process of its own in the last two, on the same processors.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.peers.answer import Answer, Observation
from loadtest.peers.benchmark import watch_load
from loadtest.peers.client import Job, LoadClient
from loadtest.peers.contestants import contestants
from loadtest.peers.measurement import load_of
from loadtest.peers.server import running_server
from model.bundle import open_bundle
from model.bundle_writer import default_bundle_path
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.app import build_app
from service.engine.loop import EngineLoop
from service.engine.request import Request, StopConditions
from service.settings import Settings

WAYS = ("engine", "standalone", "ray")
CACHE_DIR = Path(".cache/attend")
DEFAULT_BUNDLE = default_bundle_path(CACHE_DIR)


class EngineClient(LoadClient):
    """The load client without HTTP: each prompt goes into the engine's loop as token ids."""

    def __init__(self, job: Job, engine_loop: EngineLoop, tokenizer: Tokenizer) -> None:
        super().__init__(job)
        self._engine_loop = engine_loop
        self._tokenizer = tokenizer

    async def ask(self, prompt: str) -> str | None:
        """Run one request to its end."""
        answer = Answer(time.monotonic())
        self.answers.append(answer)
        request = Request(
            request_id=f"request-{len(self.answers)}",
            prompt_ids=tuple(self._tokenizer.encode(prompt)),
            sampling=SamplingParams(temperature=0.0),
            stop=StopConditions(max_tokens=self.job.max_tokens),
            detokenizer=self._tokenizer.incremental(),
        )
        async for event in self._engine_loop.submit(request).events():
            answer.failure = event.error
            if event.text:
                answer.pieces_s.append(time.monotonic())
        answer.ended_s = time.monotonic()
        answer.prompt_tokens, answer.completion_tokens = request.num_prompt_tokens, request.num_generated
        return answer.failure


def main(
    bundle: Annotated[Path, typer.Option(help="What to serve.")] = DEFAULT_BUNDLE,
    scenario: Annotated[str, typer.Option(help="Of loadtest.peers.")] = "medium",
    streams: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Window of one measurement.")] = 20.0,
) -> None:
    """Measure and print; tokens per second and their ratio to the engine's within each round."""
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    job = Job(0, "", scenario, "", streams, 64, 4.0, seconds, 4 * seconds, 2 * seconds, {"ignore_eos": True})
    for number in range(rounds):
        for way in WAYS:
            seeded = replace(job, seed=f"share/{number}")
            observation = _of_engine(bundle, seeded) if way == "engine" else _over_http(bundle, seeded, way)
            speeds[way].append(load_of(observation).tokens_per_s)
            typer.echo(f"round {number + 1}: {way}: {speeds[way][-1]:.1f} tok/s", err=True)
    table = Table(title=f"{scenario}, {streams} streams, {rounds} rounds")
    for column in ("way", "tok/s", "of the engine", "least-most"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way in WAYS:
        shares = [speed / base for speed, base in zip(speeds[way], speeds["engine"], strict=True)]
        spread = f"{min(shares):.0%}-{max(shares):.0%}"
        table.add_row(way, f"{statistics.median(speeds[way]):.1f}", f"{statistics.median(shares):.0%}", spread)
    Console().print(table)


def _over_http(bundle: Path, job: Job, way: str) -> Observation:
    wanted = "attend standalone" if way == "standalone" else "attend"
    entrants = contestants(CACHE_DIR, [bundle], frozenset())
    contestant = next(c for c in entrants if c.name == f"{wanted} {bundle.name}")
    with (
        tempfile.TemporaryDirectory(prefix="attend-share-") as logs,
        running_server(contestant, 2, job.num_streams, Path(logs) / "server.log", 120.0) as server,
    ):
        return watch_load(replace(job, port=server.port, model=server.model), server.tree)[0]


def _of_engine(bundle: Path, job: Job) -> Observation:
    """In a fresh process, as a server is."""
    command = [sys.executable, "-m", "loadtest.http_share", str(bundle)]
    run = subprocess.run(command, input=json.dumps(asdict(job)), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"http_share: the engine's own run failed: {run.stderr.strip().splitlines()[-1]}")
    observed: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    answers = [Answer(**answer) for answer in observed.pop("answers")]
    return Observation(**observed, answers=answers)


def _run_engine(path: Path) -> None:
    """The child: the app's own engine and settings, driven without its HTTP routes."""
    bundle = open_bundle(path)
    loop: EngineLoop = build_app(Settings(bundle=path, threads=2)).state.runtime.engine_loop
    loop.start()
    job = Job(**json.load(sys.stdin))
    observation = asyncio.run(EngineClient(job, loop, Tokenizer(bundle.tokenizer_json)).run())
    loop.stop()
    print(json.dumps(asdict(observation)))


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        _run_engine(Path(sys.argv[1]))
    else:
        typer.run(main)
