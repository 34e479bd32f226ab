"""What a client notices of a replica that dies, and what the engines notice of a client that leaves."""

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import ray

from tests.deployments.conftest import Service, wait_until
from tests.texts import words

EMBED = "/v1/embeddings"
LONG = {
    "model": "minilm",
    "input": [[7] * 248 + [7 + number // 32, 7 + number % 32] for number in range(1_000)],
}  # many seconds of work


def test_a_killed_replica_costs_no_client_anything(client: httpx.Client, handle: Any) -> None:
    before = engine_values(client, "steps", "bert")
    assert len(before) == 2
    victim, other = before
    texts = [words(1 + index % 50, start=index) for index in range(20)]
    expected = handle.embed.remote(texts, model="bert").result()
    responses: list[httpx.Response] = []
    bulk: list[httpx.Response] = []
    over = threading.Event()

    def post_until_over(body: dict[str, Any], to: list[httpx.Response]) -> None:
        while not over.is_set():
            to.append(client.post(EMBED, json={**body, "model": "bert"}))

    def under_way() -> bool:
        return len(responses) > 20 and engine_values(client, "waiting_tokens", "bert").get(victim, 0) > 10_000

    with ThreadPoolExecutor(8) as threads:
        load = [threads.submit(post_until_over, {"input": texts}, responses) for _ in range(6)]
        load += [threads.submit(post_until_over, LONG, bulk) for _ in range(2)]
        try:
            wait_until(under_way)
            kill(victim)
            wait_until(lambda: len({*engine_values(client, "steps", "bert")} - {victim}) == 2)  # another has its place
        finally:
            over.set()
    assert all(thread.result() is None for thread in load)
    assert {response.status_code for response in responses + bulk} == {200}
    assert metric(client, 'raypool_lost_slices_total{model="bert"') >= 1  # else nothing was at stake
    assert other in engine_values(client, "steps", "bert")
    for response in responses:
        vectors = [item["embedding"] for item in response.json()["data"]]
        np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_the_only_replica_dies_and_requests_wait_for_the_next(client: httpx.Client) -> None:
    (victim,) = engine_values(client, "steps", "minilm")
    kill(victim)
    wait_until(lambda: client.get("/health").status_code == 503)
    assert client.post(EMBED, json={"input": "a"}).status_code == 200
    wait_until(lambda: client.get("/health").status_code == 200)


def test_a_client_that_leaves_takes_its_work_with_it(service: Service, client: httpx.Client) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    content = json.dumps(LONG).encode()
    head = (
        f"POST {EMBED} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        wait_until(lambda: waiting(client) > 100_000)
    left = time.monotonic()
    wait_until(lambda: waiting(client) == 0)
    assert time.monotonic() - left < 20  # the work itself takes longer
    assert 'status="499",task="embed"' in client.get("/metrics").text
    assert client.post(EMBED, json={"input": "a"}).status_code == 200


def test_a_deadline_that_passes_takes_its_work_with_it(client: httpx.Client) -> None:
    response = client.post(EMBED, json=LONG, headers={"x-request-timeout-seconds": "2"})
    assert response.status_code == 504
    wait_until(lambda: waiting(client) == 0, seconds=10)


def test_a_replica_whose_engine_has_failed_ends_its_process() -> None:
    """Else it would answer every request at once, with an error, and attract all the others."""
    script = """
import asyncio
from types import SimpleNamespace
from deployments.replica import EngineReplica
from pooling.errors import EngineDead

class Failed:
    healthy, failure = False, "the engine has stopped: test"
    async def pool(self, batch):
        raise EngineDead("the engine has stopped: test")
    def close(self):
        pass

async def main():
    replica = object.__new__(EngineReplica)
    replica._engine, replica._ending = Failed(), False
    try:
        await replica.pool(None)
    except EngineDead as error:
        print("told:", error, flush=True)
    await asyncio.sleep(30)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=25, check=False)
    assert ended.returncode == 1
    assert ended.stdout == "told: the engine has stopped: test\n"


def kill(replica: str) -> None:
    """Kills the process of an engine replica, without notice."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if name.endswith(f"#{replica}"))
    ray.kill(ray.get_actor(name, namespace="serve"))


def engine_values(client: httpx.Client, value: str, model: str) -> dict[str, float]:
    """What each running replica of a model says, by replica."""
    prefix = f'raypool_engine_{value}{{model="{model}",replica="'
    lines = client.get("/metrics").text.splitlines()
    pairs = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    return {replica: float(number) for replica, number in pairs}


def metric(client: httpx.Client, begins: str) -> float:
    """The sum of the samples whose line begins so."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begins))


def waiting(client: httpx.Client) -> float:
    return sum(engine_values(client, "waiting_tokens", "minilm").values())
