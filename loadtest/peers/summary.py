"""From the cells of all rounds to rows and ratios. Pure; report.py and plot.py only lay out what is here."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.peers.contestants import UNCACHED
from loadtest.peers.results import Cell


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, and the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """The spread of the values that are there; None without any."""
        present = [value for value in values if value is not None]
        return cls(statistics.median(present), min(present), max(present)) if present else None


@dataclass(frozen=True)
class Row:
    """One contestant in one table. Seconds and bytes; None where nothing was measured."""

    contestant: str
    tokens_per_s: Spread | None
    ttft_p50_s: Spread | None
    ttft_p95_s: Spread | None
    inter_token_p50_s: Spread | None
    inter_token_p95_s: Spread | None
    cpu_s_per_1000_tokens: Spread | None
    peak_memory_bytes: Spread | None
    prompt_tokens: Spread | None
    answer_tokens: Spread | None
    foreign_cores: Spread | None
    num_errors: int
    failure: str | None


@dataclass(frozen=True)
class Ratio:
    """One Attend contestant over the best peer of each round, for one metric."""

    contestant: str
    metric: str
    against: str  # which peers, in words
    best_peers: tuple[str, ...]
    spread: Spread


METRICS: tuple[tuple[str, str, Callable[[Iterable[float]], float]], ...] = (
    ("output tok/s", "tokens_per_s", max),
    ("TTFT p50", "ttft_p50_s", min),
    ("inter-token p50", "inter_token_p50_s", min),
)


def table_keys(cells: Sequence[Cell]) -> list[tuple[str, int]]:
    """(scenario, streams) of each table, in the order of first appearance, by streams within a scenario."""
    scenarios = list(dict.fromkeys(cell.scenario for cell in cells))
    keys = {(cell.scenario, cell.num_streams) for cell in cells}
    return sorted(keys, key=lambda key: (scenarios.index(key[0]), key[1]))


def rows_of(cells: Sequence[Cell], scenario: str, num_streams: int) -> list[Row]:
    """One row per contestant, in the order of first appearance."""
    own = [cell for cell in cells if (cell.scenario, cell.num_streams) == (scenario, num_streams)]
    names = list(dict.fromkeys(cell.contestant for cell in own))
    return [_row(name, [cell for cell in own if cell.contestant == name]) for name in names]


def _row(name: str, cells: Sequence[Cell]) -> Row:
    good = [cell for cell in cells if cell.load is not None]

    def spread(key: str) -> Spread | None:
        return Spread.of(cell.load[key] for cell in good if cell.load is not None)

    return Row(
        contestant=name,
        tokens_per_s=spread("tokens_per_s"),
        ttft_p50_s=spread("ttft_p50_s"),
        ttft_p95_s=spread("ttft_p95_s"),
        inter_token_p50_s=spread("inter_token_p50_s"),
        inter_token_p95_s=spread("inter_token_p95_s"),
        cpu_s_per_1000_tokens=Spread.of(cell.cpu_s_per_1000_tokens for cell in good),
        peak_memory_bytes=Spread.of(float(cell.peak_memory_bytes) for cell in good),
        foreign_cores=Spread.of(cell.foreign_cores for cell in good),
        prompt_tokens=spread("prompt_tokens"),
        answer_tokens=spread("answer_tokens"),
        num_errors=sum(cell.load["num_errors"] for cell in good if cell.load is not None),
        failure=next((cell.failure for cell in cells if cell.failure), None),
    )


def ratios_of(cells: Sequence[Cell], scenario: str, num_streams: int) -> list[Ratio]:
    """Each Attend contestant over the best peer, round by round; with and without prefix caches where both ran."""
    own = [c for c in cells if (c.scenario, c.num_streams) == (scenario, num_streams) and c.load is not None]
    peers = [cell for cell in own if not cell.contestant.startswith("attend")]
    uncached = [cell for cell in peers if cell.contestant.endswith(UNCACHED)]
    groups = [("best peer", [cell for cell in peers if cell not in uncached])]
    if uncached:
        groups.append(("best peer without a prefix cache", uncached))
    attend = dict.fromkeys(cell.contestant for cell in own if cell.contestant.startswith("attend"))
    found = [
        _ratio(name, [cell for cell in own if cell.contestant == name], group, metric)
        for group in groups
        for name in attend
        for metric in METRICS
    ]
    return [ratio for ratio in found if ratio is not None]


def _ratio(
    name: str,
    ours: Sequence[Cell],
    group: tuple[str, Sequence[Cell]],
    metric: tuple[str, str, Callable[[Iterable[float]], float]],
) -> Ratio | None:
    label, key, best = metric
    ratios, best_peers = [], []
    for cell in ours:
        values = {
            peer.contestant: peer.load[key]
            for peer in group[1]
            if peer.round_number == cell.round_number and peer.load is not None and peer.load[key]
        }
        if values and cell.load is not None and cell.load[key]:
            best_value = best(values.values())
            ratios.append(cell.load[key] / best_value)
            best_peers.append(next(peer for peer, value in values.items() if value == best_value))
    spread = Spread.of(ratios)
    return None if spread is None else Ratio(name, label, group[0], tuple(dict.fromkeys(best_peers)), spread)
