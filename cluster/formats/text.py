"""Text files: every line is a row, an empty one too."""

from collections.abc import Container, Iterator, Sequence

import pyarrow as pa

from cluster.formats import Look, Part, Place
from cluster.formats.lines import opened, parts
from pooling.errors import ConfigError


def look(place: Place, texts: Sequence[str]) -> Look:
    """Raises ConfigError for a file that cannot be read, and if more than one column is wanted."""
    if len(texts) > 1:
        raise ConfigError(
            f"input {place.name!r} is text, which has one column; {' and '.join(map(repr, texts))} are needed: "
            "give Parquet, JSON lines or CSV"
        )
    with opened(place):
        pass
    return Look(pa.schema([(texts[0], pa.string())]))


def read(place: Place, schema: pa.Schema, texts: Sequence[str], size: int, done: Container[int]) -> Iterator[Part]:
    """The parts that are not done; a line that is not UTF-8 is a fault."""

    def convert(rows: list[bytes]) -> tuple[pa.Table, dict[int, str]]:
        values: list[str | None] = []
        faults: dict[int, str] = {}
        for row, line in enumerate(rows):
            try:
                values.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                values.append(None)
                faults[row] = "the line is not UTF-8"
        return pa.table([pa.array(values, pa.string())], schema=schema), faults

    with opened(place) as stream:
        yield from parts((line.rstrip(b"\r\n") for line in stream), size, done, convert)
