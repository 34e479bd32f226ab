"""A group of ranks fails as one and leaves nothing behind; each rank reads its share of the weights and no more."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pooling import LLM, ModelSpec
from pooling.errors import EngineDead, EngineFailure, SourceError, StartupError
from pooling.intake import Intake
from pooling.parallel.collective import Collective
from pooling.parallel.group import Group, Meeting
from pooling.parallel.links import Order, Stage
from pooling.parallel.local import LocalRanks, start_local
from pooling.parallel.ring import SLOTS, Ring, StepMessage, slot_bytes
from pooling.request import PoolingRequest
from pooling.runner import LocalRunner
from tests.checkpoints import MINILM
from tests.reference import relative_error

TEXTS = ["word " * (1 + index % 60) + str(index) for index in range(40)]


def children(parent: int) -> set[int]:
    """The processes of this user that a process has started and that are no zombies."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (place / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except (OSError, ValueError):
            continue
        if int(ppid) == parent and state != "Z":
            found.add(int(place.name))
    return found


def wait_until(said: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def split() -> Iterator[tuple[LLM, int]]:
    """A model on two ranks, and the process of the other one."""
    before = children(os.getpid())
    with LLM(MINILM, dtype="float32", tensor_parallel_size=2) as llm:
        (other,) = children(os.getpid()) - before
        yield llm, other
    assert not is_there(other)


def vectors(llm: LLM, texts: list[str]) -> Any:
    return np.array([answer.outputs.embedding for answer in llm.embed(texts, use_tqdm=False)], np.float32)


def test_llm_on_two_ranks_answers_as_on_one_and_raises_when_one_is_killed_under_load(split: tuple[LLM, int]) -> None:
    llm, other = split
    with LLM(MINILM, dtype="float32") as alone:
        assert relative_error(vectors(llm, TEXTS), vectors(alone, TEXTS)) < 1e-5
    engine = llm._offline._engine
    answered = engine.stats()["steps"]

    def kill_in_the_middle() -> None:
        wait_until(lambda: engine.stats()["steps"] > answered + 3)
        os.kill(other, signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    with pytest.raises(EngineDead, match=r"the engine has stopped: (rank 1 has ended|the forward pass failed)"):
        llm.embed(["word " * 200 + str(number) for number in range(2_000)], use_tqdm=False)
    killer.join()
    with pytest.raises(EngineDead):
        llm.embed("a", use_tqdm=False)


def test_a_rank_that_dies_while_nobody_asks_is_noticed(split: tuple[LLM, int]) -> None:
    llm, other = split
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: not llm._offline._engine.healthy)
    with pytest.raises(EngineDead, match="rank 1 has ended"):
        llm.embed("a", use_tqdm=False)


def test_a_step_that_ran_while_a_rank_died_has_no_answers() -> None:
    """On CUDA its sums were ended, not added up."""
    started: list[LocalRanks] = []

    def start(meeting: Meeting) -> LocalRanks:
        started.append(start_local(meeting))
        return started[0]

    spec = {"source": MINILM, "dtype": "float32"}
    runner = LocalRunner(ModelSpec(**spec, tensor_parallel_size=2), start)
    pending = runner.launch(runner.prepare([Intake.load(ModelSpec(**spec)).tokenize(PoolingRequest(["a"]))]))
    assert len(pending.wait()) == 1
    heard: list[str] = []
    runner.watch(lambda failure, _: heard.append(failure))
    os.kill(started[0].pids[0], signal.SIGKILL)
    wait_until(lambda: bool(heard))
    with pytest.raises(EngineFailure, match="rank 1 has ended"):
        pending.wait()
    runner.close()


def test_a_listener_that_fails_keeps_no_other_from_hearing(split: tuple[LLM, int]) -> None:
    llm, other = split
    heard: list[str] = []

    def fail(failure: str, _: bool) -> None:
        raise RuntimeError(failure)

    runner = llm._offline._engine._runner
    runner.watch(fail)
    runner.watch(lambda failure, _: heard.append(failure))
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: heard == ["rank 1 has ended"])


_ASKING = f"""
from pooling import LLM
llm = LLM({MINILM!r}, dtype="float32", tensor_parallel_size=2)
print("ready", flush=True)
while True:
    llm.embed(["word " * 200 + str(number) for number in range(200)], use_tqdm=False)
"""


