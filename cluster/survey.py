"""survey(): what each node of the running cluster has: the versions of what we run, and the files of the models."""

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pooling
from pooling.errors import SourceError
from pooling.loading.source import is_local, locate

# Vectors of the same model may differ between versions of these.
_PACKAGES = ("torch", "transformers", "tokenizers")
# A node starts a worker process within seconds; one that does not is too busy to ask, and no reason to refuse.
_ANSWERS_S = 20.0


class NodeFacts(NamedTuple):
    """What a node has. files: of each source that is read from its disk, a digest of names and sizes, or what is wrong.

    versions None: what we run is not installed there.
    """

    node: str
    versions: dict[str, str] | None
    files: dict[str, tuple[str, str]]


def survey(sources: Sequence[str]) -> list[NodeFacts]:
    """Asks every node of a cluster that has several; those that do not answer in twenty seconds are left out.

    A hub id is not looked for: each node fetches it itself.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's is untyped
    if len(nodes) < 2:
        return []
    local = [source for source in dict.fromkeys(sources) if is_local(source)]
    answers = {_ask(node["NodeID"], local): _name(node) for node in nodes}
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWERS_S)
    facts = [_facts(answer, answers[answer]) for answer in ready]
    for answer in answers:
        ray.cancel(answer, force=True)
    return facts


def _ask(node_id: str, sources: list[str]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(sources)


def _facts(answer: Any, node: str) -> NodeFacts:
    try:
        versions, files = ray.get(answer)
    except Exception:  # the task could not be read there, or the node has gone
        return NodeFacts(node, None, {})
    return NodeFacts(node, versions, files)


def look(sources: list[str]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Runs on a node. Imports nothing heavy and reads no weights."""
    versions = {"python": platform.python_version(), "raypool": pooling.__version__}
    for package in _PACKAGES:
        try:
            # Without the build: CPU nodes have torch 2.13.0+cpu beside GPU nodes with 2.13.0+cu130.
            versions[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions, {source: _look_at(source) for source in sources}


def _look_at(source: str) -> tuple[str, str]:
    """(digest, "") of a model's files, or ("", why there are none)."""
    try:
        return _digest(locate(source)), ""
    except SourceError as error:
        return "", error.detail
    except Exception as error:  # of the disk or the file system: raypool itself is there
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return "", f"the files of model source {source!r} cannot be read: {type(error).__name__}: {reason}"


def _digest(directory: Path) -> str:
    files = {path.relative_to(directory): path for path in directory.rglob("*")}
    sizes = sorted(f"{name} {path.stat().st_size}" for name, path in files.items() if _counts(name) and path.is_file())
    return hashlib.sha256("\n".join(sizes).encode()).hexdigest()


def _counts(name: Path) -> bool:
    """Whether a file is the model's: `hf download` keeps notes of the day in .cache, Python compiles what it runs."""
    return not any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node id {node['NodeID'][:8]})"
