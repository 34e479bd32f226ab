"""TextTokenizer: the model's own tokenizer, in batches, without its stored padding and truncation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pooling.errors import CheckpointError
from pooling.loading.chat_template import ChatTemplate
from pooling.loading.files import read_json
from pooling.request import Ids, Pair

Side = Literal["left", "right"]
# What the cut text may have done to its last word: WordPiece makes one [UNK] of a word of more than 100 characters,
# and up to 100 pieces of its beginning.
_SPARE_TOKENS = 128
_NAMED = ("cls", "sep", "eos", "pad", "unk", "mask")


class TextTokenizer:
    """Text -> ids. Rust does the work, on all cores for a batch, without Python's lock.

    What tokenizer.json stores of truncation and padding is dropped: the file of
    all-MiniLM-L6-v2 says 128 tokens where the model takes 256.
    named_ids: the special tokens by their names: cls, sep, eos, pad, unk, mask.
    padding_side: on which side the model was trained to have short texts filled up.
    chat_template is the tokenizer's own, named_tokens what a template may call by
    name, and marks_second whether transformers tells the model which text of a
    pair is which.
    """

    def __init__(
        self,
        backend: Tokenizer,
        truncation_side: Side,
        named_ids: dict[str, int] | None = None,
        padding_side: Side = "right",
        special_ids: frozenset[int] = frozenset(),
        chat_template: str | None = None,
        named_tokens: dict[str, str] | None = None,
        marks_second: bool = False,
        chat: ChatTemplate | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_ids = special_ids
        self.truncation_side: Side = truncation_side
        self.padding_side: Side = padding_side
        self.named_ids = named_ids or {}
        self.chat_template = chat_template
        self.named_tokens = named_tokens or {}
        self.marks_second = marks_second
        self.chat = chat
        self.special_tokens = int(backend.num_special_tokens_to_add(False))
        self.max_chars_per_token = max(map(len, backend.get_vocab(with_added_tokens=True)), default=1)

    @classmethod
    def load(cls, directory: Path, markers: tuple[str, ...] = ()) -> Self:
        """markers: prompts whose first word is to be one token, where the vocabulary has it.

        Raises CheckpointError if the directory has no tokenizer that transformers can make fast.
        """
        try:
            tokenizer: Any = _read(directory)
        except Exception as error:  # any failure of transformers to read the files has one meaning for the user
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"the model's tokenizer cannot be read: {reason}") from None
        # Without files transformers makes a tokenizer that knows no word, and says nothing.
        files = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
        if not any((directory / file).exists() for file in files):
            raise CheckpointError(f"the model has no tokenizer; expected one of {', '.join(files)}")
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError("the model has no fast tokenizer; add a tokenizer.json")
        _register(tokenizer, markers)
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED}
        templates = tokenizer.chat_template
        return cls(
            backend,
            tokenizer.truncation_side,
            {name: id for name, id in ids.items() if id is not None},
            tokenizer.padding_side,
            frozenset(tokenizer.all_special_ids),
            templates.get("default") if isinstance(templates, dict) else templates,
            tokenizer.special_tokens_map,
            "token_type_ids" in tokenizer.model_input_names,
            ChatTemplate.of(tokenizer),
        )

    @classmethod
    def none(cls) -> Self:
        """That of a model without texts: it has no tokens."""
        return cls(Tokenizer(WordLevel({"": 0}, unk_token="")), "right")

    def id_of(self, token: str) -> int | None:
        """None if it is not one token; that of the unknown token only by its own name."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_of(self, id: int) -> str:
        """As it is written in the vocabulary."""
        return str(self._backend.id_to_token(id))

    def encode(self, texts: list[str], special: bool) -> list[Ids]:
        """Whole texts, with the model's special tokens if `special`."""
        return [_ids(encoding) for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=special)]

    def prompt_ids(self, prompt: str, special: bool) -> Ids:
        """The tokens of a prompt with the special ones before it, as Sentence Transformers counts them: one at its end
        is the text's, not the prompt's."""
        (ids,) = self.encode([prompt], special)
        return ids[:-1] if len(ids) and int(ids[-1]) in self._special_ids else ids

    def special_ends(self) -> tuple[Ids, Ids]:
        """The special tokens before and after a text."""
        encoding = self._backend.encode("a")
        own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        ids = _ids(encoding)
        return (ids[: own[0]], ids[own[-1] + 1 :]) if len(own) else (ids, ids[:0])

    def encode_places(self, texts: list[str], special: bool) -> list[tuple[Ids, NDArray[np.int64]]]:
        """Whole texts, and of each token the place of its last character; -1 for a token of no character."""
        encoded = self._backend.encode_batch(texts, add_special_tokens=special)
        return [
            (_ids(one), np.array([stop - 1 if stop > start else -1 for start, stop in one.offsets], np.int64))
            for one in encoded
        ]

    def detail(self, texts: list[str], special: bool) -> list[Encoding]:
        """Whole texts with everything the tokenizer knows of each token: its string, place and kind."""
        return list(self._backend.encode_batch(texts, add_special_tokens=special))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; those that the vocabulary lacks have none."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def strings(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary writes each token; empty for ids that it lacks."""
        return [self._backend.id_to_token(int(token)) or "" for token in ids]

    def encode_cut(self, texts: list[str], special: bool, limit: int, side: Side | None) -> list[Ids]:
        """Texts cut to `limit` tokens. Without a side the tokenizer's own, special tokens kept;
        with one, the end of the whole list of tokens is cut off, special tokens included."""
        cut_side = side or self.truncation_side
        shortened = [self.shorten(text, limit, cut_side) for text in texts]
        encoded = self.encode(shortened, special)
        return [
            ids if len(ids) <= limit else self._cut(text, ids, special, limit, side)
            for text, ids in zip(shortened, encoded, strict=True)
        ]

    def encode_pairs(
        self, pairs: list[Pair], special: bool, limit: int | None, most: tuple[int | None, int | None]
    ) -> list[tuple[Ids, int]]:
        """Each pair as one input, and the token at which the model is told that the second text begins.

        limit: tokens of the whole, of which the longer text loses first; None:
        all are kept. most: tokens of the first and of the second text.
        """
        if most == (None, None):
            answers = self._joined(self._short_pairs(pairs, limit), special)
        else:
            answers = [self._cut_pair(pair, special, limit, most) for pair in pairs]
        return [
            answer if limit is None or len(answer[0]) <= limit else self._cut_pair(pair, special, limit, most)
            for pair, answer in zip(pairs, answers, strict=True)
        ]

    def _joined(self, pairs: list[Pair], special: bool) -> list[tuple[Ids, int]]:
        """Each text is tokenised once, however many pairs it is in: one query has many documents."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        of = dict(zip(texts, encoded, strict=True))
        return [_pair(self._backend.post_process(of[first], of[second], special)) for first, second in pairs]

    def leading(self, text: str, tokens: int) -> str:
        """The text as far as its first `tokens` tokens go."""
        part = self.shorten(text, tokens, "right")
        encoding = self._backend.encode(part, add_special_tokens=False)
        return text if len(encoding) <= tokens else text[: encoding.offsets[tokens - 1][1]]

    def _short_pairs(self, pairs: list[Pair], limit: int | None) -> list[Pair]:
        if limit is None:
            return pairs
        return [(self.shorten(a, limit, "right"), self.shorten(b, limit, "right")) for a, b in pairs]

    def _cut_pair(
        self, pair: Pair, special: bool, limit: int | None, most: tuple[int | None, int | None]
    ) -> tuple[Ids, int]:
        (short,) = self._short_pairs([pair], limit)
        first, second = (self._backend.encode(text, add_special_tokens=False) for text in short)
        counts = len(first), len(second)
        if limit is not None and short != pair and 2 * min(counts) >= limit:
            # Which one is longer matters: it keeps the odd token.
            counts = self._count(pair[0]), self._count(pair[1])
        for encoding, tokens in zip((first, second), most, strict=True):
            if tokens is not None:
                encoding.truncate(tokens)
        if limit is not None:
            room = limit - (self._backend.num_special_tokens_to_add(True) if special else 0)
            a, b = (n if bound is None else min(n, bound) for n, bound in zip(counts, most, strict=True))
            for encoding, tokens in zip((first, second), longest_first(a, b, room), strict=True):
                encoding.truncate(tokens)
        return _pair(self._backend.post_process(first, second, special))

    def _count(self, text: str) -> int:
        return len(self._backend.encode(text, add_special_tokens=False))

    def _cut(self, text: str, ids: Ids, special: bool, limit: int, side: Side | None) -> Ids:
        if side is not None or not special:
            return ids[-limit:] if (side or self.truncation_side) == "left" else ids[:limit]
        encoding = self._backend.encode(text, add_special_tokens=False)
        encoding.truncate(max(limit - self.special_tokens, 0), direction=self.truncation_side)
        return _ids(self._backend.post_process(encoding))[:limit]

    def shorten(self, text: str, limit: int, side: Side) -> str:
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


def _read(directory: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    template = _processor_template(directory)
    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.is_fast and (directory / "tokenizer.json").exists():
        # SigLIP's class reads a SentencePiece file only; the same vocabulary and rules are in tokenizer.json.
        return PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


def _processor_template(directory: Path) -> str | None:
    """Of a model that reads images, which may have another than its tokenizer."""
    for name in ("chat_template.json", "processor_config.json"):
        if (directory / name).exists():
            template = read_json(directory / name).get("chat_template")
            if template is not None:
                return str(template)
    return None


def _register(tokenizer: Any, markers: tuple[str, ...]) -> None:
    """Makes special tokens of markers such as `[unused0]`, which a tokenizer would take apart or lower-case.

    Source: MultiVectorEncoder._register_prefix_tokens of Sentence Transformers 6.2.
    """
    vocabulary = tokenizer.get_vocab()
    for marker in markers:
        prefix = next((prefix for prefix in (marker, *marker.split()[:1]) if prefix in vocabulary), None)
        if prefix is not None and tokenizer.tokenize(prefix) != [prefix]:
            tokenizer.add_tokens([AddedToken(prefix, normalized=False, special=True)], special_tokens=True)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each of two texts keeps where the longer one loses first; the second loses the odd one.

    Source: the tokenizers library, TruncationStrategy::LongestFirst.
    """
    room = max(room, 0)
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    if 2 * shorter <= room:  # the shorter one is kept whole
        return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    half, rest = divmod(room, 2)
    return (half, half + rest) if first <= second else (half + rest, half)


def _pair(encoding: Encoding) -> tuple[Ids, int]:
    types = np.array(encoding.type_ids, dtype=np.int32)
    return _ids(encoding), int(types.argmax()) if types.any() else len(types)


def _ids(encoding: Encoding) -> Ids:
    return np.array(encoding.ids, dtype=np.int32)
