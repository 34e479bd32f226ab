"""The ledger of an output directory: what is done of a job, and whose job it is."""

from pathlib import Path

import pytest

from cluster.files import make_directory
from cluster.ledger import Ledger
from pooling.errors import ConfigError

JOB = {"task": "embed", "spec": {"source": "a", "dtype": "auto"}, "files": [["a.csv", 10, 1]]}


def ledger(directory: Path) -> Ledger:
    return Ledger(make_directory(str(directory)))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_entered_is_done_for_the_next_run(tmp_path: Path, scheme: str) -> None:
    first = Ledger(make_directory(f"{scheme}{tmp_path}/out"))
    assert first.open(JOB).rows == 0
    first.enter(0, 2, 5, 1)
    first.enter(3, 0, 7, 0, b"note")
    first.enter(0, 2, 5, 1)  # written twice, because its job was killed in between
    done = ledger(tmp_path / "out").open(JOB)
    assert (dict(done.parts), done.rows, done.errors) == ({0: {2}, 3: {0}}, 12, 1)
    assert first.notes() == [b"", b"note"]


def test_a_finished_job_has_nothing_half_written_left(tmp_path: Path) -> None:
    one = ledger(tmp_path / "out")
    one.open(JOB)
    (tmp_path / "out" / "_raypool" / "half-1234").write_text("of a process that was killed")
    one.write("part.jsonl", b"{}")
    assert not one.finished
    one.finish()
    assert one.finished
    own = sorted(file.name for file in (tmp_path / "out" / "_raypool").iterdir())
    assert own == ["done", "finished.json", "job.json"]
    assert (tmp_path / "out" / "part.jsonl").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "score"}, "of which task was 'embed', not 'score'"),
        ({"spec": {"source": "b", "dtype": "auto"}}, "source was 'a', not 'b'"),
        ({"files": [["a.csv", 11, 1]]}, "the input was another: 'a.csv' was added, taken away or changed"),
        ({"files": [["a.csv", 10, 1], ["b.csv", 1, 1]]}, "'b.csv' was added, taken away or changed"),
        ({"colour": "red"}, "colour was None, not 'red'"),
    ],
)
def test_another_job_is_refused_by_what_differs(tmp_path: Path, change: dict[str, object], said: str) -> None:
    first = ledger(tmp_path / "out")
    first.open(JOB)
    first.enter(0, 0, 5, 0)
    with pytest.raises(ConfigError, match=said):
        ledger(tmp_path / "out").open({**JOB, **change})


def test_a_job_that_was_refused_leaves_room_for_another(tmp_path: Path) -> None:
    first = ledger(tmp_path / "out")
    first.open(JOB)
    first.withdraw()
    other = {**JOB, "task": "score"}
    ledger(tmp_path / "out").open(other)
    again = ledger(tmp_path / "out")
    again.open(other)
    again.withdraw()  # not the one that entered it
    with pytest.raises(ConfigError, match="task was 'score', not 'embed'"):
        ledger(tmp_path / "out").open(JOB)


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "earlier.parquet").write_bytes(b"of yesterday")
    with pytest.raises(ConfigError, match="is not empty; give a directory that is new or empty"):
        ledger(tmp_path).open(JOB)
    assert [file.name for file in tmp_path.iterdir()] == ["earlier.parquet"]
