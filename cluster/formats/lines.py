"""What files of lines have in common: opened, unpacked where the name says so, and cut into parts."""

import io
from codecs import BOM_UTF8
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from cluster.formats import Part, Place
from pooling.errors import ConfigError

Row = TypeVar("Row")


@contextmanager
def opened(place: Place) -> Iterator[io.BufferedReader]:
    """The bytes of a file. Raises ConfigError for one that cannot be read."""
    try:
        with place.files.open_input_stream(place.path, compression="detect") as stream:
            reader = io.BufferedReader(stream)
            if reader.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
                reader.read(len(BOM_UTF8))
            yield reader
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"input {place.name!r} cannot be read: {str(error).splitlines()[0]}") from None


def parts(
    rows: Iterator[Row],
    size: int,
    done: Container[int],
    convert: Callable[[list[Row]], tuple[pa.Table, dict[int, str]]],
) -> Iterator[Part]:
    """Cuts rows into parts, and converts those that are not done."""
    held: list[Row] = []
    count = 0
    for row in rows:
        if count // size not in done:
            held.append(row)
        count += 1
        if held and count % size == 0:
            yield Part((count - 1) // size, *convert(held))
            held = []
    if held:
        yield Part((count - 1) // size, *convert(held))
