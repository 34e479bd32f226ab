"""Where a model's files are: a local directory, a directory inside an installed package, or a hub id."""

import re
from importlib.util import find_spec
from pathlib import Path

from pooling.errors import SourceError

_PACKAGE = "python:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = [
    *("*.json", "*.safetensors", "*.txt", "*.model"),
    *("*_Dense/pytorch_model.bin", "*_LayerNorm/pytorch_model.bin"),
    *("sparse_linear.pt", "colbert_linear.pt", "artifact.metadata"),
]
_FORMS = "a directory, a hub id such as org/name, or python:package/dir inside an installed package"


def locate(source: str) -> Path:
    """The directory that holds the model's files; a hub id is downloaded once, then cached.

    Raises SourceError naming what was given and what is allowed.
    """
    if source.startswith(_PACKAGE):
        return _in_package(source)
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise SourceError(f"model source {source!r} is a file; give {_FORMS}")
    if not _may_be_hub_id(source):
        raise SourceError(f"model source {source!r} does not exist; give {_FORMS}")
    return _from_hub(source)


def is_local(source: str) -> bool:
    """Whether a source is read from a disk; a hub id, which is fetched, is not. It need not be there."""
    return not _may_be_hub_id(source) or Path(source).expanduser().exists()


def _may_be_hub_id(source: str) -> bool:
    return _HUB_ID.fullmatch(source) is not None and not source.startswith(".")


def _in_package(source: str) -> Path:
    package, _, inside = source.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or ".." in inside.split("/") or inside.startswith("/"):
        raise SourceError(f"model source {source!r} is not of the form python:package/dir")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"model source {source!r} names the Python package {package!r}, which is not installed")
    directory = Path(spec.submodule_search_locations[0], inside)
    if not directory.is_dir():
        raise SourceError(f"model source {source!r}: the package {package!r} has no directory {inside!r}")
    return directory


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_WANTED))
    except Exception as error:  # the hub's client raises dozens of kinds; each means the files are not here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"model source {source!r} is not a directory here and could not be fetched as a hub id ({reason}); "
            f"give {_FORMS}"
        ) from None
