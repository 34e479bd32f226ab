"""A pool of actors with a placement group each, for engines that span several devices."""

from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.util import placement_group_table

from cluster.actor_groups import ActorGroups, alone_with_actors


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
