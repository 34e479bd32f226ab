"""Parquet files that a job reads and the directory it writes, judged before the work begins."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as arrow_fs
import pyarrow.parquet as parquet

from pooling.errors import ConfigError

_SUFFIX = ".parquet"


def find_parquet(path: str) -> list[str]:
    """The file named by a path or URI, or the Parquet files under a directory, in the order of their names.

    Raises ConfigError if there is none.
    """
    files, place = locate(path)
    info = files.get_file_info(place)
    if info.type == arrow_fs.FileType.File:
        return [path if _is_uri(path) else place]
    if info.type != arrow_fs.FileType.Directory:
        raise ConfigError(f"input {path!r} does not exist; give a Parquet file or a directory of them")
    found = files.get_file_info(arrow_fs.FileSelector(place, recursive=True))
    names = sorted(item.path for item in found if item.is_file and item.path.endswith(_SUFFIX))
    if not names:
        raise ConfigError(f"input {path!r} is a directory without {_SUFFIX} files")
    return [_uri(path, place, name) for name in names]


def refuse_no_text(path: str, column: str) -> list[str]:
    """The names of a Parquet file's columns, once `column` is seen to be one that can hold text.

    Raises ConfigError for a file that is not Parquet, a missing column or one of another type.
    """
    files, place = locate(path)
    try:
        schema = parquet.read_schema(place, filesystem=files)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"input {path!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if column in schema.names and not _can_hold_text(schema.field(column).type):
        raise ConfigError(f"column {column!r} of {path!r} holds {schema.field(column).type}, not text")
    return list(schema.names)


def make_empty_directory(path: str) -> str:
    """The path or URI of a directory that is there and empty.

    Raises ConfigError for one that has anything in it, and for a path that is no directory.
    """
    files, place = locate(path)
    kind = files.get_file_info(place).type
    if kind == arrow_fs.FileType.File:
        raise ConfigError(f"output {path!r} is a file; give a directory that is new or empty")
    if kind == arrow_fs.FileType.Directory and files.get_file_info(arrow_fs.FileSelector(place)):
        raise ConfigError(f"output {path!r} is not empty; give a directory that is new or empty")
    try:
        files.create_dir(place, recursive=True)
    except OSError as error:
        raise ConfigError(f"output {path!r} cannot be made: {str(error).splitlines()[0]}") from None
    return path if _is_uri(path) else place


def locate(path: str) -> tuple[Any, str]:
    """The file system that a path or URI is on, and the path there; a local path becomes absolute.

    Raises ConfigError for a URI of an unknown kind.
    """
    if not _is_uri(path):
        return arrow_fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
    try:
        return arrow_fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]  # pyarrow is untyped
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path!r} is on no file system that can be reached: {str(error).splitlines()[0]}") from None


def _is_uri(path: str) -> bool:
    return "://" in path


def _uri(path: str, place: str, name: str) -> str:
    """A file under a directory, written as the directory was."""
    return path.rstrip("/") + name.removeprefix(place.rstrip("/")) if _is_uri(path) else name


def _can_hold_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)
