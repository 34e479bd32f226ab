"""Admission: whole requests are let in by their tokens, or by the bytes of their images, or refused at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from pooling.errors import Overloaded


class Admission:
    """Counts the tokens of one model that wait or run, and keeps them under a limit.

    A request larger than the limit is let in when nothing else is under way:
    it could never pass otherwise. Not thread-safe: for one event loop.
    """

    def __init__(self, limit: int, unit: str = "tokens") -> None:
        """unit: what is counted, if it is not tokens."""
        self.limit = limit
        self._unit = unit
        self.tokens = 0

    def check(self) -> None:
        """Raises Overloaded if the queue is full already: nothing is gained by tokenising first."""
        if self.tokens >= self.limit:
            raise self._refusal()

    @contextmanager
    def hold(self, tokens: int) -> Iterator[None]:
        """Holds a request's tokens while it is served. Raises Overloaded if they do not fit."""
        if self.tokens and self.tokens + tokens > self.limit:
            raise self._refusal()
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens

    def _refusal(self) -> Overloaded:
        return Overloaded(
            "The engine is currently busy and cannot accept new requests. Please try again later or on a different "
            f"instance. ({self.tokens} {self._unit} are queued, the limit is {self.limit})"
        )
