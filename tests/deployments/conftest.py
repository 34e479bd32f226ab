"""One real Ray cluster with Serve behind HAProxy for all tests of this directory, and two apps on it.

`raypool` at /: a model of each kind, one of them in two replicas. `guarded` at
/guarded: keys, small limits, two routers.
"""

import os
import socket
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.checkpoints import MINILM

with warnings.catch_warnings():
    # Ray 2.60 defines its settings in a way that pydantic has deprecated; that is between the two of them.
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray
    from ray import serve

if TYPE_CHECKING:
    from tests.deployments.local import LocalRouter

KEYS = ["first-key", "second-key"]
# Steps of 256 tokens: small enough that a test's request is worth cutting up.
STEP_TOKENS = 256


@dataclass(frozen=True)
class Service:
    """Where the two apps answer."""

    url: str
    guarded_url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def guarded(self, key: str | None = KEYS[0]) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.guarded_url, timeout=60, headers=headers, trust_env=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where each model of tests/deployments/models.py is."""
    from tests.deployments.models import WRITERS

    return {name: str(write(tmp_path_factory.mktemp(name))) for name, write in WRITERS.items()}


@pytest.fixture(scope="session")
def local(models: dict[str, str]) -> "Iterator[LocalRouter]":
    """A router without Ray, with one model of each kind."""
    from deployments.config import ServiceConfig
    from tests.deployments.local import LocalRouter

    sources = {"minilm": MINILM, **models}
    config = {"models": [{"source": source, "name": name, "dtype": "float32"} for name, source in sources.items()]}
    router = LocalRouter(ServiceConfig.model_validate(config))
    yield router
    router.close()


@pytest.fixture(scope="session")
def pictured(checkpoint: Callable[[str], Path]) -> "Iterator[LocalRouter]":
    """A router without Ray, with models that take images beside one of texts."""
    from deployments.config import ServiceConfig
    from tests.deployments.local import LocalRouter

    reads_both = str(checkpoint("qwen3-vl"))
    scorer = {"architectures": ["Qwen3VLForSequenceClassification"], "is_original_qwen3_reranker": True}
    models: list[dict[str, Any]] = [
        {"name": "minilm", "source": MINILM},
        {"name": "clip", "source": str(checkpoint("clip"))},
        {"name": "vit", "source": str(checkpoint("vit"))},
        {"name": "qwen", "source": reads_both},
        {"name": "reranker", "source": reads_both, "hf_overrides": scorer},
        {"name": "colqwen", "source": str(checkpoint("colqwen2"))},
    ]
    config = {"models": [{"dtype": "float32", **model} for model in models]}
    router = LocalRouter(ServiceConfig.model_validate(config))
    yield router
    router.close()


@pytest.fixture
async def app(local: "LocalRouter") -> AsyncIterator[httpx.AsyncClient]:
    """A client of that router's HTTP surface."""
    from deployments.http.app import build_http

    transport = httpx.ASGITransport(build_http(local), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        yield client


@pytest.fixture(scope="package")
def service(checkpoint: Callable[[str], Path], models: dict[str, str]) -> Iterator[Service]:
    """Gone with the tests of this directory: `ray.init("auto")` picks any of two clusters on a machine."""
    from deployments.app import build
    from deployments.config import ServiceConfig

    port, stats, metrics = _free_ports(3)
    bert = str(checkpoint("bert"))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _flags(stats, metrics).items():
            environment.setenv(name, value)
        if ray.is_initialized():  # by tests of another directory, without these flags
            ray.shutdown()
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False
        )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        plain = ServiceConfig.model_validate(
            {
                "models": [
                    {"source": MINILM, "name": "minilm", "dtype": "float32", "num_cpus": 0.3},
                    {
                        "source": bert,
                        "name": "bert",
                        "dtype": "float32",
                        "num_cpus": 0.2,
                        "replicas": 2,
                        "max_batch_tokens": STEP_TOKENS,
                    },
                    *(
                        {"source": source, "name": name, "dtype": "float32", "num_cpus": 0.1}
                        for name, source in (*models.items(), ("clip", str(checkpoint("clip"))))
                    ),
                ]
            }
        )
        guarded = ServiceConfig.model_validate(
            {
                "models": [{"source": bert, "name": "bert", "dtype": "float32", "num_cpus": 0.2}],
                "router": {"replicas": 2},
                "api_keys": KEYS,
                "limits": {
                    "max_body_bytes": 20_000,
                    "max_inputs": 4,
                    "max_queued_tokens": 400,
                    "max_answer_bytes": 20_000,  # vectors of 78 tokens
                },
            }
        )
        serve.run(build(plain), name="raypool", route_prefix="/")
        serve.run(build(guarded), name="guarded", route_prefix="/guarded")
        found = Service(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/guarded")
        with found.client() as client, found.guarded() as guarded_client:
            wait_until(lambda: client.get("/health").status_code == 200, seconds=180)
            wait_until(lambda: guarded_client.get("/health").status_code == 200, seconds=180)
        yield found
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def guarded(service: Service) -> Iterator[httpx.Client]:
    with service.guarded() as client:
        yield client


@pytest.fixture
def handle(service: Service) -> Any:
    """The Python API, as a job without our environment flags gets it."""
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" not in os.environ
    return serve.get_app_handle("raypool")


def _flags(stats_port: int, metrics_port: int) -> dict[str, str]:
    """What `raypool serve` sets for a user, with ports of its own."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_USAGE_STATS_ENABLED": "0",
        # On one machine only: replicas listen on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # In production a replica drains for 30 s, so that balancers notice. Here nobody polls.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not true within {seconds:g} s")
