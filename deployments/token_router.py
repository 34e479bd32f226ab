"""TokenRouter: which engine replica gets a slice, by the tokens under way there; Serve runs one in each router."""

import weakref
from collections import Counter, defaultdict
from itertools import chain, count
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.outstanding import Outstanding
from pooling.request import PackedBatch


class TokenRouter(FIFOMixin, RequestRouter):
    """Serve's own choice counts requests, so that a slice of a bulk request weighs as much as one word.

    Each router knows what it has sent itself. Slices of one request are chosen
    for within a millisecond, before any replica could tell how full it is, so
    each counts from the moment that it is chosen for.

    All slices of a request have its `internal_request_id`, which is all that
    Serve says of one that is done. So a slice counts under a key of its own,
    and the keys of those that a replica has are kept under both. For the same
    reason slices are matched in the order in which they came, not by that id.
    """

    def initialize_state(self, small_tokens: int) -> None:  # type: ignore[override]  # Serve passes request_router_kwargs
        self._outstanding: Outstanding[ReplicaID] = Outstanding(small_tokens)
        self._numbers = count()
        self._waiting: Counter[str] = Counter()
        self._routed: defaultdict[tuple[str, ReplicaID], list[str]] = defaultdict(list)
        self._early: defaultdict[str, Counter[ReplicaID]] = defaultdict(Counter)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Some replicas, best first; Serve takes the first that has room and answers."""
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        tokens = _tokens(pending_request)
        ranks = self._outstanding.best(list(by_id), tokens, self.replica_queue_len_cache.get)
        if pending_request is not None:
            # Else Serve would ask again at once where none has room, and let nothing else run meanwhile.
            pending_request.routing_context.should_backoff = True
            if ranks:
                self._expect(pending_request, ranks[0][0], tokens)
        return [[by_id[replica_id] for replica_id in rank] for rank in ranks]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        request = pending_request.metadata.internal_request_id
        self._outstanding.done(_chosen(pending_request))
        if self._early[request][replica_id] > 0:  # it was answered before Serve came to say where it went
            self._early[request][replica_id] -= 1
            return
        key = f"sent {next(self._numbers)}"
        self._routed[request, replica_id].append(key)
        self._outstanding.send(key, replica_id, _tokens(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        keys = self._routed.get((internal_request_id, replica_id))
        if keys:
            self._outstanding.done(keys.pop(0))  # which of them is all the same: slices of a request have equal tokens
            if not keys:
                del self._routed[internal_request_id, replica_id]
        elif internal_request_id in self._waiting:
            self._early[internal_request_id][replica_id] += 1

    def _expect(self, pending_request: PendingRequest, replica_id: ReplicaID, tokens: int) -> None:
        """Counts a slice where it is likely to go, until it goes, or its caller leaves, of which Serve tells nobody."""
        key, request = _chosen(pending_request), pending_request.metadata.internal_request_id
        if key not in self._outstanding:
            self._waiting[request] += 1
            weakref.finalize(pending_request, self._forget, key, request).atexit = False
        self._outstanding.send(key, replica_id, tokens)

    def _forget(self, key: str, request: str) -> None:
        self._outstanding.done(key)
        self._waiting[request] -= 1
        if not self._waiting[request]:
            del self._waiting[request]
            self._early.pop(request, None)


def _chosen(pending_request: PendingRequest) -> str:
    return f"chosen {id(pending_request)}"


def _tokens(pending_request: PendingRequest | None) -> int:
    """Of the batches that a call carries; 0 for the few that carry none."""
    arguments: list[Any] = [] if pending_request is None else pending_request.args
    batches = chain.from_iterable(each if isinstance(each, list) else [each] for each in arguments)
    return sum(batch.tokens for batch in batches if isinstance(batch, PackedBatch))
