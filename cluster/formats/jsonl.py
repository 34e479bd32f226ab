"""Files of JSON lines: one object a row; the columns and their types are those of the first rows of each file."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from cluster.formats import Look, Part, Place
from cluster.formats.lines import opened, parts
from pooling.errors import ConfigError

# Rows by which a file's columns and their types are known.
_SAMPLE = 8_192
# Characters that a reason quotes of a value.
_SHOWN = 60


def look(place: Place, texts: Sequence[str]) -> Look:
    """Raises ConfigError for a file of which no line among the first is a JSON object."""
    with opened(place) as stream:
        lines = list(islice(_lines(stream), _SAMPLE))
    rows = [row for row in map(_parse, lines) if isinstance(row, dict)]
    if lines and not rows:
        raise ConfigError(f"input {place.name!r} is no JSON lines: {_parse(lines[0])}")
    names = dict.fromkeys(name for row in rows for name in row)
    return Look(pa.schema([(name, _type_of(name, [row.get(name) for row in rows], texts)) for name in names]))


def read(place: Place, schema: pa.Schema, texts: Sequence[str], size: int, done: Container[int]) -> Iterator[Part]:
    """The parts that are not done; a line that is no object, or has a field that fits no column, is a fault."""
    with opened(place) as stream:
        yield from parts(_lines(stream), size, done, lambda lines: _convert(lines, schema, texts))


def _lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in stream if not line.isspace())


def _parse(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or why it has none."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"the line is no JSON: {error}"
    return row if isinstance(row, dict) else f"the line holds a JSON {_KINDS[type(row)]}, not an object"


_KINDS = {str: "string", int: "number", float: "number", bool: "boolean", list: "array", type(None): "null"}


def _type_of(name: str, values: list[Any], texts: Sequence[str]) -> pa.DataType:
    """What the values have in common; text where that is nothing, in which others are written as JSON."""
    if name in texts:
        return pa.string()
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    return pa.string() if pa.types.is_null(kind) else kind


def _convert(lines: list[bytes], schema: pa.Schema, texts: Sequence[str]) -> tuple[pa.Table, dict[int, str]]:
    rows = [_parse(line) for line in lines]
    faults = {row: reason for row, reason in enumerate(rows) if isinstance(reason, str)}
    objects: list[Mapping[str, Any]] = [{} if isinstance(row, str) else row for row in rows]
    known = set(schema.names)
    for row, fields in enumerate(objects):
        if not fields.keys() <= known:
            odd = next(name for name in fields if name not in known)
            faults[row] = f"the field {odd!r} is in none of the first {_SAMPLE} rows, so it has no column"
    columns = []
    for field in schema:
        if field.name in texts:
            for row, fields in enumerate(objects):
                if field.name not in fields:
                    faults.setdefault(row, f"the row has no field {field.name!r}")
        values = [fields.get(field.name) for fields in objects]
        if pa.types.is_string(field.type) and field.name not in texts:
            values = [v if v is None or isinstance(v, str) else orjson.dumps(v).decode() for v in values]
        columns.append(_column(field, values, faults))
    return pa.table(columns, schema=schema), faults


def _column(field: pa.Field, values: list[Any], faults: dict[int, str]) -> pa.Array:
    """The values as a column, null where one does not fit."""
    try:
        return _array(values, field.type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        pass
    for row, value in enumerate(values):
        try:
            _array([value], field.type)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            values[row] = None
            faults.setdefault(row, f"the field {field.name!r} holds {_described(value)}, not {field.type}")
    return _array(values, field.type)


def _described(value: Any) -> str:
    """What a column of another type cannot hold, for its row to be found by: `int 42`."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # half a character
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    # Asked for whole numbers, pyarrow rounds others off without a word; a cast does not.
    return pa.array(values).cast(kind) if pa.types.is_integer(kind) else pa.array(values, kind)
