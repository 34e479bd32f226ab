"""AccessLog: one line of JSON for each request, for whoever collects logs."""

import logging
import sys
import time

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("raypool.access")


class AccessLog:
    """ASGI middleware that tells of each request when its answer has been sent, or its client has gone (499)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        _show()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status, sent = 499, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            headers = dict(scope["headers"])
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": headers.get(b"x-request-id", b"").decode("latin-1"),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.monotonic() - started, 6),
                "bytes_in": int(headers.get(b"content-length", b"0") or 0),
                "bytes_out": sent,
            }
            log.info(orjson.dumps(line).decode())


def _show() -> None:
    """The line alone, without the level and time that other lines begin with."""
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
