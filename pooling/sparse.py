"""SparseView: an answer as the weights of a few words, for models that weigh the words of their vocabulary."""

import numpy as np

from pooling.errors import UnsupportedTask
from pooling.kept import kept, side_of
from pooling.loading.card import ModelCard
from pooling.loading.tokenizer import TextTokenizer
from pooling.request import Ids, PoolingParams, Rows

# Tokens that stand for no word. Source: FlagEmbedding's BGEM3FlagModel, _process_token_weights.
_NO_WORDS = ("cls", "eos", "pad", "unk")


class SparseView:
    """`task` is what to ask the engine for; `weights()` reads one input's answer to it.

    Of SPLADE a weight for each word of the vocabulary; of bge-m3 one for each
    word of the input, its greatest where it occurs twice.
    Raises UnsupportedTask for a model that weighs no words.
    """

    def __init__(self, card: ModelCard, tokenizer: TextTokenizer) -> None:
        if card.sparse_task is None:
            raise UnsupportedTask(
                f"Model {card.name!r} has no sparse embeddings; SPLADE models and bge-m3 do, this one does "
                f"{', '.join(card.tasks)}",
                "task",
            )
        self.task = card.sparse_task
        self._card, self._tokenizer = card, tokenizer
        self._no_words = [id for name, id in tokenizer.named_ids.items() if name in _NO_WORDS]

    def weights(self, rows: Rows, ids: Ids, params: PoolingParams) -> dict[int, float]:
        """By token id, the ids ascending. rows: [words] of SPLADE, or [rows, 1] for the tokens `ids` of the input."""
        if self.task == "embed":
            words = np.flatnonzero(rows)
            return dict(zip(words.tolist(), rows[words].tolist(), strict=True))
        pooler = self._card.poolers[self.task]
        mask = kept(ids, np.array([len(ids)], np.int32), pooler, params, side_of(self._card, None))
        tokens, values = ids if mask is None else ids[mask], rows[:, 0]
        counts = (values > 0) & ~np.isin(tokens, self._no_words)
        order = np.lexsort((values[counts], tokens[counts]))  # of equal words the greatest comes last, and stays
        return dict(zip(tokens[counts][order].tolist(), values[counts][order].tolist(), strict=True))

    def tokens(self, weights: dict[int, float]) -> dict[str, float]:
        """The same by the token's text, as the vocabulary writes it."""
        return {self._tokenizer.token_of(id): weight for id, weight in weights.items()}
