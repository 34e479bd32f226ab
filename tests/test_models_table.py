"""docs/models.md says what the tests compare."""

from tests.models_table import DOCUMENT, with_tables


def test_the_documented_families_are_those_that_are_compared() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(document) == document, "run: python -m tests.models_table"
