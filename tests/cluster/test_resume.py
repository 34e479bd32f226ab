"""A job whose driver is killed goes on where it stopped: no row lost, none doubled, nothing done twice."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import ray

from pooling import LLM
from tests.texts import words

ROOT = Path(__file__).parents[2]
ROWS, BATCH, BAD = 1_000, 20, 777
RAYPOOL = [sys.executable, "-c", "import sys; from deployments.cli import main; sys.exit(main())"]


def environment() -> dict[str, str]:
    """A driver's, on the cluster of the tests."""
    address = ray.get_runtime_context().gcs_address
    return os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}


def entries(output: Path) -> set[str]:
    done = output / "_raypool" / "done"
    return {file.name for file in done.iterdir()} if done.is_dir() else set()


def kill_after(command: list[str], output: Path, parts: int) -> None:
    """Runs the command until so many parts are done, and kills its driver outright."""
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as supervisor:
        while len(entries(output)) < parts:
            assert supervisor.poll() is None, supervisor.stderr.read().decode()  # type: ignore[union-attr]
            time.sleep(0.002)
        driver, *_ = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
        os.kill(int(driver), signal.SIGKILL)
        assert supervisor.wait(60) == 128 + signal.SIGKILL


def the_only(name: str) -> int:
    """The process that Ray gave this name."""
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if name in path.read_bytes().decode()]
    assert len(found) == 1, found
    return int(found[0].parent.name)


def run_on_a_terminal(command: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout, and what the terminal showed on stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        assert process.stdout is not None
        return process.wait(60), process.stdout.read().decode(), shown.decode()


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_job_goes_on_where_it_stopped(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, output, model = tmp_path / "in.jsonl", tmp_path / "out", str(checkpoint("bert"))
    rows = [{"id": n, "text": None if n == BAD else words(10 + n % 50, start=n)} for n in range(ROWS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*RAYPOOL, "embed", str(source), "--model", model, "--output", str(output), "--dtype", "float32"]
    command += ["--batch-size", str(BATCH), "--output-format", "jsonl", "--num-cpus", "1"]

    kill_after(command, output, parts=5)
    survivors = {file.name: file.stat().st_mtime_ns for file in output.glob("part-*")}
    earlier = sum(int(name.split("-")[2]) for name in entries(output))
    assert 5 * BATCH <= earlier < ROWS, "the job was over before it was killed"
    assert not (output / "_raypool" / "finished.json").exists()

    code, said, shown = run_on_a_terminal(command)
    assert code == 0, shown
    assert f"{ROWS} rows, 1 without an answer (see the error column)" in said
    assert int(said.split("(done by an earlier run: ")[1].split()[0]) >= earlier
    assert re.search(r"\d+ rows \[\d\d:\d\d, +[\d.]+ rows/s\]", shown), shown  # the progress bar

    files = sorted(output.glob("part-*"))
    assert len(files) == ROWS // BATCH
    written = [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]
    assert [row["id"] for row in written] == list(range(ROWS))
    assert [row["id"] for row in written if row["embedding"] is None] == [BAD]
    assert written[BAD]["error"] == "the row is null"
    kept = [name for name in survivors if (output / name).stat().st_mtime_ns == survivors[name]]
    assert len(kept) >= 5  # what was entered is not done again
    with LLM(model, dtype="float32") as llm:
        sample = [n for n in range(0, ROWS, 97) if n != BAD]
        expected = [one.outputs.embedding for one in llm.embed([rows[n]["text"] for n in sample], use_tqdm=False)]
    np.testing.assert_allclose([written[n]["embedding"] for n in sample], expected, atol=2e-6)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_goes_on_when_a_rank_of_its_engine_is_killed(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps({"id": n, "text": words(10 + n % 50, start=n)}) + "\n" for n in range(ROWS)))
    command = [*RAYPOOL, "embed", str(source), "--model", str(checkpoint("bert")), "--output", str(output)]
    command += ["--batch-size", str(BATCH), "--output-format", "jsonl", "--num-cpus", "1", "--device", "cpu"]
    command += ["--tensor-parallel-size", "2"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        while len(entries(output)) < 5:
            assert job.poll() is None, job.stderr.read().decode()  # type: ignore[union-attr]
            time.sleep(0.002)
        os.kill(the_only("ray::ShardWorker"), signal.SIGKILL)
        said, shown = job.communicate(timeout=200)
    assert job.returncode == 0, shown.decode()
    assert f"{ROWS} rows: " in said.decode()
    written = [orjson.loads(line) for file in sorted(output.glob("part-*")) for line in file.read_bytes().splitlines()]
    assert [row["id"] for row in written] == list(range(ROWS))
    assert all(row["embedding"] is not None for row in written)
