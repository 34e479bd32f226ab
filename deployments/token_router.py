"""TokenRouter: which engine replica gets a slice, by the tokens under way there; Serve runs one in each router."""

import weakref
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.outstanding import Outstanding
from pooling.request import PackedBatch


class TokenRouter(RequestRouter):
    """Serve's own choice counts requests, so that a slice of a bulk request weighs as much as one word.

    Each router knows what it has sent itself. Slices of one request are chosen
    for within a millisecond, before any replica could tell how full it is, so
    each counts from the moment that it is chosen for.
    """

    def initialize_state(self, small_tokens: int) -> None:  # type: ignore[override]  # Serve passes request_router_kwargs
        self._outstanding: Outstanding[ReplicaID] = Outstanding(small_tokens)
        self._routed: set[str] = set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Some replicas, best first; Serve takes the first that has room and answers."""
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        tokens = _tokens(pending_request)
        ranks = self._outstanding.best(list(by_id), tokens, self.replica_queue_len_cache.get)
        if pending_request is not None and ranks:
            key = pending_request.metadata.internal_request_id
            self._outstanding.send(key, ranks[0][0], tokens)
            # A caller may leave before its request is sent, of which Serve tells nobody.
            weakref.finalize(pending_request, self._forget_unsent, key).atexit = False
        return [[by_id[replica_id] for replica_id in rank] for rank in ranks]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        key = pending_request.metadata.internal_request_id
        if key in self._outstanding:  # else it was answered before Serve came to say so
            self._routed.add(key)
            self._outstanding.send(key, replica_id, _tokens(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._routed.discard(internal_request_id)
        self._outstanding.done(internal_request_id)

    def _forget_unsent(self, key: str) -> None:
        if key not in self._routed:
            self._outstanding.done(key)


def _tokens(pending_request: PendingRequest | None) -> int:
    """Of the batch that a call carries; 0 for the few that carry none."""
    arguments: list[Any] = [] if pending_request is None else pending_request.args
    return next((argument.tokens for argument in arguments if isinstance(argument, PackedBatch)), 0)
