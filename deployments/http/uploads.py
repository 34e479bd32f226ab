"""Uploads: the bytes of all request bodies that are being read, under a limit."""

from collections.abc import Iterator
from contextlib import contextmanager

from pooling.errors import Overloaded


class Upload:
    """The bytes of one body, as they come."""

    def __init__(self, uploads: "Uploads") -> None:
        self._uploads, self.bytes = uploads, 0

    def add(self, size: int) -> None:
        """Raises Overloaded if all bodies together are too much then; one alone never is."""
        others = self._uploads.bytes - self.bytes
        if others and self._uploads.bytes + size > self._uploads.limit:
            raise Overloaded(
                f"request bodies of {others} bytes are being read, and the limit is {self._uploads.limit}; please try "
                "again later"
            )
        self._uploads.bytes += size
        self.bytes += size


class Uploads:
    """Keeps many large bodies at once from taking all memory. Not thread-safe: for one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0

    @contextmanager
    def one(self) -> Iterator[Upload]:
        """One body; its bytes count until the `with` ends, by when it must be parsed."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            self.bytes -= upload.bytes
