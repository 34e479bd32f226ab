"""Uploads: the bytes of all request bodies, or of all their images, that are being read, under a limit."""

from collections.abc import Iterator
from contextlib import contextmanager

from pooling.errors import Overloaded

# So much any body may have, however many bytes others keep waiting for: large ones must not lock out small ones.
_SMALL_BYTES = 65_536


class Upload:
    """The bytes of one body, as they come."""

    def __init__(self, uploads: "Uploads") -> None:
        self._uploads, self.bytes = uploads, 0

    def add(self, size: int) -> None:
        """Raises Overloaded if all bodies together are too much then; one alone never is, nor one that is small."""
        others = self._uploads.bytes - self.bytes
        is_large = self.bytes + size > self._uploads.small
        if others and is_large and self._uploads.bytes + size > self._uploads.limit:
            raise Overloaded(
                f"{self._uploads.what} of {others} bytes are being read, and the limit is {self._uploads.limit}; "
                "please try again later"
            )
        self._uploads.bytes += size
        self.bytes += size


class Uploads:
    """Keeps many large bodies at once from taking all memory. Not thread-safe: for one event loop."""

    def __init__(self, limit: int, small: int = _SMALL_BYTES, what: str = "request bodies") -> None:
        """small: what any body may have, whatever others have. what: is counted."""
        self.limit, self.small, self.what = limit, small, what
        self.bytes = 0

    @contextmanager
    def one(self) -> Iterator[Upload]:
        """One body; its bytes count until the `with` ends, by when it must be parsed."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            self.bytes -= upload.bytes
