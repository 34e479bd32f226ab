"""The parent's side of offline_worker.py: a library in a process of its own, stopped while others compute."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

_WORKER = Path(__file__).with_name("offline_worker.py")
_TICKS = os.sysconf("SC_CLK_TCK")
# By what is asked. vLLM takes minutes to start where nothing of it was ever read; infinity never answers if its
# model fails.
_ANSWER_S = {"load": 600.0, "one": 120.0, "run": 1_800.0}


class WorkerFailed(RuntimeError):
    """A library could not be started, could not do what was asked, or did not answer in time; one line says why."""


class Worker:
    """Asks one worker, and lets it and what it started run only while it is asked.

    A library that is idle may still spin, wait for locks in a loop or write to
    its log; one that is stopped takes nothing from the one that is measured.
    """

    def __init__(self, python: Path, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(_WORKER)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, cwd=log.parent, start_new_session=True,
            )  # fmt: skip
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.end()

    def ask(self, do: Literal["load", "one", "run"], **message: Any) -> dict[str, Any]:
        """Its answer to one message. Raises WorkerFailed."""
        self._signal(signal.SIGCONT)
        try:
            pipe = _open(self._process.stdin)
            pipe.write(json.dumps({"do": do, **message}).encode() + b"\n")
            pipe.flush()
            answer: dict[str, Any] = json.loads(self._line(_ANSWER_S[do]))
        except (OSError, ValueError):
            self.end()
            raise WorkerFailed(f"it ended: {self._last_words()}") from None
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # a signal takes its time
        if "error" in answer:
            raise WorkerFailed(str(answer["error"]))
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def age_s(self) -> float:
        """Seconds since its process was started."""
        return time.perf_counter() - self._started

    def cpu_s(self) -> float:
        """Seconds that it and what it started have computed; processes that have ended do not count."""
        ticks = 0
        for process in _processes_of(self._process.pid):
            ticks += int(process[11]) + int(process[12])  # in user mode, in the kernel
        return ticks / _TICKS

    def end(self) -> None:
        """Ends it and all that it started."""
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what was written last had no reader any more
                _open(pipe).close()

    def _line(self, answer_s: float) -> bytes:
        answers = _open(self._process.stdout)
        if not select.select([answers], [], [], answer_s)[0]:
            raise WorkerFailed(f"it did not answer within {answer_s:g} s")
        return answers.readline()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def _signal(self, number: signal.Signals) -> None:
        """To each process of its session: some have a process group of their own."""
        for process in _processes_of(self._process.pid):
            try:
                os.kill(int(process[-1]), number)
            except ProcessLookupError:
                continue


def _processes_of(session: int) -> list[list[str]]:
    """The fields of /proc/PID/stat from the third on, and the PID, of every process of a session; none elsewhere."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == session:
            found.append([*fields, file.parent.name])
    return found


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
