"""write_tokenizer(): the vocabulary of one WordPiece tokenizer between other special tokens."""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors


def write_tokenizer(
    original: Path, directory: Path, special: Mapping[str, str], template: tuple[str, str], types: bool, longest: int
) -> None:
    """special: tokens by their role, in the order of their ids from 0; template: how a text and two of them read;
    types: whether the model is told which text of a pair a token is of.

    As many pieces as the original has, of which the last ones give way. Written as
    a plain fast tokenizer, whatever the family: every library reads that alike.
    """
    names = list(dict.fromkeys(special.values()))
    pieces = Tokenizer.from_file(str(original / "tokenizer.json")).get_vocab()
    ordered = [piece for piece in sorted(pieces, key=pieces.__getitem__) if piece not in names]
    vocabulary = {piece: number for number, piece in enumerate([*names, *ordered][: len(pieces)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(names)
    known = [(name, vocabulary[name]) for name in names]
    single, pair = template
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {f"{role}_token": token for role, token in special.items()}
    names_of_inputs = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "model_input_names": names_of_inputs,
        **tokens,
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", tokens)):
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
