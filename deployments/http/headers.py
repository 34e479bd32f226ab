"""What a request says in its headers: how long it may take, and what its answer is to be called."""

from uuid import uuid4

from starlette.requests import Request

from pooling.errors import InvalidRequest

_TIMEOUT = "x-request-timeout-seconds"
# Serve reads the same header, and answers 408 in its own words when the time is up: ours must be first.
_AHEAD_OF_SERVE_S = 0.05
_AHEAD_OF_SERVE = 0.2


def timeout_s(request: Request) -> float | None:
    """Seconds this request may take, None if it does not say. Raises InvalidRequest if it says no such thing."""
    given = request.headers.get(_TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequest(f"header {_TIMEOUT} must be a positive number of seconds, got {given!r}", _TIMEOUT)
    return seconds - min(_AHEAD_OF_SERVE_S, _AHEAD_OF_SERVE * seconds)


def response_id(prefix: str, request: Request, body_id: str | None) -> str:
    """The `id` of the answer: named by the body, else by X-Request-Id, which Serve draws where none was sent."""
    return f"{prefix}-{body_id or request.headers.get('x-request-id') or uuid4().hex[:16]}"
