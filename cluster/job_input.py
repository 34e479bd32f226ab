"""JobInput: the files that a job reads, all of one format, looked at before the work begins."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from cluster.files import Found, is_uri, list_files, locate
from cluster.formats import Format, FormatName, Look, Place, formats
from pooling.errors import ConfigError

# Endings that pyarrow unpacks by.
_PACKED = (".gz", ".bz2", ".zst", ".lz4")
# Looking at a file is a wait for its storage.
_LOOKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class JobInput:
    """schema: of every part, whatever file it is from. rows: of each file; None: not known without reading it all.

    texts: the columns that are read as text, whatever is in them.
    """

    format: FormatName
    files: tuple[Found, ...]
    schema: pa.Schema
    rows: tuple[int | None, ...]
    texts: tuple[str, ...]

    @property
    def total(self) -> int | None:
        return None if None in self.rows else sum(rows or 0 for rows in self.rows)


def look_at_input(
    path: str, wanted: FormatName | None, columns: Sequence[str], texts: Sequence[str] | None = None
) -> JobInput:
    """columns: those that must be there. texts: those of them that must be text; None: all.

    Raises ConfigError for files that are missing, of several formats or of none,
    damaged, empty, or with columns that do not go together.
    """
    name, files = _of_one_format(path, list_files(path), wanted)
    form = formats()[name]
    if texts is None or name == "text":  # the lines of which are the column
        texts = columns
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        looks = list(pool.map(lambda file: form.look(place_of(file.name), texts), files))
    known = [(file, look) for file, look in zip(files, looks, strict=True) if len(look.schema)]
    if not known:
        raise ConfigError(f"input {path!r} is empty: it has no column {columns[0]!r}")
    for file, look in known:
        missing = [column for column in columns if column not in look.schema.names]
        if missing:
            where = "there" if len(files) == 1 else f"in {file.name!r} there"
            raise ConfigError(f"{where} is no column {missing[0]!r}; the columns are {', '.join(look.schema.names)}")
    return JobInput(name, tuple(files), _together(known), tuple(look.rows for look in looks), tuple(texts))


def refuse_columns(names: Sequence[str], wanted: Sequence[str], new: Sequence[str]) -> None:
    """Raises ConfigError if a column of texts is missing or a column to be written is there already."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ConfigError(f"there is no column {missing[0]!r}; the columns are {', '.join(names)}")
    taken = [name for name in new if name in names]
    if taken:
        raise ConfigError(f"the input has a column {taken[0]!r} already; choose another name for the new one")
    twice = [name for name in new if list(new).count(name) > 1]
    if twice:
        raise ConfigError(f"two new columns would be named {twice[0]!r}; choose another name for one of them")


def place_of(name: str) -> Place:
    return Place(*locate(name), name)


def _of_one_format(path: str, files: list[Found], wanted: FormatName | None) -> tuple[FormatName, list[Found]]:
    known = formats()
    by_format = {
        name: chosen for name, form in known.items() if (chosen := [file for file in files if _ends(file.name, form)])
    }
    single = len(files) == 1 and files[0].name.rstrip("/") == _written(path)
    if wanted is not None:
        chosen = files if single else by_format.get(wanted, [])
        if not chosen:
            raise ConfigError(f"input {path!r} has no files of format {wanted} ({', '.join(known[wanted].endings)})")
        return wanted, chosen
    if len(by_format) > 1:
        held = " and ".join(f"{len(chosen)} of {name}" for name, chosen in by_format.items())
        raise ConfigError(f"input {path!r} has files of several formats, {held}; name one with --input-format")
    if not by_format:
        endings = ", ".join(ending for form in known.values() for ending in form.endings)
        what = "is no file" if single else "is a directory without files"
        raise ConfigError(f"input {path!r} {what} of a known ending ({endings}); name its format with --input-format")
    return next(iter(by_format.items()))


def _written(path: str) -> str:
    return path.rstrip("/") if is_uri(path) else locate(path)[1]


def _ends(name: str, form: Format) -> bool:
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name.endswith(form.endings)


def _together(known: list[tuple[Found, Look]]) -> pa.Schema:
    """A schema that the columns of all files can be cast to."""
    schema = known[0][1].schema
    for file, look in known[1:]:
        try:
            schema = pa.unify_schemas([schema, look.schema], promote_options="permissive")
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the columns of {file.name!r} do not go with those of the files before: {reason}"
            ) from None
    return schema
