"""A small real Ray for the tests of this directory."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # Ray 2.60 defines its settings in a way that pydantic has deprecated; that is between the two of them.
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray
    import ray.data


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[None]:
    """Two CPUs in Ray's books, whatever the machine has."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # every port on 127.0.0.1
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
