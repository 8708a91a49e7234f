# SPDX-License-Identifier: Apache-2.0
"""Why speculation did what it did, in words and tables: costs, acceptance and reasons of a run."""

from __future__ import annotations

from collections.abc import Sequence

from pyspec.engine.statistics import Acceptance, DraftCounts, Statistics
from pyspec.trees.planner import Planner

SIZES = (1, 2, 4, 8, 16, 32, 64)
MOST_DEPTHS = 8


def explanation(statistics: Statistics, planner: Planner, context: int = 64) -> str:
    """The text. Costs are those of one request behind `context` tokens, as they are known now."""
    parts = [_summary(statistics), _costs(planner, context)]
    for name, counts in statistics.drafts.items():
        if name:
            parts.append(_draft(name, counts, planner))
    parts.append(_counted("Why, by requests and steps", statistics.reasons))
    if statistics.failures:
        parts.append(_counted("Refused proposals", statistics.failures))
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(statistics: Statistics) -> str:
    if not statistics.steps:
        return "Nothing has been decoded yet."
    lines = [
        f"{statistics.emitted} tokens in {statistics.steps} steps: {statistics.tokens_per_step:.2f} tokens a step."
    ]
    ratio = statistics.ratio_to_plain
    if ratio is not None:
        lines.append(
            f"About {ratio:.2f} times the speed of plain decoding, by the table below (an estimate)."
        )
    total = sum(statistics.seconds.values())
    if total > 0:
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in statistics.seconds.items())
        lines.append(f"Time: {shares}; {1e3 * total / statistics.steps:.2f} ms a step and request.")
    return "\n".join(lines)


def _costs(planner: Planner, context: int) -> str:
    cost = planner.cost
    most = max(SIZES[1], cost.table.nodes[-1])
    sizes = [n for n in SIZES if n <= most]
    curve = cost.curve(1, sizes[-1], context, 1)
    seconds = [float(curve[n - 1]) + cost.verify_seconds("greedy", n) for n in sizes]
    rows = [
        (str(n), f"{1e3 * s:.2f}", f"{s / seconds[0]:.2f}", f"{s / seconds[0] - 1:.2f}")
        for n, s in zip(sizes, seconds, strict=True)
    ]
    text = f"What a step costs (one greedy request, context {context}); the machine runs at {1 / cost.drift:.2f} times the speed it was measured at"
    return _table(text, ("nodes", "ms", "of plain", "must accept"), rows)


def _draft(name: str, counts: DraftCounts, planner: Planner) -> str:
    lines = [
        f"Draft {name}: {counts.drafted} tokens proposed in {counts.steps} steps, {counts.verified} verified, "
        f"{counts.accepted} accepted; {counts.tokens_per_step:.2f} tokens a step."
    ]
    for part in name.split("+"):
        known = planner.drafts.get(part)
        if known is not None and known.calls:
            levels = f", {known.levels:.1f} levels" if known.levels else ""
            lines.append(
                f"A call of {part} takes {1e3 * known.seconds(1):.2f} ms{levels}; {known.calls} calls."
            )
    lines.append(_rates("Accepted by depth:", counts.by_depth()))
    lines.append(_rates("Accepted by rank: ", counts.by_rank()))
    return "\n".join(line for line in lines if line)


def _rates(title: str, cells: Sequence[Acceptance]) -> str:
    if not cells:
        return ""
    shown = [f"{cell.rate:.0%} ({cell.accepted}/{cell.tried})" for cell in cells[:MOST_DEPTHS]]
    return f"{title} {', '.join(shown)}{' ...' if len(cells) > MOST_DEPTHS else ''}"


def _counted(title: str, counter: dict[str, int]) -> str:
    total = sum(counter.values())
    ordered = sorted(counter.items(), key=lambda item: -item[1])
    rows = [(str(count), f"{count / total:.0%}", text or "-") for text, count in ordered]
    return _table(title, ("steps", "share", "reason"), rows) if rows else ""


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns to the right, the last to the left where it is words."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    words = rows[0][-1][:1].isalpha()
    lines = [title]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join([*cells[:-1], row[-1] if words else cells[-1]]))
    return "\n".join(lines)
