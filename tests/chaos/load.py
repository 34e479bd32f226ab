"""Load: clients that post until they are told to stop, and count what became of every request."""

import http.client
import json
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

# Longer than anything here may take: who waits so long hangs.
_HANGS_S = 60.0


class Load:
    """`clients` connections, each with one request at a time, inside the `with`.

    statuses counts every request by its HTTP status, or as `broken` where the
    connection ended without an answer, or `hung`. rate: of all clients together,
    in requests a second, whatever comes back; None: each posts as soon as the
    last one is answered.
    """

    def __init__(self, url: str, body: Any, clients: int, rate: float | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._path = parts.netloc, parts.path
        self._body = json.dumps(body).encode()
        self._pause_s = None if rate is None else clients / rate
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int | str] = Counter()
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._post, args=(index / clients,)) for index in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def done(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        return self.done - self.statuses[200]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items(), key=str))
        return f"{self.done} requests: {counts}; slowest {self.slowest_s:.2f} s"

    def _post(self, phase: float) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=_HANGS_S)
        due = time.monotonic() + phase * (self._pause_s or 0.0)
        while not self._over.wait(max(0.0, due - time.monotonic())):
            started = time.monotonic()
            status = self._one(connection)
            with self._lock:
                self.statuses[status] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            due = due + self._pause_s if self._pause_s else 0.0
        connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> int | str:
        try:
            connection.request("POST", self._path, self._body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        except TimeoutError:
            connection.close()
            return "hung"
        except (OSError, http.client.HTTPException):
            connection.close()
            return "broken"
