"""Parquet files: read by row groups, and not at all where every part of a group is done."""

from collections.abc import Container, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.formats import Look, Part, Place
from pooling.errors import ConfigError


def look(place: Place, texts: Sequence[str]) -> Look:
    """Raises ConfigError for a file that is not Parquet, or in which one of `texts` is of another type."""
    try:
        with parquet.ParquetFile(place.path, filesystem=place.files) as file:
            schema, rows = file.schema_arrow.remove_metadata(), file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"input {place.name!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    for name in texts:
        if name in schema.names and not _can_hold_text(schema.field(name).type):
            raise ConfigError(f"column {name!r} of {place.name!r} holds {schema.field(name).type}, not text")
    return Look(schema, rows)


def read(place: Place, schema: pa.Schema, texts: Sequence[str], size: int, done: Container[int]) -> Iterator[Part]:
    """The parts that are not done; columns that the file lacks are null."""
    with parquet.ParquetFile(place.path, filesystem=place.files) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        bounds = [int(bound) for bound in np.cumsum([0, *sizes])]
        for groups in _wanted(bounds, size, done):
            yield from _parts(file, groups, bounds, schema, size, done)


def _wanted(bounds: list[int], size: int, done: Container[int]) -> Iterator[list[int]]:
    """Runs of neighbouring row groups that hold rows of a part that is not done."""
    run: list[int] = []
    for group in range(len(bounds) - 1):
        start, stop = bounds[group], bounds[group + 1]
        if start < stop and any(part not in done for part in range(start // size, (stop - 1) // size + 1)):
            run.append(group)
        elif run and start < stop:
            yield run
            run = []
    if run:
        yield run


def _parts(
    file: parquet.ParquetFile,
    groups: list[int],
    bounds: list[int],
    schema: pa.Schema,
    size: int,
    done: Container[int],
) -> Iterator[Part]:
    row, held = bounds[groups[0]], []
    for batch in file.iter_batches(batch_size=size, row_groups=groups):
        while len(batch):
            number = row // size
            piece = batch.slice(0, (number + 1) * size - row)
            batch, row = batch.slice(len(piece)), row + len(piece)
            held.append(piece)
            if row % size == 0 or row == bounds[-1]:
                if number not in done:
                    yield Part(number, _as(pa.Table.from_batches(held), schema))
                held = []


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _can_hold_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)
