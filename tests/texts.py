"""Texts that stretch an engine: of every length, in many scripts, repeated and nearly empty."""

from collections.abc import Callable

from tests.vocabularies import WORDS

_AWKWARD = [
    "a",
    ".",
    " leading and  double   spaces and trailing ",
    "Größe, naïveté, señor and Ångström: ÀÉÎÕÜ",
    "中文没有空格，日本語も한국어도 있다",
    "Привет мир, γειά σου κόσμε, שלום עולם, مرحبا",
    "🙂🙃 👩‍👩‍👧 e\u0301 \u200b \ufb01 ½ ™",
    "tab\tand\nnewline\r\nand \x07 a bell",
    "[SEP] </s> written in the text itself",
    "a [MASK] or <mask> and [PAD] or <pad> too",
    "0123456789 3.14159 1e-12 0x7f",
    "snake_case camelCase https://example.org/a?b=c&d=[e]#f",
]
_LENGTHS = [1, 2, 3, 17, 31, 32, 33, 34, 48, 49, 64, 97, 200]


def stretching_texts(ids: Callable[[str], list[int]], max_tokens: int) -> list[str]:
    """Some 25 texts; max_tokens, counted by ids, is the length of the longest."""
    special = len(ids(""))
    exact = [words(length, start=7 * length) for length in _LENGTHS if length + special <= max_tokens]
    return [*_AWKWARD, *exact, words(max_tokens - special, start=5)]


def words(count: int, start: int = 0) -> str:
    """So many words of one token each; another start gives other words."""
    return " ".join(WORDS[(start + 11 * index) % len(WORDS)] for index in range(count))
