"""ActorGroups: a placement group for each actor of a Ray Data pool, for an engine that spans several devices."""

import uuid
from typing import Any

import ray
from ray.data import DataContext
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import get_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.placement import bundles


def alone_with_actors(context: DataContext) -> None:
    """Keeps a dataset from calling its `ray_remote_args_fn` for anything but an actor.

    Ray Data's detector of high memory asks it twice a minute too, and every
    answer would be a placement group that nobody uses.
    """
    context.issue_detectors_config.detectors = []


class ActorGroups:
    """`options` is a `ray_remote_args_fn`: Ray Data calls it for each actor that it starts; see alone_with_actors().

    The actor has the first of `size` equal bundles, on one node; what it starts
    has the others. Ray Data removes no groups, so remove() does in the end.
    """

    def __init__(self, size: int, cpus: float, gpus: float) -> None:
        self._bundles = bundles(size, cpus, gpus)
        self._prefix = f"raypool-{uuid.uuid4().hex}"

    def options(self) -> dict[str, Any]:
        name = f"{self._prefix}-{uuid.uuid4().hex}"
        group = placement_group(self._bundles, strategy="STRICT_PACK", name=name)
        strategy = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return {"scheduling_strategy": strategy}

    def remove(self) -> None:
        """By name: Ray Data may call a copy of this object."""
        if not ray.is_initialized():
            return
        for one in placement_group_table().values():
            if one["name"].startswith(self._prefix) and one["state"] != "REMOVED":
                remove_placement_group(get_placement_group(one["name"]))
