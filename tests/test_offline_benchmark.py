"""The comparison with other libraries: their workers, the models they are given, and what is written of it."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import images
from benchmarks.gpu.shapes import tiny
from benchmarks.http_grid import Grid, Load
from benchmarks.http_grid import lines as grid_lines
from benchmarks.offline import Entrant, Texts, entrants
from benchmarks.offline_tables import Answered, Found, Started, lines
from benchmarks.plots import plot_latency, plot_throughput
from benchmarks.report import BEGIN, END, Report, put
from benchmarks.servers import Server, started_with
from benchmarks.shapes import SHAPES
from benchmarks.tables import ratio, shown, spread, table
from benchmarks.workers import Worker, WorkerFailed
from pooling import LLM, Image

ROOT = Path(__file__).parents[1]


# The models


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A shape's files with small layers and the tokenizer it has."""
    models = tmp_path_factory.mktemp("models")

    def write(name: str) -> Path:
        shape = SHAPES[name]
        small_config = tiny(shape.config) | {"vocab_size": shape.config["vocab_size"]} if shape.config else {}
        return replace(shape, config=small_config).directory(models)

    return write


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.task == "embed"])
def test_an_embedder_is_read_alike_by_sentence_transformers(small: Callable[[str], Path], name: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["the cat of the house", "number water than call first who may down side been now find", "a"]
    directory = small(name)
    theirs = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": "float32"})
    with LLM(directory, dtype="float32") as llm:
        ours = np.array([output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)])
    assert np.abs(ours - theirs.encode(texts)).max() < 1e-5
    assert theirs.max_seq_length == 512


def test_the_cross_encoder_is_read_alike_by_sentence_transformers(small: Callable[[str], Path]) -> None:
    from sentence_transformers import CrossEncoder

    pairs = [("the cat of the house", "number water than call first"), ("a", "b c d")]
    directory = small("xlmr-reranker")
    theirs = CrossEncoder(str(directory), device="cpu").predict(pairs)
    with LLM(directory, dtype="float32") as llm:
        ours = [o.outputs.score for o in llm.score(*zip(*pairs, strict=True), use_tqdm=False)]
    assert np.abs(np.array(ours) - theirs).max() < 1e-5
    assert abs(ours[0] - ours[1]) > 1e-4  # else a wrong score would look right


@pytest.mark.parametrize("name", SHAPES)
def test_the_sets_have_the_stated_lengths_for_every_model(small: Callable[[str], Path], name: str) -> None:
    texts = Texts.of(SHAPES[name], small(name), ["short", "long", "mixed"], scale=1.0, sweep=False)
    means = [lengths.mean() for lengths in texts.lengths.values()]
    assert means == pytest.approx([54, 335, (54 + 335) / 2], rel=0.02)
    assert max(lengths.max() for lengths in texts.lengths.values()) <= 512


def test_the_model_of_the_images_is_read_alike_by_sentence_transformers(tmp_path: Path) -> None:
    from PIL import Image as Pictures
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config=small | {"image_size": 224, "patch_size": 32})
    directory, files = images.directory(tmp_path, config), images.pictures(tmp_path / "pictures")[:3]
    with LLM(directory, dtype="float32") as llm:
        given = [Image.of(Pictures.open(file)) for file in files]
        ours = np.array([output.outputs.embedding for output in llm.embed([*given, "the cat"], use_tqdm=False)])
    model = SentenceTransformer(str(directory), device="cpu")
    theirs = np.concatenate([model.encode([Pictures.open(file) for file in files]), model.encode(["the cat"])])
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.abs(ours - theirs).max() < 1e-5


# The workers


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Worker(Path(sys.executable), environment, tmp_path / "log") as worker:
        yield worker


def _load(worker: Worker, directory: Path, sets: Path) -> dict[str, float]:
    sets.write_text(json.dumps({"few": ["ba be bi", "bo"]}))
    return worker.ask(
        "load", library="raypool", model=str(directory), task="embed", dtype="float32", threads=1, sets=str(sets)
    )


