"""start_local(): ranks as processes of this machine, without Ray."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import pooling
from pooling.errors import ConfigError
from pooling.parallel.group import Meeting

# A new interpreter, so that the caller's program needs no `if __name__ == "__main__"`.
_PROGRAM = "from pooling.parallel.local import main; main()"
_LEAVE_S = 5.0


def start_local(meeting: Meeting) -> "LocalRanks":
    """Ranks 1 to size - 1, each on the CUDA device of its number, or on the CPU.

    On a CPU the ranks share its threads, this process's among them. Raises
    ConfigError where the machine has fewer devices than ranks.
    """
    if meeting.device == "cuda":
        there = torch.cuda.device_count()
        if there < meeting.size:
            raise ConfigError(f"tensor_parallel_size is {meeting.size}, but this machine has {there} CUDA devices")
    return LocalRanks([_start(meeting, rank) for rank in range(1, meeting.size)])


class LocalRanks:
    """Ranks that are children of this process."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def gone(self) -> str | None:
        for rank, process in enumerate(self._processes, 1):
            if process.poll() is not None:
                return f"rank {rank} ended with status {process.returncode}"
        return None

    def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)  # its line is closed, which it hears at once
            process.kill()
            process.wait()


def _start(meeting: Meeting, rank: int) -> subprocess.Popen[bytes]:
    home = str(Path(pooling.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, meeting.door, str(rank), meeting.device],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for rank 0, which then ends the others
    )


def main() -> None:
    from pooling.parallel.rank import serve_rank

    door, rank, kind = sys.argv[1:]
    device = torch.device(kind, int(rank)) if kind == "cuda" else torch.device(kind)
    serve_rank(door, int(rank), device)
