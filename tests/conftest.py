"""What all tests share: small checkpoints on disk, written once a session, and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# To the end of the process: Ray Data asks when a dataset runs, and else a thread of its own looks for Prometheus every
# ten seconds and logs a traceback, whose formatting parses code; two threads that parse trip over one another in
# Python 3.11 (SystemError: AST constructor recursion depth mismatch).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's checkpoint, by its name in tests/checkpoints."""
    from tests.checkpoints import EVERY
    from tests.checkpoints.images import WITH_IMAGES

    @cache
    def write(name: str) -> Path:
        return (WITH_IMAGES[name] if name in WITH_IMAGES else EVERY[name]).write(tmp_path_factory.mktemp(name))

    return write


@pytest.fixture
def broken_checkpoint(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The directory of a BERT checkpoint damaged in one way, by its name in tests/broken.py."""
    from tests.broken import BREAKAGES

    def write(name: str) -> Path:
        directory = tmp_path / name.replace(" ", "-")
        shutil.copytree(checkpoint("bert"), directory)
        BREAKAGES[name](directory)
        return directory

    return write


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a model that judges, by its name in tests/scorers.py."""
    from tests.scorers import write

    @cache
    def written(name: str) -> Path:
        return write(name, tmp_path_factory.mktemp(name))

    return written
