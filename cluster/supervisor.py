"""supervised(): runs a command in a process of its own and leaves no process of it behind."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervised(work: Callable[[], int]) -> int:
    """The exit code of `work`, run in a child process in a session of its own.

    Ray's daemons end badly when a signal to the terminal's whole process group
    reaches them before they are asked to stop. Here signals reach this process
    alone: the first one is handed on as SIGINT, the second kills. Processes
    that the work leaves behind come to this one as their new parent, and are
    killed. If this process is killed itself, the work gets SIGINT.
    Call it before any thread is started. In the child it returns too: with the
    result of `work`, for the caller to exit with.
    """
    parent = os.getpid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        return work() if os.getppid() == parent else 1
    _hand_on_signals(child)
    _, status = os.waitpid(child, 0)
    _kill_orphans()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _hand_on_signals(child: int) -> None:
    orders = [signal.SIGINT]  # not SIGTERM: that one Ray takes for itself while it starts, and dumps core

    def hand_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, orders.pop() if orders else signal.SIGKILL)

    for each in _STOPPING:
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # nohup asks to outlive the terminal
            signal.signal(each, hand_on)


def _kill_orphans() -> None:
    """Kills our children, then theirs, who become ours by that, until there is none."""
    while children := _children(os.getpid()):
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(after_name[1]) == parent:
                found.append(int(entry.name))
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
