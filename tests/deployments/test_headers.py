"""What a request says of its time: counted from its arrival, as Serve counts it."""

import time

import pytest
from starlette.requests import Request

from deployments.http.headers import mark_arrival, timeout_s
from pooling.errors import DeadlineExceeded


def request(seconds: str | None) -> Request:
    headers = [] if seconds is None else [(b"x-request-timeout-seconds", seconds.encode())]
    return Request({"type": "http", "headers": headers})


def test_what_reading_the_body_took_is_no_longer_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, start = request("10"), time.monotonic()
    assert timeout_s(asked) == pytest.approx(9.95)
    monkeypatch.setattr(time, "monotonic", lambda: start)
    mark_arrival(asked)
    monkeypatch.setattr(time, "monotonic", lambda: start + 4)
    assert timeout_s(asked) == pytest.approx(5.95)
    monkeypatch.setattr(time, "monotonic", lambda: start + 10)
    with pytest.raises(DeadlineExceeded, match="was not answered within its 10 s"):
        timeout_s(asked)


def test_who_says_nothing_has_the_services_own_time() -> None:
    assert timeout_s(request(None)) is None
