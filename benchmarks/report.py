"""All comparisons in one run, written into docs/benchmarks.md with figures: make bench

    python -m benchmarks.report --quick              # ten minutes: two models, two rounds
    python -m benchmarks.report                      # hours: five models, five rounds
    python -m benchmarks.report --parts offline --models minilm
    python -m benchmarks.report --from .bench/report.json   # writes it again, measures nothing

Builds the peers first, where that has not been done. What stands between the two
markers of docs/benchmarks.md is replaced, all else is kept; the numbers of every
round go to .bench/report.json.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: make the packages beside this directory importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import dataset, http_grid, machine, offline
from benchmarks.http_grid import Grid
from benchmarks.offline_tables import Found, lines
from benchmarks.peers import HOME, PEERS
from benchmarks.plots import plot_latency, plot_throughput
from benchmarks.shapes import SHAPES
from benchmarks.tables import table

BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
_DOCS = Path(__file__).resolve().parent.parent / "docs"
_PARTS = ("offline", "http", "dataset")
# Of ours and of those peers that serve the same tasks; Ray Serve LLM runs over vLLM.
_SERVERS = ("raypool", "vllm", "infinity")


@dataclass
class Report:
    """What was measured, on what, and by which command."""

    command: str
    date: str
    commit: str
    cpu: str
    dtype: str
    threads: int
    versions: dict[str, str]
    minutes: float = 0.0
    offline: list[Found] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    jobs: list[dataset.Round] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "Report":
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        speed = dataset.Speed
        rounds = [dataset.Round(speed(**r["bare"]), speed(**r["job"]), r["others"]) for r in data["jobs"]]
        found, grids = [Found.read(one) for one in data["offline"]], [Grid.read(one) for one in data["grids"]]
        return cls(**data | {"offline": found, "grids": grids, "jobs": rounds})

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def section(self, figures: Sequence[str]) -> str:
        """All of it in Markdown. figures: names of files beside the document."""
        return "\n".join(self._lines(figures)).strip()

    def _lines(self, figures: Sequence[str]) -> Iterator[str]:
        yield "## Beside sentence-transformers, infinity and vLLM\n"
        yield f"{self.date}, commit {self.commit}, `{self.command}`, {self.minutes:.0f} minutes: {self.cpu}, "
        yield f"{self.threads} threads each, {self.dtype} where nothing else is said.\n"
        yield table(["", "versions"], ([name, text] for name, text in self.versions.items()))
        for figure in figures:
            yield f"\n![{figure.removesuffix('.svg')}]({figure})"
        for found in self.offline:
            yield ""
            yield from lines(found)
        for grid in self.grids:
            yield f"\n### {grid.model} over HTTP\n"
            yield from http_grid.lines(grid)
        if self.jobs:
            yield "\n### minilm on Ray Data\n"
            head = ["round", "engine alone", "job", "share", "share once it runs", "the machine meanwhile"]
            yield table(head, (self._dataset_row(*row) for row in enumerate(self.jobs, 1)))
            yield f"\n{dataset.summary(self.jobs)}."

    @staticmethod
    def _dataset_row(number: int, found: dataset.Round) -> list[str]:
        shares = (found.job.rate / found.bare.rate, found.job.running_rate / found.bare.running_rate)
        return [str(number), str(found.bare), str(found.job), *(f"{share:.1%}" for share in shares), found.others]


def put(section: str, document: str) -> str:
    """The document with the section between its markers; one without markers gets both at its end.

    Raises ValueError for one marker without the other, or in the wrong order.
    """
    marked = f"{BEGIN}\n{section}\n{END}"
    if BEGIN not in document and END not in document:
        return f"{document.rstrip()}\n\n{marked}\n"
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the document needs {BEGIN} once, and {END} once behind it")
    return f"{before}{marked}{after}"


def measure(args: argparse.Namespace, command: str) -> Report:
    for name in args.peers:
        PEERS[name].build()
    start = time.monotonic()
    own = offline.parser("").parse_args([])
    about = (machine.today(), machine.commit(), machine.cpu(), own.dtype, own.threads, machine.versions())
    report = Report(command, *about)
    if "offline" in args.parts:
        for found in offline.compare(_offline(args)):
            print("\n".join(lines(found)), flush=True)
            report.offline.append(found)
            report.write(args.json)  # hours may follow, and fail
    if "http" in args.parts:
        for model in args.http_models:
            grid = http_grid.measure(_http(args, model))
            print("\n".join(http_grid.lines(grid)), flush=True)
            report.grids.append(grid)
            report.write(args.json)
    if "dataset" in args.parts:
        # Of a few parts only, what a job does once it runs could not be told from the end of the first.
        scope = ["--texts=10000", "--batch-size=500", "--rounds=1"] if args.quick else ["--rounds=3"]
        report.jobs.extend(dataset.compare(dataset.parser("").parse_args(scope)))
    report.minutes = (time.monotonic() - start) / 60
    report.write(args.json)
    return report


def _offline(args: argparse.Namespace) -> argparse.Namespace:
    scope = ["--scale=0.25", "--rounds=2"] if args.quick else ["--rounds=5", "--starts=3", "--sweep"]
    return offline.parser("").parse_args([*scope, "--models", *args.models, "--libraries", *offline.OURS, *args.peers])


def _http(args: argparse.Namespace, model: str) -> argparse.Namespace:
    scope = ["--seconds=2", "--rounds=1", "--texts", "1", "16"] if args.quick else ["--seconds=8", "--rounds=3"]
    servers = [name for name in _SERVERS if name == "raypool" or name in args.peers]
    return http_grid.parser("").parse_args([*scope, "--model", model, "--servers", *servers])


def _figures(report: Report, directory: Path) -> list[str]:
    """Draws them; without matplotlib none."""
    if find_spec("matplotlib") is None:
        print("no figures are drawn, for matplotlib is missing: pip install 'raypool[bench]'", file=sys.stderr)
        return []
    names = []
    measured = [found for found in report.offline if found.answered]
    if measured:
        plot_throughput(measured, directory / "bench-throughput.svg")
        names.append("bench-throughput.svg")
    for grid in report.grids:
        if grid.loads:
            plot_latency(grid, directory / f"bench-latency-{grid.model}.svg")
            names.append(f"bench-latency-{grid.model}.svg")
    return names


def main() -> None:
    offline.end_workers_when_ended()
    args = _arguments()
    command = shlex.join(["python", "-m", "benchmarks.report", *sys.argv[1:]])
    report = Report.read(args.source) if args.source else measure(args, command)
    args.docs.mkdir(parents=True, exist_ok=True)
    document = args.docs / "benchmarks.md"
    before = document.read_text(encoding="utf-8") if document.exists() else "# Benchmarks\n"
    document.write_text(put(report.section(_figures(report, args.docs)), before), encoding="utf-8")
    print(f"written: {document}")


def _arguments() -> argparse.Namespace:
    embedders = [name for name, shape in SHAPES.items() if shape.task == "embed"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten minutes in place of hours")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="offline; default: all, with --quick two")
    parser.add_argument("--http-models", nargs="+", choices=embedders, default=["minilm"], help="over HTTP")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="default: all")
    parser.add_argument("--json", metavar="FILE", type=Path, default=HOME / "report.json")
    parser.add_argument("--docs", metavar="DIR", type=Path, default=_DOCS, help="where benchmarks.md and figures go")
    parser.add_argument("--from", dest="source", metavar="FILE", type=Path, help="write a report that was measured")
    args = parser.parse_args()
    args.models = args.models or (["minilm", "xlmr-reranker"] if args.quick else list(SHAPES))
    return args


if __name__ == "__main__":
    main()
