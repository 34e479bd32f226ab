"""Where a slice goes: to the replica with the fewest tokens under way of its kind."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import numpy as np

from deployments.outstanding import Outstanding
from deployments.token_router import TokenRouter
from pooling.request import PackedBatch

STEP = 100


def nothing_else(_: object) -> int:
    """What is heard of replicas to which no other router sends."""
    return 0


def test_a_large_slice_goes_where_large_ones_have_the_fewest_tokens() -> None:
    counts: Outstanding[str] = Outstanding(STEP)
    counts.send("1", "a", 900)
    counts.send("2", "b", 500)
    counts.send("3", "c", 700)
    assert counts.best(["a", "b", "c"], 400, nothing_else) == [["b"], ["c"], ["a"]]
    counts.send("4", "b", 400)
    counts.done("1")
    assert counts.best(["a", "b", "c"], 400, nothing_else) == [["a"], ["c"], ["b"]]


def test_a_small_slice_does_not_mind_large_ones() -> None:
    counts: Outstanding[str] = Outstanding(STEP)
    counts.send("1", "a", 10_000)
    counts.send("2", "b", 60)
    assert counts.best(["a", "b"], 20, nothing_else) == [["a"], ["b"]]
    assert counts.best(["a", "b"], STEP, nothing_else) == [["b"], ["a"]]


def test_what_other_routers_sent_counts_as_slices_of_average_size() -> None:
    counts: Outstanding[str] = Outstanding(STEP)
    counts.send("1", "a", 700)
    counts.send("2", "b", 500)  # 600 on average
    assert counts.best(["a", "b"], 400, {"a": 1, "b": 1}.get) == [["b"], ["a"]]
    assert counts.best(["a", "b"], 400, {"a": 1, "b": 2}.get) == [["a"], ["b"]]


def test_a_replica_that_has_not_spoken_lately_is_to_be_asked() -> None:
    counts: Outstanding[str] = Outstanding(STEP)
    counts.send("1", "a", 700)
    counts.send("2", "b", 500)
    assert counts.best(["a", "b", "c"], 400, {"a": 1, "b": 1}.get) == [["c", "b"], ["a"]]


def test_replicas_that_are_equal_take_turns() -> None:
    counts: Outstanding[int] = Outstanding(STEP)
    assert {counts.best(range(4), 20, nothing_else)[0][0] for _ in range(200)} == {0, 1, 2, 3}


def test_nothing_is_left_of_slices_that_are_done() -> None:
    counts: Outstanding[str] = Outstanding(STEP)
    for key, tokens in (("1", 900), ("2", 20)):
        counts.send(key, "a", tokens)
        counts.send(key, "b", tokens)  # it went elsewhere after all
        counts.done(key)
        counts.done(key)
    assert (len(counts), dict(counts._slices), dict(counts._small), dict(counts._large)) == (0, {}, {}, {})


class Call:
    """A call as Serve shows it to a request router."""

    def __init__(self, key: str, tokens: int) -> None:
        self.metadata = SimpleNamespace(internal_request_id=key)
        self.routing_context = SimpleNamespace(should_backoff=False)
        self.args: list[Any] = [PackedBatch(np.zeros(tokens, np.int32), np.array([tokens], np.int32))]


def router_of(*replicas: str) -> tuple[TokenRouter, list[Any]]:
    router = object.__new__(TokenRouter)
    router.initialize_state(small_tokens=STEP)
    router._replica_queue_len_cache = SimpleNamespace(get=nothing_else)
    return router, [SimpleNamespace(replica_id=replica) for replica in replicas]


def test_slices_chosen_for_at_once_are_spread() -> None:
    router, replicas = router_of("a", "b", "c")
    calls = [Call(str(number), 500) for number in range(6)]
    chosen = [asyncio.run(router.choose_replicas(replicas, call))[0][0].replica_id for call in calls]
    assert sorted(chosen) == ["a", "a", "b", "b", "c", "c"]


def test_a_call_with_several_requests_counts_all_their_tokens() -> None:
    router, replicas = router_of("a", "b")
    several, one = Call("1", 100), Call("2", 150)
    several.args = [several.args * 2]
    asyncio.run(router.choose_replicas(replicas, several))
    (fewer,), _ = asyncio.run(router.choose_replicas(replicas, one))
    (last,), _ = asyncio.run(router.choose_replicas(replicas, Call("3", 150)))
    assert last is fewer  # 150 tokens there, 200 at the other


def test_a_call_that_goes_elsewhere_counts_there() -> None:
    router, replicas = router_of("a", "b")
    call = Call("1", 500)
    (first,), (second,) = asyncio.run(router.choose_replicas(replicas, call))
    router.on_request_routed(call, second.replica_id, None)
    (again,), _ = asyncio.run(router.choose_replicas(replicas, Call("2", 500)))
    assert again is first


def test_a_call_that_is_answered_before_serve_says_where_it_went_counts_no_more() -> None:
    router, replicas = router_of("a", "b")
    call = Call("1", 500)
    asyncio.run(router.choose_replicas(replicas, call))
    router.on_request_completed("a", "1")
    router.on_request_routed(call, "a", None)
    assert len(router._outstanding) == 0
    assert not router._routed


def test_a_call_whose_caller_left_before_it_was_sent_counts_no_more() -> None:
    router, replicas = router_of("a", "b")
    sent, left = Call("1", 500), Call("2", 500)
    for call in (sent, left):
        asyncio.run(router.choose_replicas(replicas, call))
    router.on_request_routed(sent, "a", None)
    assert len(router._outstanding) == 2
    del sent, left, call
    gc.collect()
    assert len(router._outstanding) == 1  # the one that a replica has
    router.on_request_completed("a", "1")
    assert len(router._outstanding) == 0
    assert not router._routed


def test_slices_of_one_request_count_each_though_serve_calls_them_all_the_same() -> None:
    """A handle that is called within a request gives every call the id of that request."""
    router, replicas = router_of("a", "b")
    calls = [Call("1", 500) for _ in range(4)]
    chosen = [asyncio.run(router.choose_replicas(replicas, call))[0][0].replica_id for call in calls]
    assert sorted(chosen) == ["a", "a", "b", "b"]
    for call, replica in zip(calls, chosen, strict=True):
        router.on_request_routed(call, replica, None)
    assert len(router._outstanding) == 4
    for left, replica in zip((3, 2, 1, 0), chosen, strict=True):
        router.on_request_completed(replica, "1")
        assert len(router._outstanding) == left
    del call, calls
    gc.collect()
    assert (dict(router._routed), dict(router._waiting), dict(router._early)) == ({}, {}, {})


def test_serve_waits_before_it_asks_again() -> None:
    """Else a call that no replica has room for would keep the router's event loop to itself."""
    router, replicas = router_of("a")
    call = Call("1", 500)
    asyncio.run(router.choose_replicas(replicas, call))
    assert call.routing_context.should_backoff
