"""What the tests of scores share: pairs, the reference, and what our answers to them are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from pooling import LLM
from pooling.request import Rows
from tests.scorers import pairs

Scorers = Callable[[str], Path]
PAIRS = pairs()
QUERIES, DOCUMENTS = [query for query, _ in PAIRS], [document for _, document in PAIRS]
# Rounding of a score between 0 and 1.
ROUNDING = 2e-5

logging.set_verbosity_error()


def scores(llm: LLM, first: Any = QUERIES, second: Any = DOCUMENTS, **options: Any) -> Rows:
    return np.array([out.outputs.score for out in llm.score(first, second, use_tqdm=False, **options)], np.float32)


def cross_encoder(directory: Path, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(directory), device="cpu", model_kwargs={"attn_implementation": "eager"}, **options)


def predicted(reference: Any, given: list[tuple[str, str]] = PAIRS, **options: Any) -> Rows:
    """One pair at a time: never padded."""
    return np.array([reference.predict([pair], show_progress_bar=False, **options)[0] for pair in given], np.float32)


def told_apart(values: Rows) -> bool:
    """Whether a wrong answer would show: scores are neither all one half nor at the ends."""
    return float(values.std()) > 0.05 and float(np.mean((values > 0.02) & (values < 0.98))) > 0.5


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))
