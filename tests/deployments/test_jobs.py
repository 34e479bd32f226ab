"""Jobs beside the service: the example by the handle from a driver of its own, and files answered as online."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import ray

from cluster.job import PoolingJob, run_job
from pooling.config import ModelSpec
from tests.checkpoints import MINILM
from tests.texts import words

ROOT = Path(__file__).parents[2]
TEXTS = [words(1 + n % 40, start=n) for n in range(60)]
QUERIES = [words(1 + n % 7, start=3 * n) for n in range(60)]


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("flags", [{}, {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}])
def test_the_example_asks_every_task_from_a_driver_of_its_own(flags: dict[str, str]) -> None:
    """Without our flags as a driver beside the cluster, with them as a job that inherits the cluster's environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "examples/job.py"],
        cwd=ROOT,
        env=kept | flags | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "embed    (3, 384) float32\n" in said
    assert re.search(r"from ids \(3, 384\) \de[+-]\d\d apart", said)
    assert "score    (3,) float32 A Ray cluster" in said
    assert "classify (3, 3)\n" in said
    assert re.search(r"reward   \[\(\d+, 1\), \(\d+, 1\), \(\d+, 1\)\]", said)
    assert said.endswith("at once  [(50, 384), (50, 384), (50, 384)]\n")


def written(task: str, source: str, directory: Path) -> pa.Table:
    """What a job over the texts writes."""
    parquet.write_table(pa.table({"text": TEXTS, "query": QUERIES, "document": TEXTS}), directory / "in.parquet")
    spec = ModelSpec(source=source, dtype="float32")
    files = {"input": str(directory / "in.parquet"), "output": str(directory / task)}
    report = run_job(
        PoolingJob.model_validate({"task": task, "spec": spec, "num_cpus": 0.1, "batch_size": 25, **files})
    )
    assert (report.rows, report.errors) == (len(TEXTS), 0)
    return pa.concat_tables(
        [parquet.ParquetFile(file).read() for file in sorted(Path(report.output).glob("*.parquet"))]
    )


def test_files_get_the_answers_that_the_service_gives(handle: Any, models: dict[str, str], tmp_path: Path) -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    vectors = np.array(written("embed", MINILM, tmp_path).column("embedding").to_pylist())
    np.testing.assert_allclose(vectors, handle.embed.remote(TEXTS, model="minilm").result(), atol=2e-6)

    classified = written("classify", models["emotions"], tmp_path)
    online = handle.classify.remote(TEXTS, model="emotions").result()
    np.testing.assert_allclose(np.array(classified.column("probs").to_pylist()), online, atol=2e-6)
    assert classified.column("label").to_pylist() == [("joy", "fear", "anger")[row] for row in online.argmax(axis=1)]

    scores = np.array(written("score", models["reranker"], tmp_path).column("score").to_pylist())
    online = handle.score.remote(QUERIES, TEXTS, model="reranker").result()
    np.testing.assert_allclose(scores, online, atol=2e-6)

    rewards = written("reward", models["reranker"], tmp_path).column("reward").to_pylist()
    online = handle.reward.remote(TEXTS, model="reranker").result()
    assert [len(rows) for rows in rewards] == [len(rows) for rows in online]
    np.testing.assert_allclose(np.concatenate(rewards), np.concatenate(online), rtol=1e-4, atol=1e-4)
