"""Results as tables: one grid of text per table, laid out for a terminal (rich) or as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from loadtest.peers.results import Results
from loadtest.peers.summary import Ratio, Row, Spread, ratios_of, rows_of, table_keys

COLUMNS = (
    "server",
    "output tok/s",
    "TTFT p50 / p95 s",
    "inter-token p50 / p95 ms",
    "CPU s per 1,000",
    "peak MB",
    "others' cores",
    "errors",
)
FAILURE_CHARACTERS = 120


@dataclass(frozen=True)
class Grid:
    """A titled table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For docs/benchmarks.md."""
        lines = [f"**{self.title}**", "", _line(self.columns), "|---" * len(self.columns) + "|"]
        return "\n".join([*lines, *(_line(row) for row in self.rows)]) + "\n"


def grids(results: Results) -> list[Grid]:
    """All tables of a run: per scenario and streams, then the ratios, then what was run."""
    keys = table_keys(results.cells)
    tables = [_cell_grid(results, scenario, num_streams) for scenario, num_streams in keys]
    ratios = [(key, ratio) for key in keys for ratio in ratios_of(results.cells, *key)]
    return [*tables, _ratio_grid(ratios), _contestant_grid(results)]


def markdown(results: Results) -> str:
    """A section for docs/benchmarks.md: hardware, tables, commands."""
    hardware, options = results.hardware, results.options
    intro = (
        f"Measured on {results.started[:10]}: {hardware['cpu']}, {hardware['num_cores']} cores "
        f"({', '.join(hardware['notable_flags'])}; no {', '.join(hardware['missing_flags'])}), "
        f"{hardware['memory_bytes'] / 2**30:.0f} GiB, load average before the run {hardware['load_average']:.1f}. "
        f"{options['num_threads']} threads each, {options['max_tokens']} tokens of answer, greedy, windows of "
        f"{options['window_s']:.0f} s or more, {options['num_rounds']} rounds interleaved: medians, in brackets the "
        "least and the most over the rounds. Peak memory is proportional set size. Others' cores: what neither the "
        "server nor the client used, in the worst round."
    )
    commands = "\n".join(f"# {name}\n{command}" for name, command in results.commands.items())
    tables = "\n".join(grid.markdown() for grid in grids(results))
    return f"{intro}\n\n{tables}\nCommands, from the repository's root:\n\n```bash\n{commands}\n```\n"


def _cell_grid(results: Results, scenario: str, num_streams: int) -> Grid:
    rows = rows_of(results.cells, scenario, num_streams)
    prompt = next((row.prompt_tokens for row in rows if row.prompt_tokens), None)
    about = f", {prompt.median:.0f} tokens of prompt" if prompt else ""
    streams = "1 stream" if num_streams == 1 else f"{num_streams} streams"
    return Grid(f"{scenario}: {streams}{about}", COLUMNS, tuple(_cell_row(row) for row in rows))


def _cell_row(row: Row) -> tuple[str, ...]:
    if row.tokens_per_s is None:
        return (row.contestant, f"failed: {str(row.failure)[:FAILURE_CHARACTERS]}", *[""] * (len(COLUMNS) - 2))
    errors = f"{row.num_errors}" + (" (a round failed)" if row.failure else "")
    return (
        row.contestant,
        _spread(row.tokens_per_s, lambda value: f"{value:.1f}"),
        f"{_median(row.ttft_p50_s, 1, 2)} / {_median(row.ttft_p95_s, 1, 2)}",
        f"{_median(row.inter_token_p50_s, 1000, 1)} / {_median(row.inter_token_p95_s, 1000, 1)}",
        _median(row.cpu_s_per_1000_tokens, 1, 1),
        _median(row.peak_memory_bytes, 1e-6, 0),
        "–" if row.foreign_cores is None else f"{row.foreign_cores.most:.1f}",  # noqa: RUF001 - a dash for nothing
        errors,
    )


def _ratio_grid(ratios: Sequence[tuple[tuple[str, int], Ratio]]) -> Grid:
    rows = tuple(
        (
            f"{scenario}, {num_streams}",
            ratio.contestant,
            ratio.metric,
            f"{ratio.against}: {', '.join(ratio.best_peers)}",
            _spread(ratio.spread, lambda value: f"{value:.2f}"),
        )
        for (scenario, num_streams), ratio in ratios
    )
    return Grid("Attend over the best peer of the same round", ("load", "server", "metric", "against", "ratio"), rows)


def _contestant_grid(results: Results) -> Grid:
    names = list(dict.fromkeys([*results.precisions, *results.perplexities]))
    rows = tuple(
        (
            name,
            results.precisions.get(name, ""),
            _perplexity(results.perplexities.get(name)),
            f"{results.start_s[name]:.0f}" if name in results.start_s else "",
            ", ".join(f"{package} {version}" for package, version in results.versions.get(name, {}).items()),
            results.failures.get(name) or results.notes.get(name, ""),
        )
        for name in names
    )
    return Grid("What ran", ("server", "weights", "perplexity", "start s", "versions", "note"), rows)


def _perplexity(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3f}"


def _median(spread: Spread | None, factor: float, digits: int) -> str:
    return "–" if spread is None else f"{spread.median * factor:.{digits}f}"  # noqa: RUF001 - a dash for nothing


def _spread(spread: Spread, text: Callable[[float], str]) -> str:
    if spread.least == spread.most:
        return text(spread.median)
    return f"{text(spread.median)} ({text(spread.least)} to {text(spread.most)})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
