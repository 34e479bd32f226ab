"""Paths and URIs: which file system they are on, which files are under them, and whether a directory can be written."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as arrow_fs

from pooling.errors import ConfigError


class Found(NamedTuple):
    """A file: its path or URI, its bytes, and when it was changed."""

    name: str
    bytes: int
    modified_ns: int | None


def list_files(path: str) -> list[Found]:
    """The file named by a path or URI, or those under a directory, in the order of their names.

    Names that begin with a dot or an underscore are nobody's data. Raises
    ConfigError if there is nothing.
    """
    files, place = locate(path)
    info = files.get_file_info(place)
    if info.type == arrow_fs.FileType.File:
        return [_found(path if is_uri(path) else place, info)]
    if info.type != arrow_fs.FileType.Directory:
        raise ConfigError(f"input {path!r} does not exist; give a file or a directory of files")
    under = files.get_file_info(arrow_fs.FileSelector(place, recursive=True))
    return sorted(
        _found(_uri(path, place, item.path), item)
        for item in under
        if item.is_file and not any(part[0] in "._" for part in _below(place, item.path).split("/") if part)
    )


def make_directory(path: str) -> str:
    """The path or URI of a directory that is there. Raises ConfigError for a path that is none."""
    files, place = locate(path)
    if files.get_file_info(place).type == arrow_fs.FileType.File:
        raise ConfigError(f"output {path!r} is a file; give a directory that is new or empty")
    try:
        files.create_dir(place, recursive=True)
    except OSError as error:
        raise ConfigError(f"output {path!r} cannot be made: {str(error).splitlines()[0]}") from None
    return path if is_uri(path) else place


def locate(path: str) -> tuple[Any, str]:
    """The file system that a path or URI is on, and the path there; a local path becomes absolute.

    Raises ConfigError for a URI of an unknown kind.
    """
    if not is_uri(path):
        return arrow_fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
    try:
        return arrow_fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]  # pyarrow is untyped
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path!r} is on no file system that can be reached: {str(error).splitlines()[0]}") from None


def is_uri(path: str) -> bool:
    return "://" in path


def _found(name: str, info: Any) -> Found:
    return Found(name, info.size, info.mtime_ns)


def _below(place: str, name: str) -> str:
    return name.removeprefix(place.rstrip("/"))


def _uri(path: str, place: str, name: str) -> str:
    """A file under a directory, written as the directory was."""
    return path.rstrip("/") + _below(place, name) if is_uri(path) else name
