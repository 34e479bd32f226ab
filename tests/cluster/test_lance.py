"""Lance out: one dataset, in the order of the input, that is not there until all of it is."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.ledger import Ledger
from cluster.output_formats import OUTPUT_FORMATS
from pooling.errors import ConfigError

LANCE = OUTPUT_FORMATS["lance"]


def part(start: int) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([float(n) for n in range(6)], pa.float32()), 2)
    rewards = pa.array([[[1.0]], [[2.0], [3.0]], None], pa.list_(pa.list_(pa.float32(), 1)))
    return pa.table({"id": range(start, start + 3), "embedding": vectors, "reward": rewards})


def test_fragments_become_one_dataset_in_the_order_of_their_parts(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    ledger = Ledger(str(tmp_path))
    ledger.open({"task": "embed"})
    for number in (1, 0):
        ledger.enter(0, number, 3, 0, LANCE.write(ledger, f"part-{number}", part(3 * number)))
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(str(tmp_path))
    for _ in range(2):  # killed after the commit, a job commits again
        LANCE.finish(ledger)
        found = lance.dataset(str(tmp_path)).to_table()
        assert found.equals(pa.concat_tables([part(0), part(3)]))


def test_lance_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package pylance; install raypool\[lance\]"):
        LANCE.check(pa.schema([]))


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_writes_a_lance_dataset(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    from cluster.job import PoolingJob, run_job
    from pooling.config import ModelSpec

    parquet.write_table(pa.table({"text": ["a", None, "b", "c", "d"]}), tmp_path / "in.parquet")
    spec = ModelSpec(source=str(checkpoint("bert")), dtype="float32")
    job = PoolingJob(input=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), spec=spec, num_cpus=1)
    job = job.model_copy(update={"output_format": "lance", "batch_size": 2})
    report = run_job(job)
    assert (report.rows, report.errors) == (5, 1)
    found = lance.dataset(report.output).to_table()
    assert found.column("text").to_pylist() == ["a", None, "b", "c", "d"]
    assert [row is None for row in found.column("embedding").to_pylist()] == [False, True, False, False, False]