def test_a_worker_answers_as_the_library_does(
    worker: Worker, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = _load(worker, checkpoint("bert"), tmp_path / "sets.json")
    answer = worker.ask("run", set="few")
    singles = worker.ask("one", input="ba be", times=3)["seconds"]
    with LLM(checkpoint("bert"), dtype="float32") as llm:
        ours = [output.outputs.embedding for output in llm.embed(["ba be bi", "bo"], use_tqdm=False)]
    assert np.abs(np.array(answer["sample"]) - np.array(ours)).max() < 1e-6
    assert answer["answers"] == 2
    assert len(singles) == 3
    assert min(loaded["seconds"], answer["seconds"], *singles) > 0
    assert worker.age_s() > loaded["seconds"]


def test_a_worker_stands_still_while_it_is_not_asked(
    worker: Worker, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    _load(worker, checkpoint("bert"), tmp_path / "sets.json")
    stopped = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert stopped == "T"
    assert worker.cpu_s() > 0
    assert worker.ask("run", set="few")["answers"] == 2


def test_what_a_library_cannot_do_is_one_line_and_the_worker_stays(
    worker: Worker, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    _load(worker, checkpoint("bert"), tmp_path / "sets.json")
    with pytest.raises(WorkerFailed, match=r"^KeyError: 'many'$"):
        worker.ask("run", set="many")
    assert worker.ask("run", set="few")["answers"] == 2


def test_a_worker_that_does_not_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho this CPU lacks an instruction >&2\nexit 1\n")
    broken.chmod(0o755)
    with (
        Worker(broken, dict(os.environ), tmp_path / "log") as worker,
        pytest.raises(WorkerFailed, match=r"this CPU lacks an instruction$"),
    ):
        worker.ask("run", set="few")


def test_sentence_transformers_is_also_taken_at_its_default() -> None:
    libraries = ["raypool", "sentence-transformers"]
    named = [entrant.name for entrant in entrants(libraries, "bfloat16")]
    assert named == ["raypool bfloat16", "sentence-transformers bfloat16", "sentence-transformers float32"]
    assert [entrant.name for entrant in entrants(libraries, "float32")] == [
        "raypool float32",
        "sentence-transformers float32",
    ]
    assert Entrant("raypool", "float32") in entrants(libraries, "float32")


def test_a_sweep_has_texts_of_one_length_each(small: Callable[[str], Path]) -> None:
    texts = Texts.of(SHAPES["minilm"], small("minilm"), ["short"], scale=0.1, sweep=True)
    for name, lengths in texts.lengths.items():
        if name != "short":
            assert set(lengths) == {int(name.removesuffix(" tokens"))}
    assert {"short", "8 tokens", "512 tokens"} <= set(texts.lengths)


# What is written of it


def _found() -> Found:
    found = Found("minilm", "a small one", "embed")
    found.describe("short", inputs=10, tokens=540, flops=1e9)
    for ours, theirs in ((1.0, 2.0), (1.2, 3.0), (1.1, 2.2)):
        found.add(Answered("raypool bfloat16", "short", ours, peak=2e9, others=0.01), [[1.0, 0.0]])
        found.add(Answered("vllm bfloat16", "short", theirs, peak=2e9, others=0.02), [[0.6, 0.8]])
    found.started += [Started("raypool bfloat16", 3.0, 2.0), Started("vllm bfloat16", 20.0, 15.0)]
    found.singles = {"raypool bfloat16": [[0.004, 0.004]], "vllm bfloat16": [[0.006, 0.006]]}
    found.failures["infinity bfloat16"] = "it ended: no such model"
    return found


def test_the_table_has_medians_ratios_and_shares() -> None:
    text = "\n".join(lines(_found()))
    assert "| short: 10 of 54 tokens | raypool bfloat16 | 9.1 | 18% | 491 | 45.5% |  |  |" in text
    assert "| vllm bfloat16 | 4.5 | 45% | 245 | 22.7% | 2.00x | cosine 0.6000 |" in text
    assert "| vllm bfloat16 | 6.0 ms | 6.0 ms | 1.50x | 20.0 s | 6.67x |" in text
    assert "infinity bfloat16 is left out: it ended: no such model" in text
    assert "at most 0.02 cores" in text


def test_a_report_that_was_written_is_read_again(tmp_path: Path) -> None:
    report = Report(
        "make bench", "2027-01-01", "abc", "2 cores", "bfloat16", 2, {"raypool": "torch 2"}, 1.5, [_found()]
    )
    report.write(tmp_path / "report.json")
    assert asdict(Report.read(tmp_path / "report.json")) == asdict(report)
    assert Report.read(tmp_path / "report.json").section([]) == report.section([])


def test_a_section_is_put_between_its_markers_and_nothing_else_changes() -> None:
    document = f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    assert put("new", document) == f"# Title\n\nbefore\n\n{BEGIN}\nnew\n{END}\n\nafter\n"
    assert put("new", put("old", "# Title\n")) == f"# Title\n\n{BEGIN}\nnew\n{END}\n"


@pytest.mark.parametrize("document", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_document_with_odd_markers_is_left_alone(document: str) -> None:
    with pytest.raises(ValueError, match="once"):
        put("new", document)


def _grid() -> Grid:
    grid = Grid("minilm", flops=1e9)
    grid.loads += [Load("raypool", 8, 1, 120.0, 60.0, 90.0, 1e12), Load("vllm", 8, 1, 100.0, 70.0, 80.0, 1e12)]
    grid.failures["vllm, 32 clients, 256 texts"] = "it answered 429"
    return grid


def test_what_a_server_leaves_behind_ends_with_it() -> None:
    leaves = "import signal, subprocess; subprocess.Popen(['sleep', '300'], start_new_session=True); signal.pause()"
    own = {"RAYPOOL_TEST": str(os.getpid())}
    server = Server("leaving", (sys.executable, "-c", leaves), own)

    def running() -> int:
        return len(started_with(f"RAYPOOL_TEST={os.getpid()}"))

    with server.running(Path(), "float32", 1, lambda _: running() == 2):
        assert running() == 2
    assert running() == 0


def test_the_table_of_servers_has_every_load_and_what_failed() -> None:
    text = "\n".join(grid_lines(_grid()))
    assert "| 8 clients, 1 text a request | raypool | 120 | 0% | 60.0 ms | 90.0 ms | 12.0% |  |" in text
    assert "| 8 clients, 1 text a request | vllm | 100 | 0% | 70.0 ms | 80.0 ms | 10.0% | 1.20x |" in text
    assert "vllm, 32 clients, 256 texts: it answered 429" in text


def test_figures_name_who_was_measured_and_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        plot_throughput([_found()], tmp_path / f"{name}-throughput.svg")
        plot_latency(_grid(), tmp_path / f"{name}-latency.svg")
    for kind in ("throughput", "latency"):
        first, second = ((tmp_path / f"{name}-{kind}.svg").read_bytes() for name in ("a", "b"))
        assert first == second
        assert first.startswith(b"<?xml")


def test_numbers_are_compared_by_their_medians() -> None:
    assert ratio([1, 2, 9], [4, 4, 4], more_is_better=True) == 0.5
    assert ratio([1, 2, 9], [4, 4, 4], more_is_better=False) == 2
    assert spread([1, 2, 4]) == 1.5
    assert [shown(number) for number in (12345.6, 87.25, 1.234, 0.0451)] == ["12,346", "87.2", "1.23", "0.0451"]


def test_a_table_is_markdown_and_every_row_as_wide_as_its_head() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="1 cells"):
        table(["a", "b"], [["1"]])
