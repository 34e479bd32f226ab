"""A column of pictures, as datasets store them: embedded and classified like texts, bad ones without harm to others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import ray

from cluster import image_rows
from cluster.dataset import Classifier, Embedder
from cluster.formats import formats
from cluster.image_rows import image_of
from cluster.job import PoolingJob
from cluster.job_input import look_at_input, place_of
from pooling import LLM
from pooling.errors import ConfigError, InvalidRequest
from pooling.media import Image
from tests.checkpoints import MINILM
from tests.checkpoints.images import WITH_IMAGES
from tests.encoded import data_uri, drawn, encoded

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(WITH_IMAGES["clip"].write(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def embedder(clip: str) -> Iterator[Embedder]:
    embedder = Embedder(clip, image_column="image", dtype="float32")
    yield embedder
    embedder.close()


def pictures(count: int) -> list[bytes]:
    return [encoded(drawn(seed)) for seed in range(count)]


def test_a_column_of_bytes_is_embedded(embedder: Embedder, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rows, "_AT_ONCE", 4)  # so that ten are three pieces
    before = pa.table({"id": list(range(10)), "image": pictures(10)})
    after = embedder(before)
    assert after.select(["id", "image"]).equals(before)
    assert after.column("error").null_count == 10
    with LLM(clip, dtype="float32") as llm:
        expected = llm.embed([Image.of(drawn(seed)) for seed in range(10)], use_tqdm=False)
    found = np.array(after.column("embedding").to_pylist(), np.float32)
    np.testing.assert_allclose(found, [one.outputs.embedding for one in expected], atol=2e-6)


def test_a_bad_picture_costs_no_other_row_its_vector(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(image_rows, "_AT_ONCE", 3)
    good = pictures(4)
    rows = [good[0], None, good[1], b"no picture", good[2][:200], b"", good[3]]
    after = embedder(pa.table({"image": pa.array(rows, pa.binary())}))
    reasons = after.column("error").to_pylist()
    assert reasons[1] == "the row is null"
    assert "no format that is read" in reasons[3]
    assert "cut off or damaged" in reasons[4]
    assert reasons[5] == "an image has no bytes"
    found = after.column("embedding").to_pylist()
    assert [vector is None for vector in found] == [reason is not None for reason in reasons]
    assert [reason is None for reason in reasons] == [row in good for row in rows]
    alone = embedder(pa.table({"image": [good[0], good[1], good[3]]})).column("embedding").to_pylist()
    np.testing.assert_allclose([vector for vector in found if vector], alone, atol=2e-6)


def test_a_column_of_nothing_but_bad_pictures_has_the_same_columns(embedder: Embedder) -> None:
    good, bad = embedder(pa.table({"image": pictures(1)})), embedder(pa.table({"image": [b"a", b"b"]}))
    empty = embedder(pa.table({"image": pa.array([], pa.binary())}))
    assert bad.schema == good.schema == empty.schema
    assert bad.column("embedding").null_count == 2


def test_a_picture_may_be_stored_in_many_ways(tmp_path: Path) -> None:
    picture, data = Image.of(drawn()), encoded(drawn())
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    ways: list[Any] = [
        data,
        str(file),
        file.as_uri(),
        data_uri(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(file)},
        {"bytes": data, "path": "somewhere/else.png"},
        np.asarray(drawn()),
    ]
    assert [image_of(way) for way in ways] == [picture] * len(ways)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "the row holds int, not a picture"),
        ({"bytes": None, "path": None}, "the row is null"),
        ({}, "the row is null"),
        ("/no/such/file.png", "there is no file '/no/such/file.png'"),
        ("/dev/zero", "there is no file '/dev/zero'"),
        ("https://images.test/a.png", "is on no file system that can be reached"),
        (np.zeros((2, 2)), "allowed is uint8"),
    ],
)
def test_what_is_no_picture_is_told(value: Any, said: str) -> None:
    with pytest.raises((InvalidRequest, ConfigError), match=said):
        image_of(value)


def test_pictures_are_classified(tmp_path: Path) -> None:
    classifier = Classifier(str(WITH_IMAGES["vit"].write(tmp_path)), image_column="image", dtype="float32")
    try:
        after = classifier(pa.table({"image": [*pictures(2), b"bad"]}))
    finally:
        classifier.close()
    labels = after.column("label").to_pylist()
    assert labels[2] is None
    assert {label in ("cat", "dog", "tree", "house", "none of these") for label in labels[:2]} == {True}


def test_a_model_of_texts_takes_no_column_of_pictures(clip: str) -> None:
    with pytest.raises(ConfigError, match="reads text alone"):
        Embedder(MINILM, image_column="image")
    with pytest.raises(ConfigError, match="no column 'image'"):
        Embedder(clip, image_column="image")(pa.table({"text": ["a"]}))


def test_a_job_takes_a_column_of_structs_where_texts_must_be_text(tmp_path: Path) -> None:
    stored = [{"bytes": data, "path": None} for data in pictures(2)]
    parquet.write_table(pa.table({"image": stored}), tmp_path / "a.parquet")
    job = PoolingJob(input=str(tmp_path), output="out", spec={"source": "m"}, image_column="image")
    found = look_at_input(job.input, None, job.columns, job.texts)
    assert found.total == 2
    with pytest.raises(ConfigError, match="not text"):
        look_at_input(job.input, None, ["image"])
    assert job.pooler_options()["image_column"] == "image"


def test_the_lines_of_a_text_file_may_be_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("/one.png\n/two.png\n")
    found = look_at_input(str(tmp_path), None, ("image",), ())
    (part,) = formats()["text"].read(place_of(found.files[0].name), found.schema, found.texts, 10, set())
    assert part.table.to_pydict() == {"image": ["/one.png", "/two.png"]}


def test_the_command_embeds_the_pictures_of_files(
    ray_cluster: None, embedder: Embedder, clip: str, tmp_path: Path
) -> None:
    """Structs of bytes and path, as Hugging Face's datasets store pictures, two parts of a file."""
    stored = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(pictures(5))]
    stored[3]["bytes"] = b"no picture"
    parquet.write_table(pa.table({"id": list(range(5)), "image": stored}), tmp_path / "in.parquet")
    program = [sys.executable, "-c", "import sys; from deployments.cli import main; sys.exit(main())"]
    files = ["embed", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out"), "--image-column", "image"]
    done = subprocess.run(
        [*program, *files, "--model", clip, "--dtype", "float32", "--batch-size", "3", "--num-cpus", "1"],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "5 rows, 1 without an answer" in done.stdout
    found = parquet.read_table(tmp_path / "out").sort_by("id")
    expected = embedder(pa.table({"image": stored}))
    assert [reason is None for reason in found.column("error").to_pylist()] == [True, True, True, False, True]
    for one, other in zip(*(table.column("embedding").to_pylist() for table in (found, expected)), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=2e-6)
