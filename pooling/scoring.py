"""Scoring: how relevant documents are to queries, by a model that reads both or by comparing their vectors."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pooling.errors import InvalidRequest, UnsupportedTask
from pooling.loading.card import ModelCard, Scoring
from pooling.request import PooledOutput, Rows

Item = TypeVar("Item")
Scores = NDArray[np.float32]
MAX_SIM: tuple[Scoring, ...] = ("max_sim", "mean_max_sim")


def pair_up(first: Sequence[Item], second: Sequence[Item]) -> list[tuple[Item, Item]]:
    """1:1, 1:N (the first for each of the second) or N:N, one by one.

    Raises InvalidRequest, in vLLM's words, for other lengths.
    """
    if not first:
        raise InvalidRequest("At least one text element must be given")
    if not second:
        raise InvalidRequest("At least one text_pair element must be given")
    if len(first) not in (1, len(second)):
        raise InvalidRequest(f"Input lengths must be either 1:1, 1:N or N:N (given {len(first)}:{len(second)})")
    return list(zip(first if len(first) == len(second) else [first[0]] * len(second), second, strict=True))


def check_scoring(card: ModelCard) -> Scoring:
    """How the model compares two texts. Raises UnsupportedTask if it cannot, saying what it does."""
    if card.scoring is None:
        why = f"; it has {len(card.labels)} labels, and a score needs one" if len(card.labels) > 1 else ""
        raise UnsupportedTask(
            f"Unsupported task: 'score' Supported tasks: {list(card.tasks)} (parameter=task){why}", "task"
        )
    return card.scoring


def compare(kind: Scoring, first: Rows, second: Rows) -> float:
    """The similarity of two answers of an embedding model: vectors [dim], or for max_sim and
    mean_max_sim [tokens, dim] each.

    In float64, so that equal texts have cosine 1 to the last bit of a float32.
    max_sim sums over the tokens of `first` the best product with a token of
    `second`; mean_max_sim divides that by the tokens of `first`. Source: Khattab
    and Zaharia 2020, arXiv:2004.12832, section 3.3.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    if kind in MAX_SIM:
        best = (a @ b.T).max(axis=1) if len(a) and len(b) else np.zeros(1)
        return float(best.sum() if kind == "max_sim" else best.mean())
    if kind == "dot":
        return float(a @ b)
    if kind == "euclidean":
        return -float(np.linalg.norm(a - b))
    if kind == "manhattan":
        return -float(np.abs(a - b).sum())
    return float(a @ b / max(_norm(a) * _norm(b), np.finfo(np.float64).tiny))


def compare_all(kind: Scoring, first: PooledOutput, second: PooledOutput) -> Scores:
    """The similarity of each of `second` to its partner in `first`, or to the only one there: [pairs] float32.

    As compare(), in one product where vectors are compared.
    """
    if kind in MAX_SIM:
        queries, documents = first.rows(), second.rows()
        partners = queries if len(queries) == len(documents) else queries * len(documents)
        return np.array([compare(kind, a, b) for a, b in zip(partners, documents, strict=True)], np.float32)
    return _similarity(kind, first.data, second.data).astype(np.float32)


def _similarity(kind: Scoring, first: Rows, second: Rows) -> NDArray[np.float64]:
    a, b = first.astype(np.float64), second.astype(np.float64)
    if kind == "euclidean":
        distances: NDArray[np.float64] = np.linalg.norm(a - b, axis=1)
        return -distances
    if kind == "manhattan":
        blocks: NDArray[np.float64] = np.abs(a - b).sum(axis=1)
        return -blocks
    products: NDArray[np.float64] = (a * b).sum(axis=1)
    if kind == "dot":
        return products
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float64] = products / np.maximum(lengths, np.finfo(np.float64).tiny)
    return cosines


def _norm(vector: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector))
