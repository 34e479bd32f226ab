"""start_in_placement_group(): the ranks of a split model as actors, beside rank 0 in its placement group."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.failure import last_line
from cluster.worker import ShardWorker
from pooling.errors import StartupError
from pooling.parallel.group import Meeting, StartRanks
from pooling.parallel.local import start_local


def start_in_placement_group() -> StartRanks:
    """How Engine.load starts the other ranks where this process is an actor in a placement group, rank 0's.

    cluster.placement has its bundles. Raises StartupError outside of a placement group.
    """
    group = get_current_placement_group()
    if group is None:
        raise StartupError("the ranks of a split model need a placement group, and this process is in none")

    def start(meeting: Meeting) -> ActorRanks:
        if group.bundle_count < meeting.size:
            raise StartupError(
                f"tensor_parallel_size is {meeting.size}, but the placement group has {group.bundle_count} bundles"
            )
        return ActorRanks([_Rank(group, rank, meeting) for rank in range(1, meeting.size)])

    return start


def start_ranks() -> StartRanks:
    """For jobs of any shape: in the placement group where this process is in one, else as processes of this machine."""
    return start_local if get_current_placement_group() is None else start_in_placement_group()


class _Rank:
    """One actor, and what its only call comes to."""

    def __init__(self, group: Any, rank: int, meeting: Meeting) -> None:
        bundle = group.bundle_specs[rank]
        # A rank that died has lost its place in every sum: the group is started anew, never the rank.
        kind: Any = ray.remote(ShardWorker)
        remote = kind.options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        self.actor = remote.remote()
        self.end = self.actor.serve.remote(meeting.door, rank, meeting.device)


class ActorRanks:
    """Ranks that are actors."""

    def __init__(self, ranks: Sequence[_Rank]) -> None:
        self._ranks = ranks

    def gone(self) -> str | None:
        for number, rank in enumerate(self._ranks, 1):
            done, _ = ray.wait([rank.end], timeout=0)
            if not done:
                continue
            try:
                ray.get(rank.end)
            except RayError as error:
                return f"rank {number}: {last_line(str(error))}"
            return f"rank {number} ended before its group did"
        return None

    def end(self) -> None:
        for rank in self._ranks:
            ray.kill(rank.actor)
