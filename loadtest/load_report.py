"""The verdict on a climb: the thresholds that it missed, its table, and its files beside Locust's report."""

import csv
import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path

from loadtest.load_steps import Step, find_knee

REPORT_BODY = '<div id="root"></div>'  # where Locust's report draws itself


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What a climb must keep for its run to pass."""

    max_error_rate: float = 0.0  # share of the requests of any step, 0-1
    ttft_at: int = 0  # streams of the step whose TTFT is judged; 0: none
    max_ttft_p95_s: float = 0.0

    def missed(self, steps: Sequence[Step]) -> list[str]:
        """Returns a line for each threshold that the steps miss; one that could not be measured is missed too."""
        lines = [self._error_line(step) for step in steps if step.error_rate > self.max_error_rate]
        if not any(step.num_requests for step in steps):
            lines.append("no request came to an end, good or bad; longer steps are needed, or a service that answers")
        if self.ttft_at:
            lines += self._ttft_lines(steps)
        return lines

    def _error_line(self, step: Step) -> str:
        return (
            f"error rate at {step.load} is {step.error_rate:.2%} "
            f"({step.num_failed} of {step.num_requests} requests); allowed is {self.max_error_rate:.2%}"
        )

    def _ttft_lines(self, steps: Sequence[Step]) -> list[str]:
        allowed = f"allowed is {self.max_ttft_p95_s:g} s"
        judged = next((step for step in steps if step.num_streams == self.ttft_at), None)
        if judged is None:
            return [f"TTFT p95 was not measured, the run ended below {self.ttft_at} streams; {allowed}"]
        if judged.ttft_p95_s is None:
            return [f"TTFT p95 at {judged.load} was not measured, no request of its settled time got one; {allowed}"]
        if judged.ttft_p95_s > self.max_ttft_p95_s:
            return [f"TTFT p95 at {judged.load} is {judged.ttft_p95_s:.3f} s; {allowed}"]
        return []


def steps_table(steps: Sequence[Step]) -> str:
    """Returns the steps as lines of text, the knee marked."""
    knee = find_knee(steps)
    header = (
        f"{'streams':>7} {'tokens/s':>9} {'TTFTs':>6} {'p50':>10} {'p95':>10} {'inter-token p50':>16} {'p95':>10} "
        f"{'requests':>9} {'failed':>7} {'refused':>8}"
    )
    lines = [_row(step) + ("  <- knee" if index == knee else "") for index, step in enumerate(steps)]
    return "\n".join([header, *lines])


def _row(step: Step) -> str:
    return (
        f"{step.num_streams:>7} {step.output_tokens_per_s:>9.1f} {step.num_ttfts:>6} "
        f"{_ms(step.ttft_p50_s):>10} {_ms(step.ttft_p95_s):>10} "
        f"{_ms(step.inter_token_p50_s):>16} {_ms(step.inter_token_p95_s):>10} "
        f"{step.num_requests:>9} {step.error_rate:>7.1%} {step.num_refused:>8}"
    )


def _ms(time_s: float | None) -> str:
    return "-" if time_s is None else f"{time_s * 1000:.1f} ms"


def write_files(report: Path, steps: Sequence[Step], missed: Sequence[str]) -> list[Path]:
    """Writes the steps beside Locust's HTML report, as CSV and JSON, and their table into it; returns all three."""
    knee = find_knee(steps)
    rows = [{**dataclasses.asdict(step), "is_knee": index == knee} for index, step in enumerate(steps)]
    csv_path = report.with_name(f"{report.stem}-steps.csv")
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*(column.name for column in dataclasses.fields(Step)), "is_knee"])
        writer.writeheader()
        writer.writerows(rows)
    json_path = report.with_name(f"{report.stem}-steps.json")
    json_path.write_text(json.dumps({"steps": rows, "missed": list(missed)}, indent=2) + "\n", encoding="utf-8")
    _insert_table(report, "\n".join([steps_table(steps), *(f"missed: {line}" for line in missed)]))
    return [report, csv_path, json_path]


def _insert_table(report: Path, table: str) -> None:
    block = f'<pre style="margin: 2em">{html.escape(table)}</pre>'
    page = report.read_text(encoding="utf-8")
    report.write_text(page.replace(REPORT_BODY, block + REPORT_BODY, 1), encoding="utf-8")
