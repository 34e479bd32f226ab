"""The three stages of a job on Ray Data: read a part of a file, pool its rows, write it.

A part travels as one row that holds its table, packed: Ray Data joins and splits
blocks as it sees fit, but never a row, so a part stays whole.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.formats import FormatName, formats
from cluster.job_input import place_of
from cluster.ledger import Ledger
from cluster.output_formats import OUTPUT_FORMATS, OutputFormatName
from pooling.errors import ConfigError

if TYPE_CHECKING:  # for the actors alone: reading and writing need no model
    from cluster.row_task import RowTaskName


@dataclass(frozen=True, slots=True)
class ReadParts:
    """Takes one file, {file, name, done}; yields its parts that are not done."""

    format: FormatName
    schema: pa.Schema
    texts: tuple[str, ...]
    size: int

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        (row,) = batch.to_pylist()
        read = formats()[self.format].read
        done = frozenset(json.loads(row["done"]))
        try:
            for part in read(place_of(row["name"]), self.schema, self.texts, self.size, done):
                yield _pack(row["file"], part.number, part.table, part.faults)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"input {row['name']!r} cannot be read: {str(error).splitlines()[0]}") from None


class PoolParts:
    """Takes a part and adds the columns of the answers; one engine for each actor."""

    def __init__(self, task: "RowTaskName", **options: Any) -> None:
        from cluster.dataset import POOLERS

        self._pooler = POOLERS[task](**options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        file, number, table, faults = _unpack(batch)
        return _pack(file, number, self._pooler.answer(table, faults), {})


@dataclass(frozen=True, slots=True)
class WriteParts:
    """Takes a part with its answers, writes and enters it; returns how many rows it had, and how many without one."""

    output: str
    format: OutputFormatName
    error_column: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        file, number, table, _ = _unpack(batch)
        ledger = Ledger(self.output)
        note = OUTPUT_FORMATS[self.format].write(ledger, f"part-{file:05}-{number:08}", table)
        errors = len(table) - table.column(self.error_column).null_count
        ledger.enter(file, number, len(table), errors, note)
        return pa.table({"rows": [len(table)], "errors": [errors]})


def _pack(file: int, number: int, table: pa.Table, faults: dict[int, str]) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed = sink.getvalue()
    ends = pa.py_buffer(memoryview(bytes(8) + len(packed).to_bytes(8, "little")))
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, packed])
    return pa.table({"file": [file], "part": [number], "table": column, "faults": [json.dumps(faults)]})


def _unpack(batch: pa.Table) -> tuple[int, int, pa.Table, dict[int, str]]:
    file, number, faults = (batch.column(name)[0].as_py() for name in ("file", "part", "faults"))
    with pa.ipc.open_stream(batch.column("table")[0].as_buffer()) as stream:
        table = stream.read_all()
    return file, number, table, {int(row): reason for row, reason in json.loads(faults).items()}
