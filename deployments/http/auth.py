"""Bearer keys: with any configured, every route but the probes asks for one."""

import hashlib
import hmac
from collections.abc import Callable, Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health", "/ping", "/version"})
_SCHEME = b"bearer "


class BearerAuth:
    """ASGI middleware that answers 401 unless the request brings one of the keys.

    The answer is vLLM's. `refused` is called with the status of each refusal.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], refused: Callable[[int], None]) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _path(scope) not in OPEN_PATHS and not self._may_pass(scope):
            self._refused(401)
            response = Response(
                b'{"error":"Unauthorized"}', 401, {"www-authenticate": "Bearer"}, media_type="application/json"
            )
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = sent[len(_SCHEME) :] if sent[: len(_SCHEME)].lower() == _SCHEME else b""
        # Every key is compared, as a digest and in constant time: how long it takes tells nothing about any of them.
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
