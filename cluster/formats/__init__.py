"""The kinds of files that a job reads: each is looked at once before the work begins, then read in parts.

A part is `size` rows of one file; part n of a file begins at row n * size. So
every run of a job cuts its files alike, and an interrupted one goes on with the
parts that are missing.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

FormatName = Literal["parquet", "jsonl", "csv", "text"]


@dataclass(frozen=True, slots=True)
class Place:
    """A file: its file system, its path there, and how a user would write it."""

    files: Any
    path: str
    name: str


class Look(NamedTuple):
    """What is known of a file before it is read; rows None: nothing without reading it all."""

    schema: pa.Schema
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a file; faults: rows of it that cannot be read, with the reason."""

    number: int
    table: pa.Table
    faults: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """endings: of file names. look(place, texts), texts being the columns that must be text.

    read(place, schema, texts, size, done): the parts that are not done, as tables of that schema.
    Both raise ConfigError for a file that is not of this kind.
    """

    endings: tuple[str, ...]
    look: Callable[[Place, Sequence[str]], Look]
    read: Callable[[Place, pa.Schema, Sequence[str], int, Container[int]], Iterator[Part]]


def formats() -> dict[FormatName, Format]:
    """Every format by its name."""
    from cluster.formats import csv, jsonl, parquet, text

    return {
        "parquet": Format((".parquet",), parquet.look, parquet.read),
        "jsonl": Format((".jsonl", ".ndjson"), jsonl.look, jsonl.read),
        "csv": Format((".csv",), csv.look, csv.read),
        "text": Format((".txt",), text.look, text.read),
    }
