"""How the parts of a job are written: Parquet, JSON lines, or fragments of one Lance dataset."""

import importlib.util
import json
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.ledger import Ledger
from pooling.errors import ConfigError

OutputFormatName = Literal["parquet", "jsonl", "lance"]


class OutputFormat(ABC):
    """One way to write the tables of a job."""

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Raises ConfigError if tables with these columns cannot be written."""

    @abstractmethod
    def write(self, ledger: Ledger, name: str, table: pa.Table) -> bytes:
        """Writes a part of that name, whole or not at all; returns what is to be remembered of it."""

    @abstractmethod
    def finish(self, ledger: Ledger) -> None:
        """What is to be done when all parts are written."""


class _Parquet(OutputFormat):
    def check(self, schema: pa.Schema) -> None:
        pass

    def finish(self, ledger: Ledger) -> None:
        pass

    def write(self, ledger: Ledger, name: str, table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink)
        ledger.write(f"{name}.parquet", sink.getvalue())
        return b""


class _JsonLines(OutputFormat):
    def finish(self, ledger: Ledger) -> None:
        pass

    def check(self, schema: pa.Schema) -> None:
        for field in schema:
            if _has_bytes(field.type):
                raise ConfigError(f"column {field.name!r} holds {field.type}, which JSON has no form for")

    def write(self, ledger: Ledger, name: str, table: pa.Table) -> bytes:
        columns = [_plain(table.column(column)) for column in table.column_names]
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
        lines = [
            orjson.dumps(dict(zip(table.column_names, row, strict=True)), default=str, option=option)
            for row in zip(*columns, strict=True)
        ]
        ledger.write(f"{name}.jsonl", b"".join(lines))
        return b""


class _Lance(OutputFormat):
    """Every part is a fragment that nobody sees until all of them are made one version of the dataset."""

    def check(self, schema: pa.Schema) -> None:
        if importlib.util.find_spec("lance") is None:
            raise ConfigError("output format lance needs the package pylance; install raypool[lance]")

    def write(self, ledger: Ledger, name: str, table: pa.Table) -> bytes:
        lance = import_module("lance.fragment")
        fragments: list[Any] = lance.write_fragments(table, ledger.output)
        schema = table.schema.serialize().to_pybytes().hex()
        return json.dumps({"schema": schema, "fragments": [one.to_json() for one in fragments]}).encode()

    def finish(self, ledger: Ledger) -> None:
        notes = [json.loads(note) for note in ledger.notes()]
        if not notes:
            return
        lance = import_module("lance")
        read = import_module("lance.fragment").FragmentMetadata.from_json
        fragments = [read(json.dumps(one)) for note in notes for one in note["fragments"]]
        schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(notes[0]["schema"])))
        lance.LanceDataset.commit(ledger.output, lance.LanceOperation.Overwrite(schema, fragments))


OUTPUT_FORMATS: dict[OutputFormatName, OutputFormat] = {
    "parquet": _Parquet(),
    "jsonl": _JsonLines(),
    "lance": _Lance(),
}


def _has_bytes(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks) or any(
        _has_bytes(kind.field(place).type) for place in range(kind.num_fields)
    )


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Values that JSON has a form for; vectors as float32 arrays, which are written in the fewest digits."""
    kind = column.type
    if pa.types.is_float32(kind):
        return [None if value is None else np.float32(value) for value in column.to_pylist()]
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    deepest = kind.value_type if lists else kind
    if lists and pa.types.is_fixed_size_list(deepest):
        deepest = deepest.value_type
    if lists and pa.types.is_float32(deepest):
        return [None if row is None else np.array(row, np.float32) for row in column.to_pylist()]
    return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped
