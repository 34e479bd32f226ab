"""Matryoshka: the leading components of a vector are a smaller vector."""

from torch import Tensor


def cut(rows: Tensor, dimensions: int | None) -> Tensor:
    """rows [n, dim] -> [n, dimensions]; None keeps all. Cut first, then normalise.

    Source: Kusupati et al. 2022, arXiv:2205.13147.
    """
    return rows if dimensions is None else rows[:, :dimensions]
