"""The stages of a file job, one after another in this process."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.job_input import look_at_input
from cluster.ledger import Ledger
from cluster.stages import PoolParts, ReadParts, WriteParts
from pooling.errors import ConfigError


def reader(source: Path, size: int = 2) -> ReadParts:
    job_input = look_at_input(str(source), None, ("text",))
    return ReadParts(job_input.format, job_input.schema, ("text",), size)


def file_row(source: Path, done: str = "[]") -> pa.Table:
    return pa.table({"file": [3], "name": [str(source)], "done": [done]})


def test_a_fault_of_a_line_becomes_the_error_of_its_row(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n{"text": "c"\n{"text": "d", "n": 4}\n')
    ledger = Ledger(str(output))
    output.mkdir()
    ledger.open({})
    pool = PoolParts("embed", model=str(checkpoint("bert")), dtype="float32")
    write = WriteParts(str(output), "parquet", "error")
    done = [write(pool(part)).to_pylist() for part in reader(source)(file_row(source))]
    assert done == [[{"rows": 2, "errors": 0}], [{"rows": 2, "errors": 1}]]
    bad, good = parquet.read_table(output / "part-00003-00000001.parquet").to_pylist()
    assert (bad["text"], bad["n"], bad["embedding"]) == (None, None, None)
    assert bad["error"].startswith("the line is no JSON")
    assert (good["text"], good["n"], good["error"]) == ("d", 4, None)
    assert good["embedding"] is not None
    assert {file: sorted(parts) for file, parts in ledger.done().parts.items()} == {3: [0, 1]}
    assert list(reader(source)(file_row(source, "[0, 1]"))) == []
    pool._pooler.close()


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"text": ["some text"] * 9}), source)
    read = reader(source)
    content = source.read_bytes()
    source.write_bytes(b"PAR1" + bytes(60) + content[64:])
    with pytest.raises(ConfigError, match=r"input '.*in\.parquet' cannot be read: "):
        list(read(file_row(source)))


def test_float32_is_written_in_json_as_short_as_it_reads_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    Ledger(str(output)).open({})
    from cluster.output_formats import OUTPUT_FORMATS

    table = pa.table(
        {
            "id": [1, 2],
            "embedding": pa.array([[0.1, 0.5], None], pa.list_(pa.float32(), 2)),
            "score": pa.array([0.1, None], pa.float32()),
            "reward": pa.array([[[0.1], [2.0]], None], pa.list_(pa.list_(pa.float32(), 1))),
        }
    )
    OUTPUT_FORMATS["jsonl"].write(Ledger(str(output)), "part", table)
    assert (output / "part.jsonl").read_text().splitlines() == [
        '{"id":1,"embedding":[0.1,0.5],"score":0.1,"reward":[[0.1],[2.0]]}',
        '{"id":2,"embedding":null,"score":null,"reward":null}',
    ]
    with pytest.raises(ConfigError, match="column 'x' holds struct<y: binary>, which JSON has no form for"):
        OUTPUT_FORMATS["jsonl"].check(pa.schema([("x", pa.struct([("y", pa.binary())]))]))
