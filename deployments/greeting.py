"""greeting(): one request that works, as a curl line, and its answer."""

import json
import shlex
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from deployments.config import ServiceConfig

_SHOWN = 3
# The one that people know, and the one that every model answers.
_ROUTES = ("/v1/embeddings", "/pooling")


def greeting(url: str, service: ServiceConfig) -> str:
    """Asks the first model for one answer; the curl line that does so and the answer, long vectors cut.

    A refusal is an answer too: it tells as much, and ends nothing. An API key is
    sent but not printed: the line reads it from $API_KEY.
    """
    body = json.dumps({"model": service.models[0].served_name, "input": "Raypool turns text into vectors."})
    headers = {"Content-Type": "application/json"}
    if service.api_keys:
        headers["Authorization"] = f"Bearer {service.api_keys[0]}"
    answer = ""
    for route in _ROUTES:
        try:
            answer = _render(_ask(Request(url + route, body.encode(), headers)))
            break
        except HTTPError as refusal:
            answer = _render(json.load(refusal))
            if refusal.code != HTTPStatus.NOT_IMPLEMENTED:
                break
        except OSError as error:
            answer = f"(no answer: {error})"
    line = ["curl", "-s", url + route, "-H", "Content-Type: application/json", "-d", body]
    key = ' -H "Authorization: Bearer $API_KEY"' if service.api_keys else ""
    return f"{shlex.join(line)}{key}\n{answer}"


def _ask(request: Request) -> Any:
    with build_opener(ProxyHandler({})).open(request, timeout=60) as response:
        return json.load(response)


def _render(value: Any) -> str:
    """JSON, but of a vector the first numbers and how many there are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list) and len(value) > _SHOWN and isinstance(value[0], float):
        shown = ", ".join(f"{number:.4f}" for number in value[:_SHOWN])
        return f"[{shown}, ... {len(value)} numbers]"
    if isinstance(value, list):
        return "[" + ", ".join(map(_render, value[:_SHOWN])) + (", ..." if len(value) > _SHOWN else "") + "]"
    return json.dumps(value)
