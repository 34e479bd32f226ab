"""LongRank: rank 1 of many groups in turn, in one process of its own, so that torch is imported once."""

import subprocess
import sys
import traceback
from pathlib import Path

import torch

from pooling.parallel.group import Meeting


class LongRank:
    """start is how a group starts its ranks; each group is served to its end before the next."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tests.ranks import serve; serve()"],
            stdin=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def start(self, meeting: Meeting) -> "LongRank":
        assert meeting.size == 2
        assert self.process.stdin is not None
        print(meeting.door, file=self.process.stdin, flush=True)
        return self

    def gone(self) -> str | None:
        return None if self.process.poll() is None else f"rank 1 ended with status {self.process.returncode}"

    def end(self) -> None:
        """It serves the next group."""

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def serve() -> None:
    from pooling.parallel.rank import serve_rank

    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            serve_rank(line.strip(), 1, torch.device("cpu"))
        except Exception:
            traceback.print_exc()  # rank 0 has heard of it; the next group may fare better
