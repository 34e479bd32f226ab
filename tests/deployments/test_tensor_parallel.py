"""A model split over two ranks behind Serve: it answers as one, and a lost shard costs no client anything."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ray import serve

from tests.deployments.conftest import Service, wait_until
from tests.deployments.test_failure import engine_values, kill, metric
from tests.texts import words

EMBED = "/v1/embeddings"
TEXTS = [words(1 + index % 50, start=index) for index in range(20)]


@pytest.fixture(scope="module")
def split(service: Service, checkpoint: Callable[[str], Path]) -> Iterator[httpx.Client]:
    """Two replicas of two ranks each."""
    from deployments.app import build
    from deployments.config import ServiceConfig

    model = {"source": str(checkpoint("bert")), "name": "split", "dtype": "float32", "num_cpus": 0.1, "replicas": 2}
    config = ServiceConfig.model_validate({"models": [{**model, "tensor_parallel_size": 2}]})
    serve.run(build(config), name="split", route_prefix="/split")
    with httpx.Client(base_url=f"{service.url}/split", timeout=60, trust_env=False) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client
    serve.delete("split")
    wait_until(lambda: not shards())


def test_it_answers_as_the_whole_model_does(split: httpx.Client, client: httpx.Client) -> None:
    assert len(shards()) == 2  # beside each replica one more rank
    expected, actual = (vectors(one, model) for one, model in ((client, "bert"), (split, "split")))
    assert np.abs(actual - expected).max() < 1e-5


def test_a_killed_shard_costs_no_client_anything(split: httpx.Client, client: httpx.Client) -> None:
    expected = vectors(client, "bert")
    before, replicas = shards(), set(engine_values(split, "steps", "split"))
    assert len(replicas) == 2
    responses: list[httpx.Response] = []
    over = threading.Event()

    def post_until_over() -> None:
        while not over.is_set():
            responses.append(split.post(EMBED, json={"input": TEXTS, "model": "split"}))

    with ThreadPoolExecutor(8) as threads:
        load = [threads.submit(post_until_over) for _ in range(8)]
        wait_until(lambda: len(responses) > 50)
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: min(before) not in shards())
        # Another replica with a shard of its own takes the place of the whole group, by itself.
        wait_until(lambda: len(set(engine_values(split, "steps", "split")) - replicas) == 1, 120)
        wait_until(lambda: len(engine_values(split, "steps", "split")) == 2 == len(shards()))
        wait_until(lambda: len(responses) >= 500, 120)
        over.set()
    assert all(thread.result() is None for thread in load)
    failed = [response.text for response in responses if response.status_code != 200]
    print(f"{len(responses)} requests, {len(failed)} failed")
    assert failed == []
    assert metric(split, 'raypool_lost_slices_total{model="split"') >= 1  # else nothing was at stake
    for response in responses:
        rows = np.array([item["embedding"] for item in response.json()["data"]])
        assert np.abs(rows - expected).max() < 1e-5


def test_the_shard_of_a_killed_replica_ends_with_it(split: httpx.Client) -> None:
    before = shards()
    replicas = set(engine_values(split, "steps", "split"))
    assert len(before) == len(replicas) == 2
    kill(min(replicas))
    wait_until(lambda: len(before & shards()) == 1)
    wait_until(lambda: len(shards()) == 2 and len(set(engine_values(split, "steps", "split")) - replicas) == 1, 120)
    assert split.post(EMBED, json={"input": "a", "model": "split"}).status_code == 200


def vectors(client: httpx.Client, model: str) -> Any:
    response = client.post(EMBED, json={"input": TEXTS, "model": model})
    assert response.status_code == 200, response.text
    return np.array([item["embedding"] for item in response.json()["data"]])


def shards() -> set[int]:
    """The processes of ranks 1 and up on this machine, of this cluster or of none."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            named, state = (place / "cmdline").read_bytes(), (place / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if named.startswith(b"ray::ShardWorker") and state != "Z":
            found.add(int(place.name))
    return found
