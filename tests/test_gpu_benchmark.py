"""The GPU run, on a CPU with small models: that it runs, and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import run
from benchmarks.gpu.random_model import RandomCheckpoint, random_model
from benchmarks.gpu.shapes import SHAPES, tiny
from benchmarks.texts import short_lengths
from pooling import ModelSpec
from pooling.loading.checkpoint import Checkpoint
from pooling.runner import LocalRunner

_QUICK = ["--device", "cpu", "--tiny", "--dtype", "float32", "--seconds", "0.01", "--queries", "5", "--steps", "512"]


def test_a_run_writes_a_table_and_every_number(tmp_path: Path) -> None:
    shapes = ["bge-base", "bge-reranker-v2-m3", "Qwen3-Embedding-0.6B", "e5-mistral-7b"]
    run.main([*_QUICK, "--out", str(tmp_path), "--shapes", *shapes])
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    text = (tmp_path / "gpu.md").read_text()
    assert [result["shape"] for result in results] == shapes
    for result in results:
        assert result["failure"] is None
        assert result["path"] == "packed, float32, cpu"
        assert {(one["step_tokens"], one["inputs"]) for one in result["throughput"]} == {
            (512, "512 tokens"),
            (512, "short"),
        }
        assert all(one["tokens_per_s"] > 0 and one["share"] > 0 for one in result["throughput"])
        assert 0 < result["p50_ms"] <= result["p99_ms"]
        assert f"| {result['shape']} | 512 | short |" in text


def test_a_model_that_fails_is_named_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.SHAPES, "bge-base", SHAPES["bge-base"] | {"architectures": ["BertForNothing"]})
    run.main([*_QUICK, "--out", str(tmp_path), "--shapes", "bge-base", "bge-large"])
    failed, done = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert "BertForNothing" in failed["failure"]
    assert done["throughput"]
    assert f"bge-base: {failed['failure']}" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_the_model_that_it_is_named_for(name: str, tmp_path: Path) -> None:
    """Millions of parameters, as their cards say; a table of positions and a head count too."""
    said = {
        "bge-base": 109,
        "bge-large": 335,
        "bge-reranker-v2-m3": 568,
        "Qwen3-Embedding-0.6B": 596,
        "Qwen3-Embedding-4B": 4_022,
        "Qwen3-Embedding-8B": 7_568,
        "e5-mistral-7b": 7_111,
    }
    with random_model(SHAPES[name], tmp_path) as source:
        checkpoint = RandomCheckpoint(Path(source))
    parameters = sum(int(np.prod(checkpoint.shape(tensor), dtype=np.int64)) for tensor in checkpoint.names)
    assert parameters / 1e6 == pytest.approx(said[name], rel=0.01)


def test_a_random_model_is_one_for_as_long_as_it_is_loaded(tmp_path: Path) -> None:
    before = dict(vars(Checkpoint))
    with random_model(tiny(SHAPES["bge-base"]), tmp_path) as source:
        runner = LocalRunner(ModelSpec(source=source, device="cpu", dtype="float32"))
    assert runner.card.dim == 64
    assert dict(vars(Checkpoint)) == before


@pytest.mark.parametrize("tokens", [512, 4_096, 65_536])
def test_short_lengths_fill_a_step(tokens: int) -> None:
    lengths = short_lengths(tokens)
    assert lengths.sum() == tokens
    assert lengths.min() > 0
    assert lengths.mean() == pytest.approx(54, rel=0.15)
