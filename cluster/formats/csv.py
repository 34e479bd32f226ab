"""CSV files with a header: every column is text as it stands, so that 007 stays 007."""

import csv
import io
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cluster.formats import Look, Part, Place
from cluster.formats.lines import opened, parts
from pooling.errors import ConfigError

Fields = list[str] | str  # the fields of a row, or why it has none


def look(place: Place, texts: Sequence[str]) -> Look:
    """Raises ConfigError for a file without a header, or with one that names a column twice."""
    with _header_and_rows(place) as (header, _):
        return Look(pa.schema([(name, pa.string()) for name in header]))


def read(place: Place, schema: pa.Schema, texts: Sequence[str], size: int, done: Container[int]) -> Iterator[Part]:
    """The parts that are not done; a row of another length than the header, or not in UTF-8, is a fault."""
    with _header_and_rows(place) as (header, rows):
        yield from parts(rows, size, done, lambda held: _convert(held, header, schema))


@contextmanager
def _header_and_rows(place: Place) -> Iterator[tuple[list[str], Iterator[Fields]]]:
    csv.field_size_limit(sys.maxsize)
    with opened(place) as stream:
        # What is no UTF-8 is kept as surrogates, which no UTF-8 holds, and found again row by row.
        decoded = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        rows = _rows(csv.reader(decoded, strict=True))
        header = next(rows, None)
        if not isinstance(header, list):
            raise ConfigError(f"input {place.name!r} has no header; the first line of a CSV file names its columns")
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise ConfigError(f"input {place.name!r} has two columns {twice[0]!r}")
        if not all(map(_is_utf8, header)):
            raise ConfigError(f"input {place.name!r} is not UTF-8")
        yield header, rows


def _rows(reader: Any) -> Iterator[Fields]:
    """The rows that are not empty lines."""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num} is no CSV: {error}"
            continue
        if fields:
            yield fields


def _convert(rows: list[Fields], header: list[str], schema: pa.Schema) -> tuple[pa.Table, dict[int, str]]:
    faults: dict[int, str] = {}
    for row, fields in enumerate(rows):
        if isinstance(fields, str):
            faults[row] = fields
        elif len(fields) != len(header):
            faults[row] = f"the row has {len(fields)} fields, not {len(header)} as the header"
        elif not all(map(_is_utf8, fields)):
            faults[row] = "the row is not UTF-8"
    good = [None if row in faults else dict(zip(header, fields, strict=True)) for row, fields in enumerate(rows)]
    columns = [pa.array([fields and fields.get(name) for fields in good], pa.string()) for name in schema.names]
    return pa.table(columns, schema=schema), faults


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
