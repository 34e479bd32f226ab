"""The figures of a report as SVG, drawn by matplotlib: throughput against length, and latency against load."""

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.http_grid import Grid
from benchmarks.offline_tables import Found

# One colour a library in every figure; told apart also by those who see no red or green (Okabe and Ito 2008).
_COLOURS = {
    "raypool": "#0072B2",
    "raypool-int8": "#56B4E9",
    "vllm": "#D55E00",
    "sentence-transformers": "#009E73",
    "infinity": "#CC79A7",
    "ray-serve-llm": "#E69F00",
}
_PANEL = (4.2, 3.4)  # inches


def plot_throughput(models: Sequence[Found], file: Path) -> None:
    """A panel for each model: tokens per second over the mean length of a set."""
    figure, panels = _panels(len(models))
    for panel, found in zip(panels, models, strict=True):
        for entrant in found.entrants():
            points = sorted(_points(found, entrant))
            panel.plot(*zip(*points, strict=True), **_style(entrant), label=entrant)
        panel.set(title=found.model, xscale="log", xlabel="tokens of a text", ylim=(0, None))
        ticks = sorted({round(size.tokens / size.inputs) for size in found.sizes.values()})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
    panels[0].set_ylabel("tokens/s")
    _save(figure, panels, file)


def plot_latency(grid: Grid, file: Path) -> None:
    """A panel for each number of texts a request: milliseconds over clients, the median whole, the 99th dotted."""
    from matplotlib.ticker import LogLocator

    sizes = sorted({load.texts for load in grid.loads})
    figure, panels = _panels(len(sizes))
    for panel, size in zip(panels, sizes, strict=True):
        clients = sorted({load.clients for load in grid.loads if load.texts == size})
        for server, (quantile, line) in product(grid.servers(), (("p50_ms", "-"), ("p99_ms", ":"))):
            rounds = {count: grid.rounds(server, count, size) for count in clients}
            points = [
                (count, statistics.median(getattr(one, quantile) for one in loads))
                for count, loads in rounds.items()
                if loads
            ]
            label = server if line == "-" else "_"  # which matplotlib leaves out of the legend
            if points:
                panel.plot(*zip(*points, strict=True), **_style(server) | {"linestyle": line}, label=label)
        panel.set(title=f"{size} text{'s' if size > 1 else ''} a request", xscale="log", yscale="log", xlabel="clients")
        panel.set_xticks(clients, [str(count) for count in clients])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panels[0].set_ylabel("ms: median, 99th dotted")
    _save(figure, panels, file)


def _points(found: Found, entrant: str) -> list[tuple[float, float]]:
    """(mean length, tokens per second) of each set, of those of one length alone where there are such."""
    swept = [name for name in found.sizes if name.endswith(" tokens")]
    points = []
    for name in swept or found.sizes:
        seconds, size = found.seconds(entrant, name), found.sizes[name]
        if seconds:
            points.append((size.tokens / size.inputs, size.tokens / statistics.median(seconds)))
    return points


def _panels(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same numbers give the same file.
    pyplot.rcParams.update({"svg.hashsalt": "raypool", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure, panels = pyplot.subplots(1, count, figsize=(_PANEL[0] * count, _PANEL[1]), squeeze=False)
    return figure, panels[0]


def _style(entrant: str) -> dict[str, Any]:
    """float32 beside another number format is drawn thinner."""
    library, _, dtype = entrant.partition(" ")
    beside = library == "sentence-transformers" and dtype == "float32"
    return {"color": _COLOURS.get(library, "#555555"), "marker": "o", "markersize": 3, "linewidth": 1 if beside else 2}


def _save(figure: Any, panels: Any, file: Path) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(file, metadata={"Date": None})
