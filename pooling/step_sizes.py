"""StepSizes: how large the engine's steps were, as a histogram of powers of two."""

from collections.abc import Iterator
from dataclasses import dataclass, field

# Up to 2 ** 17 tokens; no step of any device holds more.
_BOUNDS = 18


@dataclass(slots=True)
class StepSizes:
    """counts[k] is of sizes over 2 ** (k - 1) and up to 2 ** k; the last one is of all that are larger."""

    counts: list[int] = field(default_factory=lambda: [0] * (_BOUNDS + 1))
    total: int = 0

    def add(self, size: int) -> None:
        """Counts a step of that size, which is positive."""
        self.counts[min((size - 1).bit_length(), _BOUNDS)] += 1
        self.total += size

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Each bound and how many sizes are up to it, as Prometheus wants them."""
        seen = 0
        for power, count in enumerate(self.counts):
            seen += count
            yield (str(float(2**power)) if power < _BOUNDS else "+Inf"), seen
