"""ShardWorker: one rank of a split model, in an actor of its own."""

import torch

from cluster.actor_process import settle_actor_process
from pooling.parallel.rank import serve_rank


class ShardWorker:
    """Serves one group to its end. Ray shows each actor its own GPU as the first one."""

    def serve(self, door: str, rank: int, device: str) -> None:
        """Raises what serve_rank raises; ends this process when rank 0 is gone."""
        settle_actor_process()
        serve_rank(door, rank, torch.device(device, 0) if device == "cuda" else torch.device(device))
