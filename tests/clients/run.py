"""Run the real clients against `attend serve --standalone` and print a table: which client could do what.

Usage: python -m tests.clients.run [NAME…] [--url URL] [--record FILE]
Each client is a script of tests/clients/agents or tests/clients/js, run in an environment of its own that may reach
nothing but this machine. `--record` writes every request and its answer to a file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from model.bundle_writer import ExportRequest, default_bundle_path, export_bundle
from model.precision import DEFAULT_PRECISION
from tests.clients.capabilities import CAPABILITIES, ONLY, Outcome, outcome_of
from tests.support.client_environments import find_node, node_environment, python_environment
from tests.support.recording_proxy import recording_proxy
from tests.support.server import running_server

ROOT = Path(__file__).parents[2]
KEY = "key-of-the-clients-0123456789"
WITH_KEY = "with a key"
COLUMNS = (*CAPABILITIES, WITH_KEY)
SCRIPT_TIMEOUT_S = 600.0
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
CLOSED_NETWORK = {
    **{name: NOWHERE for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")},
    "no_proxy": "127.0.0.1",
    "NO_PROXY": "127.0.0.1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "INSPECT_DISPLAY": "none",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Client:
    """A script and the environment that it runs in; None is that of Node."""

    name: str
    script: str
    environment: str | None


CLIENTS = (
    Client("openai-2", "openai_client", "openai-2"),
    Client("openai", "openai_client", "openai"),
    Client("openai-node", "openai_agent.mjs", None),
    Client("ai-sdk", "ai_agent.mjs", None),
    Client("instructor", "instructor_client", "instructor"),
    Client("langchain", "langchain_client", "langchain"),
    Client("pydantic-ai", "pydantic_ai_client", "pydantic-ai"),
    Client("openai-agents", "openai_agents_client", "openai-agents"),
    Client("autogen", "autogen_client", "autogen"),
    Client("semantic-kernel", "semantic_kernel_client", "semantic-kernel"),
    Client("inspect-ai", "inspect_ai_client", "inspect-ai"),
    Client("llama-index", "llama_index_client", "llama-index"),
    Client("llm", "llm_client", "llm"),
    Client("litellm", "litellm_client", "litellm"),
)


def main() -> int:
    """Install, run, report; 0 when every check of every client passed."""
    arguments = parsed_arguments()
    chosen = [client for client in CLIENTS if not arguments.names or client.name in arguments.names]
    cache_dir = Path(os.environ.get("ATTEND_CACHE_DIR", ".cache/attend")).resolve()
    commands = {client: installed(client, cache_dir) for client in chosen}
    if arguments.url is not None:
        outcomes = all_outcomes(commands, arguments.url, arguments.record, {})
    else:
        path = default_bundle_path(cache_dir, DEFAULT_PRECISION)
        bundle = export_bundle(ExportRequest("default", path, DEFAULT_PRECISION), cache_dir)
        with started_service(bundle.path) as url:
            outcomes = all_outcomes(commands, url, arguments.record, {})
        with started_service(bundle.path, KEY) as url:
            again = all_outcomes(commands, url, None, {ONLY: "plain", "OPENAI_API_KEY": KEY})
        outcomes += [replace(outcome, capability=WITH_KEY) for outcome in again]
    print(table(outcomes))
    return 1 if any(outcome.error for outcome in outcomes) else 0


def parsed_arguments() -> argparse.Namespace:
    """The command line."""
    names = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(description="Run the real clients against Attend with the default model.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all if none is given")
    parser.add_argument("--url", help="a service that runs already, as http://127.0.0.1:8000; else one is started")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append each request and its answer to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return arguments


def installed(client: Client, cache_dir: Path) -> list[str]:
    """Install what a client needs and return the command that runs it."""
    print(f"installing {client.name}", file=sys.stderr, flush=True)
    if client.environment is None:
        return [find_node(), str(node_environment(cache_dir) / client.script)]
    return [str(python_environment(cache_dir, client.environment)), "-m", f"tests.clients.agents.{client.script}"]


@contextmanager
def started_service(bundle: Path, key: str | None = None) -> Iterator[str]:
    """A server with the default settings, closed to those without the key if one is given; yields its URL."""
    for name in [name for name in os.environ if name.startswith("ATTEND_") and name != "ATTEND_CACHE_DIR"]:
        del os.environ[name]  # a server started here inherits the others
    if key is not None:
        os.environ["ATTEND_API_KEYS"] = f"clients:{key}"
    with running_server("--standalone", "--bundle", bundle) as server:
        yield server.url


def all_outcomes(
    commands: Mapping[Client, Sequence[str]], url: str, record: Path | None, fields: Mapping[str, str]
) -> list[Outcome]:
    """Run the clients one after the other, through a proxy that records them if that is asked for."""
    if record is None:
        return [o for client, command in commands.items() for o in outcomes_of(client, command, url, fields)]
    with recording_proxy(url, record) as proxy:
        places = {client: f"{proxy}/{client.name}" for client in commands}
        return [o for client, command in commands.items() for o in outcomes_of(client, command, places[client], fields)]


def outcomes_of(client: Client, command: Sequence[str], url: str, fields: Mapping[str, str]) -> list[Outcome]:
    """Run a client's script; what it reports, and one failure more if it did not come to its end."""
    print(f"running {client.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as home:
        done = _finished(command, {**client_environment(url, home), **fields})
    outcomes = [outcome for line in done.stdout.splitlines() if (outcome := outcome_of(line))]
    if done.returncode or not outcomes:
        outcomes.append(Outcome(client.name, CAPABILITIES[0], f"ended with {done.returncode}", done.stderr))
    return outcomes


def client_environment(url: str, home: str) -> dict[str, str]:
    """The variables of a client's process: where the service is, and no way to anywhere else."""
    place = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "unused", "HOME": home}
    return {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | CLOSED_NETWORK | place


def _finished(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=SCRIPT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return subprocess.CompletedProcess(command, -1, output, f"not done in {SCRIPT_TIMEOUT_S:.0f} s")


def table(outcomes: Sequence[Outcome]) -> str:
    """Rows of clients, columns of capabilities; under it what failed, with the end of its trace."""
    rows = list(dict.fromkeys(outcome.row for outcome in outcomes))
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'  '.join(COLUMNS)}"]
    for row in rows:
        cells = [f"{_cell(outcomes, row, column):{len(column)}}" for column in COLUMNS]
        lines.append(f"{row:{width}}  {'  '.join(cells)}".rstrip())
    failures = [outcome for outcome in outcomes if outcome.error]
    for outcome in failures:
        lines += ["", f"{outcome.row}, {outcome.capability}: {outcome.error}", *outcome.trace.splitlines()[-6:]]
    return "\n".join([*lines, "", f"{len(outcomes) - len(failures)} of {len(outcomes)} checks passed"])


def _cell(outcomes: Sequence[Outcome], row: str, column: str) -> str:
    errors = [outcome.error for outcome in outcomes if (outcome.row, outcome.capability) == (row, column)]
    if not errors:
        return "-"
    return "FAILED" if any(errors) else "ok"


if __name__ == "__main__":
    sys.exit(main())
