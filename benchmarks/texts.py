"""The texts every benchmark uses: the same on each machine, log-normal in length, as real queries and passages are."""

from collections.abc import Sequence

import numpy as np

# Frequent English words, each one token for BERT's vocabulary: tokens are then counted without a tokenizer.
_FREQUENT = (
    "the of and to in is that for it was on are as with they be at one have this from or had by word but what some we "
    "can out other were all there when up use your how said an each she which do their time if will way about many "
    "then them write would like so these her long make thing see him two has look more day could go come did number "
    "sound no most people my over know water than call first who may down side been now find any new work part take "
    "get place made live where after back little only round man year came show every good me give our under name very "
    "through just form sentence great think say help low line differ turn cause much mean before move right boy old "
    "too same tell does set three want air well also play small end put home read hand port large spell add even land "
    "here must big high such follow act why ask men change went light kind off need house picture try us again animal "
    "point mother world near build self earth father head stand own page should country found answer school grow study "
    "still learn plant cover food sun four between state keep eye never last let thought city tree cross farm hard "
    "start might story saw far sea draw left late run while press close night real life few north open seem together "
    "next white children begin got walk example ease paper group always music those both mark often letter until mile "
    "river car feet care second book carry took science eat room friend began idea fish mountain stop once base hear "
    "horse cut sure watch color face wood main enough plain girl usual young ready above ever red list though feel "
    "talk bird soon body dog family direct leave song measure door product black short class wind question happen "
    "complete ship area half rock order fire south problem piece told knew pass since top whole king space heard best"
)
_WORDS = _FREQUENT.split()
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]
_QUERY_WORDS, _DOCUMENTS = 8, 16
_AROUND_PAIR = _QUERY_WORDS + 2  # of a pair, what a text alone does not have: <s> query </s> </s> document </s>

# A query and the documents that are scored with it.
Group = tuple[str, list[str]]


def short_texts(count: int = 1_024) -> list[str]:
    """Queries and sentences: mean 54 tokens, at most 256."""
    return _texts(count, mean=54, sigma=0.7, cap=256, seed=1)


def long_texts(count: int = 192) -> list[str]:
    """Passages: mean 335 tokens, at most 512."""
    return _texts(count, mean=335, sigma=0.4, cap=512, seed=2)


def short_lengths(tokens: int, seed: int = 0) -> np.ndarray:
    """Lengths as those of short_texts, of inputs that have so many tokens together."""
    draw = np.random.Generator(np.random.PCG64(seed))
    lengths = _lengths(draw.standard_normal(max(1, round(tokens / 54))) * 0.7, 54, 256).astype(np.int32)
    kept = lengths[: np.searchsorted(np.cumsum(lengths), tokens, side="right")]
    rest = tokens - int(kept.sum())
    return np.append(kept, np.int32(rest)) if rest else kept


def mixed_texts(count: int = 384) -> list[str]:
    """Half queries and sentences, half passages, in turn."""
    half = max(1, count // 2)
    return [text for pair in zip(short_texts(half), long_texts(half), strict=True) for text in pair]


def instructed_texts(count: int = 384) -> list[str]:
    """Sentences of 54 tokens on average, each behind the same instruction of 80."""
    instruction = texts_of(80, 1)[0]
    return [f"{instruction} {text}" for text in short_texts(count)]


def short_groups(pairs: int = 512) -> list[Group]:
    """Queries of 8 words, each with 16 documents: a pair has 54 tokens in XLM-R's form on average, at most 256."""
    return _groups(_texts(pairs, mean=54 - _AROUND_PAIR, sigma=0.7, cap=256 - _AROUND_PAIR, seed=3))


def long_groups(pairs: int = 96) -> list[Group]:
    """The same with passages: a pair has 335 tokens on average, at most 512."""
    return _groups(_texts(pairs, mean=335 - _AROUND_PAIR, sigma=0.4, cap=512 - _AROUND_PAIR, seed=4))


def mixed_groups(pairs: int = 192) -> list[Group]:
    """Half of the queries with sentences, half with passages, in turn."""
    half = max(1, pairs // 2)
    return [group for both in zip(short_groups(half), long_groups(half), strict=True) for group in both]


def texts_of(words: int, count: int) -> list[str]:
    """Texts of so many words each, all different."""
    draw = np.random.Generator(np.random.PCG64(words))
    return [_text(draw.integers(0, len(_WORDS), words)) for _ in range(count)]


def _groups(documents: list[str]) -> list[Group]:
    starts = range(0, len(documents), _DOCUMENTS)
    queries = texts_of(_QUERY_WORDS, len(starts))
    return [(query, documents[start : start + _DOCUMENTS]) for query, start in zip(queries, starts, strict=True)]


def _texts(count: int, mean: int, sigma: float, cap: int, seed: int) -> list[str]:
    draw = np.random.Generator(np.random.PCG64(seed))
    lengths = _lengths(draw.standard_normal(count) * sigma, mean, cap)
    return [_text(draw.integers(0, len(_WORDS), int(length) - _SPECIAL_TOKENS)) for length in lengths]


def _lengths(logarithms: np.ndarray, mean: int, cap: int) -> np.ndarray:
    """Log-normal lengths in tokens, scaled until their mean after the cap is the one asked for."""
    low, high = 0.0, float(cap)
    while high - low > 1e-6:
        middle = (low + high) / 2
        lengths: np.ndarray = np.clip(np.rint(middle * np.exp(logarithms)), _SPECIAL_TOKENS + 1, cap)
        low, high = (middle, high) if lengths.mean() < mean else (low, middle)
    return lengths


def _text(places: Sequence[int] | np.ndarray) -> str:
    return " ".join(_WORDS[place] for place in places)
