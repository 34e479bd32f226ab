"""Numbers of several rounds as tables in Markdown: medians, spread, and how many times better ours is."""

import statistics
from collections.abc import Iterable, Sequence


def spread(numbers: Sequence[float]) -> float:
    """From the least to the most, as a share of the median."""
    return (max(numbers) - min(numbers)) / statistics.median(numbers)


def ratio(ours: Sequence[float], other: Sequence[float], more_is_better: bool) -> float:
    """How many times better the median of ours is: over 1 is better."""
    mine, theirs = statistics.median(ours), statistics.median(other)
    return mine / theirs if more_is_better else theirs / mine


def shown(number: float) -> str:
    """Three digits that mean something: 12,345, 87.2, 0.532."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 2 else f"{number:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. Raises ValueError for a row of another width than the head."""
    lines = [head, ["---"] * len(head)]
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells, the head of its table {len(head)}")
        lines.append(list(row))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
