"""supervised(): real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

# The work starts a process that leaves its session and its parent, as HAProxy and Ray's workers do.
PROGRAM = """
import signal, subprocess, sys, time
from cluster.supervisor import supervised

def work():
    subprocess.run(["setsid", "bash", "-c", "sleep 600 & echo $!"])
    {rest}

sys.exit(supervised(work))
"""


class Started(NamedTuple):
    """A supervised command, and the process that it has left behind by now."""

    process: subprocess.Popen[str]
    orphan: int

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def start() -> Iterator[Callable[[str], Started]]:
    with ExitStack() as stack:

        def start(rest: str) -> Started:
            command = [sys.executable, "-c", PROGRAM.replace("{rest}", rest)]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            started = Started(process, int(process.stdout.readline()))
            assert alive(started.orphan)
            return started

        yield start


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_the_exit_code_is_that_of_the_work_and_no_process_stays(start: Callable[[str], Started]) -> None:
    started = start("return 7")
    assert started.process.wait(30) == 7
    assert not alive(started.orphan)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_group_reaches_the_work_once_as_an_interruption(
    start: Callable[[str], Started], number: signal.Signals
) -> None:
    started = start(
        """
    try:
        print("waiting", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        return 5
    """
    )
    assert started.line() == "waiting"
    os.killpg(started.process.pid, number)
    assert started.process.wait(30) == 5
    assert not alive(started.orphan)


def test_a_second_signal_ends_work_that_does_not_stop(start: Callable[[str], Started]) -> None:
    started = start(
        """
    signal.signal(signal.SIGINT, lambda *_: print("not yet", flush=True))
    print("waiting", flush=True)
    while True:
        time.sleep(600)
    """
    )
    assert started.line() == "waiting"
    started.process.send_signal(signal.SIGINT)
    assert started.line() == "not yet"
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(30) == 128 + signal.SIGKILL
    assert not alive(started.orphan)


def test_work_is_interrupted_when_its_supervisor_is_killed(start: Callable[[str], Started], tmp_path: Path) -> None:
    started = start(
        f"""
    try:
        print("waiting", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        open({str(tmp_path / "tidied")!r}, "w").close()
    """
    )
    assert started.line() == "waiting"
    started.process.kill()
    started.process.wait(30)
    wait_for((tmp_path / "tidied").exists)
    os.kill(started.orphan, signal.SIGKILL)  # nobody is left to end it
