"""TextTokenizer: the model's own tokenizer, in batches, without its stored padding and truncation."""

from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from pooling.errors import CheckpointError
from pooling.request import Ids

Side = Literal["left", "right"]
# Words left to the tokenizer's cut: characters of a word that the cut text may have split.
_SPARE_TOKENS = 8


class TextTokenizer:
    """Text -> ids. Rust does the work, on all cores for a batch, without Python's lock.

    What tokenizer.json stores of truncation and padding is dropped: the file of
    all-MiniLM-L6-v2 says 128 tokens where the model takes 256.
    """

    def __init__(self, backend: Tokenizer, truncation_side: Side) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.truncation_side: Side = truncation_side
        self.special_tokens = int(backend.num_special_tokens_to_add(False))
        self.max_chars_per_token = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises CheckpointError if the directory has no tokenizer that transformers can make fast."""
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except Exception as error:  # any failure of transformers to read the files has one meaning for the user
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"the model's tokenizer cannot be read: {reason}") from None
        # Without files transformers makes a tokenizer that knows no word, and says nothing.
        files = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
        if not any((directory / file).exists() for file in files):
            raise CheckpointError(f"the model has no tokenizer; expected one of {', '.join(files)}")
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError("the model has no fast tokenizer; add a tokenizer.json")
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        return cls(backend, tokenizer.truncation_side)

    def encode(self, texts: list[str], special: bool) -> list[Ids]:
        """Whole texts, with the model's special tokens if `special`."""
        return [_ids(encoding) for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=special)]

    def encode_cut(self, texts: list[str], special: bool, limit: int, side: Side | None) -> list[Ids]:
        """Texts cut to `limit` tokens. Without a side the tokenizer's own, special tokens kept;
        with one, the end of the whole list of tokens is cut off, special tokens included."""
        cut_side = side or self.truncation_side
        shortened = [self._shorten(text, limit, cut_side) for text in texts]
        encoded = self.encode(shortened, special)
        return [
            ids if len(ids) <= limit else self._cut(text, ids, special, limit, side)
            for text, ids in zip(shortened, encoded, strict=True)
        ]

    def _cut(self, text: str, ids: Ids, special: bool, limit: int, side: Side | None) -> Ids:
        if side is not None or not special:
            return ids[-limit:] if (side or self.truncation_side) == "left" else ids[:limit]
        encoding = self._backend.encode(text, add_special_tokens=False)
        encoding.truncate(max(limit - self.special_tokens, 0), direction=self.truncation_side)
        return _ids(self._backend.post_process(encoding))[:limit]

    def _shorten(self, text: str, limit: int, side: Side) -> str:
        """The part of a long text that the cut can leave anything of: a book need not be read for its first page.

        The part must give more tokens than are kept, so that what its own cut
        did to the last word is cut off again; otherwise it is doubled.
        """
        size = 4 * limit * self.max_chars_per_token
        while size < len(text):
            part = text[-size:] if side == "left" else text[:size]
            if len(self._backend.encode(part, add_special_tokens=False).ids) > limit + _SPARE_TOKENS:
                return part
            size *= 2
        return text


def _ids(encoding: Encoding) -> Ids:
    return np.array(encoding.ids, dtype=np.int32)
