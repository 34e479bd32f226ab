"""How busy other processes kept the machine meanwhile: what a number measured here is worth."""

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Cores that other processes used since this was made, on average; None where the system does not say."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self, measured_s: float | None = None) -> float | None:
        """measured_s: seconds that the processes which are measured computed; None: this process is."""
        if self._start is None or (now := self._now()) is None:
            return None
        elapsed, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(busy - (own if measured_s is None else own + measured_s), 0.0) / elapsed

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds on the clock, of all cores at work, of this process at work."""
        if not _STAT.exists():
            return None
        user, nice, system, _, _, interrupt, soft_interrupt, steal, *_ = map(
            int, _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        )
        busy = (user + nice + system + interrupt + soft_interrupt + steal) / _TICKS
        return time.monotonic(), busy, time.process_time()
