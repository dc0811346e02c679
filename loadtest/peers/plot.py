"""Results as one SVG: output tokens per second, a panel per scenario, a group of bars per number of streams."""

from collections.abc import Sequence
from html import escape

from loadtest.peers.results import Results
from loadtest.peers.summary import Row, rows_of, table_keys

COLOURS = ("#0b6e4f", "#73c48f", "#c8553d", "#3a6ea5", "#e0a030", "#8a5a9e", "#7a7a7a", "#b0b0b0", "#d08aa0", "#5a9aa0")
PANEL_HEIGHT, BAR_WIDTH, GROUP_GAP, MARGIN, TITLE_HEIGHT, LEGEND_LINE = 150, 16, 26, 50, 30, 18


def svg(*runs: Results) -> str:
    """The picture of one or several runs; numbers stand above the bars, so that nothing needs a grid."""
    cells = [cell for run in runs for cell in run.cells]
    keys = table_keys(cells)
    scenarios = list(dict.fromkeys(scenario for scenario, _ in keys))
    names = list(dict.fromkeys(cell.contestant for cell in cells if cell.load is not None))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    panels = [(s, [(n, _measured(rows_of(cells, s, n))) for s2, n in keys if s2 == s]) for s in scenarios]
    width = 2 * MARGIN + max((_panel_width(groups) for _, groups in panels), default=0)
    parts, top = [], 10
    for scenario, groups in panels:
        parts.append(_panel(scenario, groups, colours, top))
        top += PANEL_HEIGHT + 2 * TITLE_HEIGHT + 10
    for number, name in enumerate(names):
        y = top + number * LEGEND_LINE
        parts.append(f'<rect x="{MARGIN}" y="{y}" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(f'<text x="{MARGIN + 18}" y="{y + 10}">{escape(name)}</text>')
    height = top + len(names) * LEGEND_LINE + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.tokens_per_s is not None]


def _panel_width(groups: Sequence[tuple[int, Sequence[Row]]]) -> int:
    return sum(max(len(rows), 3) * BAR_WIDTH + GROUP_GAP for _, rows in groups)


def _panel(scenario: str, groups: Sequence[tuple[int, Sequence[Row]]], colours: dict[str, str], top: int) -> str:
    values = [row.tokens_per_s.median for _, rows in groups for row in rows if row.tokens_per_s]
    scale = PANEL_HEIGHT / max([*values, 1.0])
    floor, left = top + TITLE_HEIGHT + PANEL_HEIGHT, MARGIN
    parts = [f'<text x="{MARGIN}" y="{top + 12}" font-weight="bold">{escape(scenario)}: output tokens/s</text>']
    for num_streams, rows in groups:
        for number, row in enumerate(rows):
            assert row.tokens_per_s is not None
            height = row.tokens_per_s.median * scale
            x, y = left + number * BAR_WIDTH, floor - height
            parts.append(
                f'<rect x="{x}" y="{y:.1f}" width="{BAR_WIDTH - 2}" height="{height:.1f}" '
                f'fill="{colours[row.contestant]}"><title>{escape(row.contestant)}</title></rect>'
            )
            label = f"{row.tokens_per_s.median:.0f}"
            parts.append(f'<text x="{x + 7}" y="{y - 3:.1f}" font-size="8" text-anchor="middle">{label}</text>')
        streams = "1 stream" if num_streams == 1 else f"{num_streams} streams"
        parts.append(f'<text x="{left}" y="{floor + 14}">{streams}</text>')
        left += max(len(rows), 3) * BAR_WIDTH + GROUP_GAP
    parts.append(f'<line x1="{MARGIN}" y1="{floor}" x2="{left}" y2="{floor}" stroke="#444"/>')
    return "\n".join(parts)
