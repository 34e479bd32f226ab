"""Files of each format, cut into parts: every row is in one, bad ones in their place with a reason."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.formats import Part, formats
from cluster.job_input import JobInput, look_at_input, place_of
from pooling.errors import ConfigError

LINES = ["first", "", "third, with a comma", "Größe", 'fifth "quoted"', "sixth", "seventh"]


def write(directory: Path, form: str) -> Path:
    """Seven rows, of which the second is empty."""
    directory.mkdir(exist_ok=True)
    file = directory / {"parquet": "a.parquet", "jsonl": "a.jsonl", "csv": "a.csv", "text": "a.txt"}[form]
    if form == "parquet":
        parquet.write_table(pa.table({"text": LINES}), file, row_group_size=2)
    elif form == "jsonl":
        file.write_bytes(b"\n".join(b'{"text": "%s"}' % line.replace('"', '\\"').encode() for line in LINES))
    elif form == "csv":
        file.write_text("text\n" + "".join('"{}"\r\n'.format(line.replace('"', '""')) for line in LINES))
    else:
        file.write_text("\r\n".join(LINES) + "\n")
    return file


def read(job_input: JobInput, size: int, done: frozenset[int] = frozenset(), file: int = 0) -> list[Part]:
    place = place_of(job_input.files[file].name)
    return list(formats()[job_input.format].read(place, job_input.schema, ("text",), size, done))


def only(file: Path, text: bytes, size: int = 10) -> Part:
    """The one part of a file with that content."""
    file.write_bytes(text)
    (part,) = read(look_at_input(str(file), None, ("text",)), size)
    return part


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "text"])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_parts_have_every_row_in_order(tmp_path: Path, form: str, size: int) -> None:
    job_input = look_at_input(str(write(tmp_path, form)), None, ("text",))
    parts = read(job_input, size)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert {len(part.table) for part in parts[:-1]} <= {size}
    assert pa.concat_tables([part.table for part in parts]).column("text").to_pylist() == LINES
    assert not any(part.faults for part in parts)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "text"])
@pytest.mark.parametrize("done", [{0}, {1}, {0, 2}, {3}, {0, 1, 2, 3}])
@pytest.mark.parametrize("size", [2, 3])
def test_parts_that_are_done_are_left_out_and_the_others_are_the_same(
    tmp_path: Path, form: str, done: set[int], size: int
) -> None:
    job_input = look_at_input(str(write(tmp_path, form)), None, ("text",))
    whole = {part.number: part.table for part in read(job_input, size)}
    left = {part.number: part.table for part in read(job_input, size, frozenset(done))}
    assert sorted(left) == sorted(set(whole) - done)
    assert all(left[number].equals(whole[number]) for number in left)


def test_row_groups_of_parts_that_are_done_are_not_read(tmp_path: Path) -> None:
    file = write(tmp_path, "parquet")  # groups of rows 0-1, 2-3, 4-5, 6
    job_input = look_at_input(str(file), None, ("text",))
    with parquet.ParquetFile(file) as opened:
        column = opened.metadata.row_group(1).column(0)
    damaged = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(damaged)
    assert [part.number for part in read(job_input, 2, frozenset({1}))] == [0, 2, 3]
    with pytest.raises(OSError):  # noqa: PT011  # whatever pyarrow says of zeros
        read(job_input, 2)


@pytest.mark.parametrize("form", ["jsonl", "csv", "text"])
def test_packed_files_are_unpacked(tmp_path: Path, form: str) -> None:
    file = write(tmp_path, form)
    packed = file.with_name(file.name + ".gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    (part,) = read(look_at_input(str(tmp_path), None, ("text",)), 10)
    assert part.table.column("text").to_pylist() == LINES


def test_bad_lines_of_json_are_faults_of_their_rows(tmp_path: Path) -> None:
    good = b'{"text": "a"}\n'
    bad = [b"{", b"[1]", b'{"text": 5}', b'{"text": "\xff"}']
    part = only(tmp_path / "a.jsonl", good + b"\n\n".join(bad) + b"\n" + good)
    assert part.table.column("text").to_pylist() == ["a", None, None, None, None, "a"]
    said = ["is no JSON", "JSON array, not an object", "'text' holds int 5, not string", "is no JSON"]
    assert sorted(part.faults) == [1, 2, 3, 4]
    for row, words in enumerate(said, 1):
        assert words in part.faults[row]


def test_a_row_without_the_column_of_texts_says_so_and_a_null_is_none(tmp_path: Path) -> None:
    part = only(tmp_path / "a.jsonl", b'{"text": "a", "n": 1}\n{"n": 2}\n{"text": null, "n": 3}\n{')
    assert part.table.column("text").to_pylist() == ["a", None, None, None]
    assert part.faults[1] == "the row has no field 'text'"
    assert sorted(part.faults) == [1, 3]  # a null is judged where it would be read
    assert "is no JSON" in part.faults[3]


def test_a_field_that_no_row_of_the_sample_has_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.formats.jsonl._SAMPLE", 2)
    part = only(
        tmp_path / "a.jsonl", b'{"text": "a", "n": 1}\n{"text": "b"}\n{"text": "c", "m": 1}\n{"text":"d","n":2.5}'
    )
    assert "'m' is in none of the first 2 rows" in part.faults[2]
    assert part.faults[3] == "the field 'n' holds float 2.5, not int64"
    assert part.table.column("n").to_pylist() == [1, None, None, None]


def test_fields_of_mixed_types_become_json(tmp_path: Path) -> None:
    part = only(tmp_path / "a.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n{"text": "c", "x": [1]}')
    assert part.table.column("x").to_pylist() == ["1", "one", "[1]"]
    assert part.faults == {}


def test_bad_rows_of_csv_are_faults_and_others_stay_text(tmp_path: Path) -> None:
    part = only(tmp_path / "a.csv", b'\xef\xbb\xbfid,text\n007,a\n1\n2,b,c\n\n3,\xff\n"4"x,b\n5,d\n')
    assert part.table.column("id").to_pylist() == ["007", None, None, None, None, "5"]
    assert part.table.column("text").to_pylist()[-1] == "d"
    said = ["1 fields, not 2", "3 fields, not 2", "not UTF-8", "is no CSV"]
    assert sorted(part.faults) == [1, 2, 3, 4]
    for row, words in enumerate(said, 1):
        assert words in part.faults[row]


def test_a_line_of_text_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    part = only(tmp_path / "a.txt", b"\xef\xbb\xbfa\n\xff\nb")
    assert part.table.column("text").to_pylist() == ["a", None, "b"]
    assert part.faults == {1: "the line is not UTF-8"}


def test_files_with_other_columns_get_the_columns_of_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}')
    (tmp_path / "b.jsonl").write_text('{"n": 2.5, "text": "b", "more": true}')
    (tmp_path / "_hidden.jsonl").write_text("not read")
    job_input = look_at_input(str(tmp_path), None, ("text",))
    first, second = (read(job_input, 10, file=file)[0].table for file in (0, 1))
    assert first.schema == second.schema
    assert first.to_pylist() == [{"text": "a", "n": 1.0, "more": None}]
    assert second.to_pylist() == [{"text": "b", "n": 2.5, "more": True}]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": "text\na", "b.jsonl": '{"text": "a"}'}, "several formats, 1 of jsonl and 1 of csv; name one"),
        ({"a.csv": ""}, "has no header"),
        ({"a.csv": "text,text\n"}, "two columns 'text'"),
        ({"a.jsonl": ""}, "is empty: it has no column 'text'"),
        ({"a.jsonl": "nonsense\n"}, "is no JSON lines: the line is no JSON"),
        ({"a.jsonl": '{"text": "a"}', "b.jsonl": '{"body": "a"}'}, r"in .*b\.jsonl' there is no column 'text'"),
        ({"a.jsonl": '{"text": "a", "n": 1}', "b.jsonl": '{"text": "b", "n": {"m": 1}}'}, "do not go with those"),
        ({"a.docx": ""}, "without files of a known ending"),
        ({"a.csv.gz": "text\na"}, "cannot be read"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        look_at_input(str(tmp_path), None, ("text",))


def test_a_format_that_is_named_is_taken_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nfrom csv")
    (tmp_path / "b.jsonl").write_text('{"text": "from json"}')
    (part,) = read(look_at_input(str(tmp_path), "csv", ("text",)), 10)
    assert part.table.column("text").to_pylist() == ["from csv"]
    (tmp_path / "c").write_text('{"text": "without an ending"}')
    (part,) = read(look_at_input(str(tmp_path / "c"), "jsonl", ("text",)), 10)
    assert part.table.column("text").to_pylist() == ["without an ending"]
    with pytest.raises(ConfigError, match="has no files of format parquet"):
        look_at_input(str(tmp_path), "parquet", ("text",))
    with pytest.raises(ConfigError, match="is no file of a known ending"):
        look_at_input(str(tmp_path / "c"), None, ("text",))


def test_text_has_one_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one column; 'query' and 'document' are needed"):
        look_at_input(str(write(tmp_path, "text")), None, ("query", "document"))


def test_a_uri_is_read_as_a_path_is(tmp_path: Path) -> None:
    file = write(tmp_path / "in", "csv")
    for uri in (f"file://{file}", f"file://{file.parent}", f"file://{file.parent}/"):
        job_input = look_at_input(uri, None, ("text",))
        assert [found.name for found in job_input.files] == [f"file://{file}"]
        (part,) = read(job_input, 10)
        assert part.table.column("text").to_pylist() == LINES
    with pytest.raises(ConfigError, match="is on no file system that can be reached"):
        look_at_input("nowhere://bucket/texts.csv", None, ("text",))
