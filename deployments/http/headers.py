"""What a request says in its headers: how long it may take, and what its answer is to be called."""

import time
from uuid import uuid4

from starlette.requests import Request

from pooling.errors import DeadlineExceeded, InvalidRequest

_TIMEOUT = "x-request-timeout-seconds"
# Serve reads the same header, and answers 408 in its own words when the time is up: ours must be first.
_AHEAD_OF_SERVE_S = 0.05
_AHEAD_OF_SERVE = 0.2
_ARRIVED = "raypool.arrived"


def mark_arrival(request: Request) -> None:
    """Starts the clock of a request, before its body is read: so does Serve."""
    request.scope[_ARRIVED] = time.monotonic()


def timeout_s(request: Request) -> float | None:
    """Seconds this request has left, None if it does not say.

    Raises InvalidRequest if it says no such thing, DeadlineExceeded if reading its body took all of them.
    """
    given = request.headers.get(_TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidRequest(f"header {_TIMEOUT} must be a positive number of seconds, got {given!r}", _TIMEOUT)
    now = time.monotonic()
    left: float = seconds - min(_AHEAD_OF_SERVE_S, _AHEAD_OF_SERVE * seconds) - (now - request.scope.get(_ARRIVED, now))
    if left <= 0:
        raise DeadlineExceeded(f"the request was not answered within its {seconds:g} s")
    return left


def response_id(prefix: str, request: Request, body_id: str | None) -> str:
    """The `id` of the answer: named by the body, else by X-Request-Id, which Serve draws where none was sent."""
    return f"{prefix}-{body_id or request.headers.get('x-request-id') or uuid4().hex[:16]}"
