"""/openapi.json is true: a fuzzer that is driven by it finds no 500 and no answer that it does not promise."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS

from deployments.http.app import build_http
from tests.deployments.local import LocalRouter

# What a true document promises; others of schemathesis's checks judge taste, e.g. which wrong bodies may pass.
PROMISES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
EXAMPLES = 25


@pytest.fixture(scope="module")
def url(local: LocalRouter) -> Iterator[str]:
    """The router behind a real HTTP server, without Ray."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(build_http(local), log_level="warning", ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def operations(url: str) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_route_is_told_of(operations: dict[str, Any]) -> None:
    assert len(operations) == 28


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_service_keeps_what_the_document_promises(operations: dict[str, Any], url: str, mode: str) -> None:
    checks = [CHECKS.get_one(name) for name in PROMISES]
    statuses: dict[str, set[int]] = {}
    for operation in operations.values():
        if mode == "negative" and "requestBody" not in operation.definition.raw:
            continue  # there is nothing to get wrong
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def keeps_promises(case: Any) -> None:
            response = case.call(base_url=url)
            statuses.setdefault(case.operation.label, set()).add(response.status_code)
            case.validate_response(response, checks=checks)

        keeps_promises()
    if mode == "positive":
        reached = {label for label, found in statuses.items() if 200 in found}
        assert len(reached) > 20, statuses  # the fuzzer gets through the door


def test_every_reference_of_the_document_leads_somewhere(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from references(child)

    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
