"""Embedder in a real actor pool, and the file job built on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import ray.data

from cluster.dataset import Embedder
from cluster.job import PoolingJob, run_job
from pooling import LLM
from pooling.config import ModelSpec
from pooling.errors import CheckpointError, ConfigError
from tests.checkpoints import MINILM
from tests.texts import words

ROWS = 300


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    """300 rows; row 7 is null."""
    texts = [words(1 + n % 40, start=n) for n in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": [None if n == 7 else text for n, text in enumerate(texts)]})
    parquet.write_table(table, tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


@pytest.fixture
def texts_files(texts_file: Path) -> Path:
    """The same rows in a directory of three files of unequal length."""
    table = parquet.read_table(texts_file)
    directory = texts_file.parent / "in"
    directory.mkdir()
    for part, rows in enumerate((150, 100, 50)):
        start = (0, 150, 250)[part]
        parquet.write_table(table.slice(start, rows), directory / f"{part}.parquet")
    return directory


@pytest.mark.usefixtures("ray_cluster")
def test_vectors_of_a_dataset_are_those_of_llm() -> None:
    texts = [words(1 + n % 30, start=n) for n in range(120)]
    dataset = ray.data.from_items([{"text": text, "n": n} for n, text in enumerate(texts)], override_num_blocks=3)
    table = dataset.map_batches(
        Embedder,
        fn_constructor_kwargs={"model": MINILM, "dtype": "float32"},
        batch_size=50,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    ).take_all()
    found = {row["n"]: row["embedding"] for row in table}
    assert sorted(found) == list(range(120))
    with LLM(MINILM, dtype="float32") as llm:
        expected = [output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)]
    np.testing.assert_allclose([found[n] for n in range(120)], expected, atol=2e-6)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_writes_every_row_in_order(checkpoint: Callable[[str], Path], texts_files: Path, tmp_path: Path) -> None:
    spec = ModelSpec(source=str(checkpoint("bert")), dtype="float32")
    report = run_job(
        PoolingJob(input=str(texts_files), output=str(tmp_path / "out"), spec=spec, batch_size=16, num_cpus=1)
    )
    assert (report.rows, report.errors) == (ROWS, 1)
    files = sorted(Path(report.output).glob("*.parquet"))
    assert len(files) == 10 + 7 + 4  # of 150, 100 and 50 rows, 16 in each
    written = pa.concat_tables([parquet.ParquetFile(file).read() for file in files])
    assert written.column("id").to_pylist() == list(range(ROWS))
    assert written.select(["id", "text"]).equals(parquet.read_table(texts_files))
    assert [row for row, reason in enumerate(written.column("error").to_pylist()) if reason] == [7]
    assert written.column("embedding")[7].as_py() is None
    with LLM(spec.source, dtype="float32") as llm:
        (last,) = llm.embed(written.column("text")[ROWS - 1].as_py(), use_tqdm=False)
    np.testing.assert_allclose(written.column("embedding")[ROWS - 1].as_py(), last.outputs.embedding, atol=2e-6)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_without_rows_is_done_at_once(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    spec = ModelSpec(source=str(checkpoint("bert")))
    report = run_job(
        PoolingJob(input=str(tmp_path / "empty.parquet"), output=str(tmp_path / "out"), spec=spec, num_cpus=1)
    )
    assert (report.rows, report.errors) == (0, 0)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_ends_with_the_reason_why_its_engines_cannot_start(
    broken_checkpoint: Callable[[str], Path], texts_file: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(source=str(broken_checkpoint("misshapen tensor")))
    with pytest.raises(CheckpointError, match="has shape"):
        run_job(PoolingJob(input=str(texts_file), output=str(tmp_path / "out"), spec=spec, num_cpus=1))


def job(**changes: object) -> PoolingJob:
    """Of MiniLM, unless the changes say otherwise."""
    return PoolingJob.model_validate({"spec": {"source": MINILM}, **changes})


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.parquet' does not exist"):
        run_job(job(input=str(tmp_path / "nothing.parquet"), output=str(tmp_path / "out")))


def test_an_input_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no magic bytes here")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        run_job(job(input=str(tmp_path / "text.parquet"), output=str(tmp_path / "out")))


def test_an_input_directory_without_files_to_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a directory without files of a known ending"):
        run_job(job(input=str(tmp_path), output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"column": "body"}, "no column 'body'; the columns are id, text"),
        ({"column": "id"}, "column 'id' of .* holds int64, not text"),
        ({"output_column": "id"}, "has a column 'id' already"),
        ({"prompt_name": "query"}, "Unknown prompt_name 'query'"),
        ({"dimensions": 10}, "does not support Matryoshka"),
        ({"error_column": "embedding"}, "two new columns would be named 'embedding'"),
        ({"task": "classify"}, "Unsupported task: 'classify'"),
        ({"task": "score"}, "no column 'query'; the columns are id, text"),
        ({"input_format": "csv"}, "is not UTF-8"),
    ],
)
def test_a_job_that_cannot_be_right_is_refused_before_it_starts(
    texts_file: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_job(job(input=str(texts_file), output=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_output_directory_is_left_alone(texts_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier.parquet").write_bytes(b"of yesterday")
    with pytest.raises(ConfigError, match="is not empty"):
        run_job(job(input=str(texts_file), output=str(tmp_path / "out")))
    assert (tmp_path / "out" / "earlier.parquet").read_bytes() == b"of yesterday"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run_job(job(input=str(texts_file), output=str(tmp_path / "file")))


def test_an_output_in_the_input_is_refused(texts_files: Path) -> None:
    for output in (texts_files, texts_files / "out"):
        with pytest.raises(ConfigError, match="is in the input"):
            run_job(job(input=str(texts_files), output=str(output)))


@pytest.mark.usefixtures("ray_cluster")
def test_more_engines_than_the_machine_can_ever_hold_are_refused(texts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 engines of 1 CPUs need 3, but this machine has 1 to give"):
        run_job(job(input=str(texts_file), output=str(tmp_path / "out"), concurrency=3, num_cpus=1))