def test_ranks_end_when_rank_0_is_killed_and_leave_no_files(tmp_path: Path) -> None:
    """In the middle of a sum that waits for it."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", _ASKING], stdout=subprocess.PIPE, env=environment) as rank_0:
        assert rank_0.stdout is not None
        assert rank_0.stdout.readline() == b"ready\n"
        (other,) = children(rank_0.pid)
        assert [place.name[:8] for place in tmp_path.iterdir()] == ["raypool-"]
        rank_0.kill()
        wait_until(lambda: not is_there(other))
    assert list(tmp_path.iterdir()) == []


def memories() -> list[str]:
    """Descriptors of this process that are memory of steps."""
    found = []
    for place in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(place)
        except OSError:
            continue
        if "raypool-steps" in target:
            found.append(place.name)
    return found


class Absent:
    """Ranks of which one ended before it joined."""

    def __init__(self) -> None:
        self.ended = 0

    def gone(self) -> str | None:
        return "rank 1 ended with status 9"

    def end(self) -> None:
        self.ended += 1


def order(**changes: Any) -> Order:
    spec = ModelSpec(source=MINILM).model_dump_json()
    return Order(**{**dict.fromkeys(Order.__slots__, 1), "spec": spec, "size": 2, "slot_bytes": 4_096, **changes})


def test_a_rank_that_never_joins_is_a_start_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    absent, before = Absent(), memories()
    with pytest.raises(StartupError, match="a shard of the model did not start: rank 1 ended with status 9"):
        Group(order(), lambda meeting: absent)
    assert absent.ended
    assert list(tmp_path.iterdir()) == []
    assert memories() == before


def test_memory_that_cannot_be_had_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = memories()
    with pytest.raises(OverflowError):
        Group(order(slot_bytes=2**64), lambda meeting: Absent())
    assert list(tmp_path.iterdir()) == []
    assert memories() == before


def test_a_rank_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def refuse(meeting: Meeting) -> Any:
        raise StartupError(f"no place for {meeting.size}")

    with pytest.raises(StartupError, match="no place for 2"):
        LocalRunner(ModelSpec(source=MINILM, tensor_parallel_size=2), refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_does_not_find_the_model_is_quoted_at_once(tmp_path: Path) -> None:
    """Before the first sum, in which rank 0 would wait for it as long as for any step."""
    group = Group(order(spec=ModelSpec(source=str(tmp_path / "gone")).model_dump_json(), device="cpu"), start_local)
    with pytest.raises(SourceError, match="gone' does not exist"):
        group.wait_for(Stage.PREPARED)
    group.stop()


def test_the_words_of_an_error_that_is_not_ours_are_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """They may name paths and addresses, and why a group is over reaches clients."""
    group = Group(order(threads=0, device="cpu"), start_local)
    with pytest.raises(StartupError, match=r"^a shard of the model failed: RuntimeError$"):
        group.wait_for(Stage.PREPARED)
    assert group.failure == "rank 1 has failed: RuntimeError"
    assert "positive" in caplog.text
    group.stop()


def test_a_rank_waits_for_the_slowest_before_it_joins_the_sums() -> None:
    """There it waits no longer than in a step."""
    group = Group(order(dtype="float32", max_batch_tokens=64, device="cpu", timeout_s=60), start_local)
    group.wait_for(Stage.PREPARED)
    time.sleep(0.5)  # it would have come to the meeting
    assert not group.meeting_file.exists()
    group.meet()
    Collective(group.meeting_file, 0, 2, torch.device("cpu"), 60)
    group.wait_for(Stage.LOADED)
    group.stop()


@pytest.mark.parametrize("second", [None, [1, 0]])
@pytest.mark.parametrize("attended", [None, [2, 1]])
def test_a_step_comes_out_of_shared_memory_as_it_went_in(second: Any, attended: Any) -> None:
    size = slot_bytes(8)
    memory = Ring.memory(SLOTS, size)
    writer, reader = Ring(os.dup(memory), SLOTS, size), Ring(memory, SLOTS, size)
    arrays = [np.array([7, 8, 9], np.int32), np.array([2, 1], np.int32)]
    arrays += [None if given is None else np.array(given, np.int32) for given in (second, attended)]
    for number in range(2 * SLOTS):
        writer.write(number, StepMessage(arrays[0] + number, *arrays[1:], alone=bool(number % 2)))
        message = reader.read(number)
        assert message.ids.tolist() == [7 + number, 8 + number, 9 + number]
        assert message.lengths.tolist() == [2, 1]
        assert (None if message.second is None else message.second.tolist()) == second
        assert (None if message.attended is None else message.attended.tolist()) == attended
        assert message.alone == bool(number % 2)


def test_a_step_that_does_not_fit_is_refused() -> None:
    ring = Ring(Ring.memory(1, slot_bytes(4)), 1, slot_bytes(4))
    with pytest.raises(RuntimeError, match="a step of 100 tokens does not fit"):
        ring.write(0, StepMessage(np.zeros(100, np.int32), np.array([100], np.int32)))


_LOADING = """
import sys, threading
import torch
from pooling import ModelSpec
from pooling.choose import load_packed
from pooling.loading.describe import describe
from pooling.parallel.shard import Shard

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

description = describe(ModelSpec(source=sys.argv[1]))
shard = Shard(int(sys.argv[2]), int(sys.argv[3]), lambda tensor: tensor)
before = peak = anonymous()
over = threading.Event()

def look():
    global peak
    while not over.wait(0.0005):
        peak = max(peak, anonymous())

thread = threading.Thread(target=look)
thread.start()
forward, _ = load_packed(description, torch.float32, torch.device("cpu"), 1024, shard)
over.set()
thread.join()
print(max(peak, anonymous()) - before, sum(weight.nbytes for weight in forward.model.parameters()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A model of some 150 MB; its bytes, and those of its largest tensor."""
    from tests.vocabularies import llama_tokenizer

    directory = tmp_path_factory.mktemp("large")
    tokenizer = llama_tokenizer(200)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=2_048,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=max(8_000, len(tokenizer)),
        max_position_embeddings=200,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    sizes = [weight.nbytes for weight in model.parameters()]
    return directory, sum(sizes), max(sizes)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_needs_memory_for_its_share_and_one_slice(large: tuple[Path, int, int], rank: int) -> None:
    directory, whole, largest = large

    def load() -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", _LOADING, str(directory), str(rank), "4"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        peak, held = map(int, done.stdout.split())
        return peak, held

    # The peak is the process's: what its threads happen to hold beside the weights differs by some MiB.
    peak, held = min(load() for _ in range(3))
    assert held < 1.01 * whole / 4
    # Even of the tensor that is being read this rank's slice alone. 8 MiB: Python's objects, the allocator's rounding.
    assert peak < (whole + largest) / 4 + 8 * 2**20, f"{peak / 2**20:.0f} MiB for {held / 2**20:.0f} MiB of weights"
