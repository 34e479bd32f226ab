"""The small checkpoints see the mistakes they are there for: each, made on purpose, moves the answer far.

Without this, test_families.py could pass with a wrong engine.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import EVERY
from tests.mistakes import MISTAKES
from tests.reference import relative_error
from tests.texts import stretching_texts

FAR = 0.01  # 500 times what test_families.py lets pass


def test_every_family_has_a_mistake_to_see() -> None:
    assert MISTAKES.keys() >= EVERY.keys()


@pytest.mark.parametrize(("family", "mistake"), [(family, name) for family in EVERY for name in MISTAKES[family]])
def test_a_mistake_moves_the_answer_far(checkpoint: Callable[[str], Path], family: str, mistake: str) -> None:
    reference = EVERY[family].reference(checkpoint(family))
    texts = stretching_texts(reference.ids, EVERY[family].max_model_len)
    right = [reference.embed(text) for text in texts]
    MISTAKES[family][mistake](reference)
    wrong = [reference.embed(text) for text in texts]
    moved = relative_error(np.stack(wrong), np.stack(right))
    assert moved > FAR
