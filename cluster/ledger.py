"""Ledger: what the output directory of a job says of it: which job it is, and which of its parts are done.

    DIR/part-00003-00000012.parquet           rows 12 * batch_size and on of the fourth file
    DIR/_raypool/job.json                     the settings that decide what is written
    DIR/_raypool/done/00003-00000012-2048-1   that part is written: 2,048 rows, one of them without an answer
    DIR/_raypool/finished.json                all parts are

A part is written under another name, moved to its own, and entered then: what is
entered is whole. A part that is written twice, because its job was killed
between the two, replaces itself.
"""

import json
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as arrow_fs

from cluster.files import locate
from pooling.errors import ConfigError

_OWN = "_raypool"


@dataclass(frozen=True, slots=True)
class Done:
    """What is entered: the parts of each file, their rows, and how many of those have no answer."""

    parts: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    rows: int = 0
    errors: int = 0


class Ledger:
    """Of one output directory; any process that reaches it may make its own."""

    def __init__(self, output: str) -> None:
        self.output = output
        self._files, self._place = locate(output)
        self._entered = False

    def open(self, settings: dict[str, Any]) -> Done:
        """Enters a new job in an empty directory, or finds what is done of the same one.

        Raises ConfigError for a directory with other files in it or with another
        job, naming what differs.
        """
        before = self._read("job.json")
        if before is not None:
            self._refuse_other(json.loads(before), json.loads(json.dumps(settings)))
            return self.done()
        directory = self._files.get_file_info(arrow_fs.FileSelector(self._place))
        if any(not item.path.endswith("/" + _OWN) for item in directory):
            raise ConfigError(f"output {self.output!r} is not empty; give a directory that is new or empty")
        self._files.create_dir(f"{self._place}/{_OWN}/done", recursive=True)
        self._write("job.json", json.dumps(settings, indent=1).encode())
        self._entered = True
        return Done()

    def withdraw(self) -> None:
        """Takes back a job that this object entered, if it was refused before it wrote anything."""
        if self._entered and not self._entries():
            self._files.delete_file(f"{self._place}/{_OWN}/job.json")

    def write(self, name: str, content: Any) -> None:
        """A file of the directory, whole or not at all."""
        self._write(f"../{name}", content)

    def enter(self, file: int, part: int, rows: int, errors: int, note: bytes = b"") -> None:
        """That a part is written; note: what a format has to remember of it."""
        self._write(f"done/{file:05}-{part:08}-{rows}-{errors}", note)

    def done(self) -> Done:
        parts: dict[int, set[int]] = defaultdict(set)
        all_rows = all_errors = 0
        for file, part, rows, errors in map(_numbers, self._entries()):
            parts[file].add(part)
            all_rows += rows
            all_errors += errors
        return Done(parts, all_rows, all_errors)

    def notes(self) -> list[bytes]:
        """The notes of all parts, in the order of the rows."""
        found = (self._read(f"done/{name}") for name in self._entries())
        return [note for note in found if note is not None]

    @property
    def finished(self) -> bool:
        return self._read("finished.json") is not None

    def finish(self) -> None:
        """Enters that all is done, and clears away what processes that were killed left half written."""
        done = self.done()
        self._write("finished.json", json.dumps({"rows": done.rows, "errors": done.errors}).encode())
        for item in self._files.get_file_info(arrow_fs.FileSelector(f"{self._place}/{_OWN}")):
            if item.base_name.startswith("half-"):
                self._files.delete_file(item.path)

    def _entries(self) -> list[str]:
        selector = arrow_fs.FileSelector(f"{self._place}/{_OWN}/done", allow_not_found=True)
        return sorted(item.base_name for item in self._files.get_file_info(selector))

    def _read(self, name: str) -> bytes | None:
        place = f"{self._place}/{_OWN}/{name}"
        if self._files.get_file_info(place).type != arrow_fs.FileType.File:
            return None
        with self._files.open_input_stream(place) as stream:
            content: bytes = stream.read()
            return content

    def _write(self, name: str, content: Any) -> None:
        own = f"{self._place}/{_OWN}"
        half = f"{own}/half-{uuid.uuid4().hex}"
        with self._files.open_output_stream(half) as stream:
            stream.write(content)
        place = f"{self._place}/{name[3:]}" if name.startswith("../") else f"{own}/{name}"
        self._files.move(half, place)

    def _refuse_other(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differences = [
            _difference(name, before.get(name), now.get(name))
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if differences:
            raise ConfigError(
                f"output {self.output!r} is not empty; it belongs to another job, of which {'; '.join(differences)}. "
                "Give the same settings to go on with that job, or a directory that is new or empty"
            )


def _numbers(entry: str) -> tuple[int, int, int, int]:
    file, part, rows, errors = map(int, entry.split("-"))
    return file, part, rows, errors


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "files":  # too many to print
        old, new = ({tuple(file) for file in files or ()} for files in (before, now))
        changed = sorted(str(file[0]) for file in old ^ new)
        return f"the input was another: {changed[0]!r} was added, taken away or changed"
    if isinstance(before, dict) and isinstance(now, dict):
        return "; ".join(
            _difference(key, before.get(key), now.get(key))
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        )
    return f"{name} was {before!r}, not {now!r}"
