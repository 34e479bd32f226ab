"""Tokenizers built piece by piece: the trainers of WordPiece and Unigram vary from run to run, these never do.

Every word of WORDS is one token in all of them, first in a text or later, so
that a test can ask for an exact number of tokens.
"""

from collections.abc import Sequence
from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
# 9 shares no factor with 70, so both syllables vary along the list.
WORDS = [first + second for first, second in product(_SYLLABLES, repeat=2)][::9]
_CHARACTERS = [chr(code) for code in range(33, 127)] + list("äöüßéèçñøåжшяαβγ中文字日本語한국어€…–“”")
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def wordpiece(specials: Sequence[str], cls: str, sep: str, unk: str) -> Tokenizer:
    """As BERT's: lower case, accents dropped, `##` before the rest of a word."""
    pieces = [*specials, *_CHARACTERS, *("##" + c for c in _CHARACTERS), *_SYLLABLES, *("##" + s for s in _SYLLABLES)]
    tokenizer = Tokenizer(models.WordPiece(_numbered([*pieces, *WORDS]), unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_template(tokenizer, specials, f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1")


def unigram(specials: Sequence[str], single: str = "<s> $A </s>", pair: str = "<s> $A </s> </s> $B </s>") -> Tokenizer:
    """As XLM-R's: NFKC, `▁` before a word, the likeliest split; the longer a piece the likelier."""
    pieces = ["▁", *_CHARACTERS, *_SYLLABLES, *("▁" + s for s in _SYLLABLES), *WORDS, *("▁" + w for w in WORDS)]
    scored = [*((special, 0.0) for special in specials), *((piece, 3.0 * len(piece) - 30.0) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_template(tokenizer, specials, single, pair)


def byte_bpe(specials: Sequence[str], single: str, pair: str) -> Tokenizer:
    """As Qwen's and ModernBERT's: bytes merged into words, nothing unknown."""
    merges = _merges("Ġ")
    vocabulary = _numbered([*_BYTES, *("".join(merge) for merge in merges), *specials])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_template(tokenizer, specials, single, pair)


def byte_fallback_bpe(specials: Sequence[str]) -> Tokenizer:
    """As Mistral's: characters merged into words, bytes for those it does not have."""
    merges = _merges("▁")
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    pieces = [*specials, *fallback, "▁", *_CHARACTERS, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(_numbered(pieces), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_template(tokenizer, specials, "<s> $A </s>", "<s> $A </s> <s> $B </s>")


def bert_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """[CLS] text [SEP], as BERT, DistilBERT, Electra, NomicBERT and DeBERTa write it."""
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    pieces = wordpiece(list(names.values()), "[CLS]", "[SEP]", "[UNK]")
    return as_transformers(pieces, limit, **{f"{name}_token": token for name, token in names.items()})


def fairseq_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """<s> text </s> with the padding at 1, as XLM-R, RoBERTa and CamemBERT write it."""
    names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    pieces = unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return as_transformers(pieces, limit, **{f"{name}_token": token for name, token in names.items()})


def t5_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """text </s>"""
    pieces = unigram(["<pad>", "</s>", "<unk>"], "$A </s>", "$A </s> $B </s>")
    return as_transformers(pieces, limit, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def bytes_tokenizer(limit: int, ends: bool = False) -> PreTrainedTokenizerFast:
    """The text alone, as GPT-2 and Llama 3 spell it; followed by the end token if it `ends`. It has no padding."""
    end = "<|endoftext|>"
    single = f"$A {end}" if ends else "$A"
    return as_transformers(byte_bpe([end], single, f"{single} $B"), limit, eos_token=end)


def llama_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    """<s> text </s>, as Mistral's embedders and Gemma spell it."""
    pieces = byte_fallback_bpe(["<unk>", "<s>", "</s>"])
    return as_transformers(pieces, limit, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def as_transformers(tokenizer: Tokenizer, model_max_length: int, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model_max_length, padding_side="right", **special_tokens
    )


def _merges(space: str) -> list[tuple[str, str]]:
    """In the order that always ends in whole words: syllables, then the space, then two syllables."""
    letters = [(syllable[0], syllable[1]) for syllable in _SYLLABLES]
    spaces = [(space, syllable) for syllable in _SYLLABLES]
    words = [(prefix + word[:2], word[2:]) for word in WORDS for prefix in ("", space)]
    return [*letters, *spaces, *words]


def _numbered(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def _with_template(tokenizer: Tokenizer, specials: Sequence[str], single: str, pair: str) -> Tokenizer:
    tokenizer.add_special_tokens(list(specials))
    known = [(special, tokenizer.token_to_id(special)) for special in specials]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)
    return tokenizer
