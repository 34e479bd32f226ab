"""greeting(): one request that works, as a curl line, and its answer."""

import json
import shlex
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from deployments.config import ServiceConfig

_SHOWN = 3


def greeting(url: str, service: ServiceConfig) -> str:
    """Asks the first model for one vector; the curl line that does so and the answer, long vectors cut.

    An API key is sent but not printed: the line reads it from $API_KEY.
    """
    model = service.models[0]
    route = "/pooling" if model.task == "token_embed" else "/v1/embeddings"
    body = json.dumps({"model": model.served_name, "input": "Raypool turns text into vectors."})
    line = ["curl", "-s", url + route, "-H", "Content-Type: application/json", "-d", body]
    headers = {"Content-Type": "application/json"}
    if service.api_keys:
        headers["Authorization"] = f"Bearer {service.api_keys[0]}"
    opener = build_opener(ProxyHandler({}))
    with opener.open(Request(url + route, body.encode(), headers), timeout=60) as response:
        answer = json.load(response)
    key = ' -H "Authorization: Bearer $API_KEY"' if service.api_keys else ""
    return f"{shlex.join(line)}{key}\n{_render(answer)}"


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
