"""A pool of actors with a placement group each, for engines that span several devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from pyarrow import parquet
from ray.util import placement_group_table

from cluster.actor_groups import ActorGroups, alone_with_actors
from cluster.job import PoolingJob, run_job
from pooling import LLM, ModelSpec
from tests.texts import words


class Spanning:
    """Says which group its actor is in, and which one an actor that it starts is in."""

    def __init__(self) -> None:
        import time

        self._shard = ray.remote(num_cpus=0.3)(_Shard).remote()
        time.sleep(0.1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        own = ray.util.get_current_placement_group()
        groups = [own.id.hex(), ray.get(self._shard.group.remote())]
        return pa.table({"groups": [groups], "bundles": [len(own.bundle_specs)]})


class _Shard:
    def group(self) -> str:
        return str(ray.util.get_current_placement_group().id.hex())


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore:`ray_remote_args_fn` is deprecated")
def test_each_actor_and_its_shards_have_a_group_that_is_gone_afterwards() -> None:
    groups = ActorGroups(size=2, cpus=0.3, gpus=0)
    dataset: Any = ray.data.from_items(list(range(8)), override_num_blocks=8).map_batches(
        Spanning,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.3,
        ray_remote_args_fn=groups.options,
    )
    alone_with_actors(dataset.context)
    rows = dataset.take_all()
    assert {row["bundles"] for row in rows} == {2}
    assert all(own == shard for own, shard in (row["groups"] for row in rows))
    used = {row["groups"][0] for row in rows}
    table = placement_group_table()
    assert {one for one, group in table.items() if group["state"] != "REMOVED"} == used  # one for each actor, no more
    assert {table[one]["strategy"] for one in used} == {"STRICT_PACK"}
    groups.remove()
    assert {placement_group_table()[one]["state"] for one in used} == {"REMOVED"}


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_whose_engine_spans_two_ranks_has_the_vectors_of_one(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, model = [words(1 + n % 50, start=n) for n in range(40)], str(checkpoint("bert"))
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    spec = ModelSpec(source=model, dtype="float32", tensor_parallel_size=2)
    report = run_job(
        PoolingJob(task="embed", input=str(tmp_path / "in.txt"), output=str(tmp_path / "out"), spec=spec, num_cpus=0.5)
    )
    assert (report.rows, report.errors) == (40, 0)
    vectors = parquet.read_table(tmp_path / "out").column("embedding").to_pylist()
    with LLM(model, dtype="float32") as llm:
        expected = [output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
