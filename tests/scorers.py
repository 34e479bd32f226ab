"""Small random checkpoints of models that judge: cross-encoders, causal language models, reward models.

Their heads are scaled until logits have a standard deviation of 1.5 about zero:
as drawn, every score would be 0.50, and a wrong one would pass.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaForSequenceClassification,
)

from tests import vocabularies
from tests.checkpoints import FAMILIES
from tests.checkpoints.writing import sharpen, write_json
from tests.texts import words
from tests.vocabularies import as_transformers

_DECODER = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "max_position_embeddings": 1024,
}
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
# Standard deviation of the logits, and texts enough to see it.
_SPREAD, _SAMPLES = 1.5, 24
STEP_TAG = "<extra_0>"

Built = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def pairs() -> list[tuple[str, str]]:
    """Of all lengths, in many scripts, one text empty, both nearly so."""
    lengths = [(3, 20), (1, 1), (12, 90), (40, 9), (7, 150), (60, 60), (2, 33), (25, 26)]
    drawn = [(words(a, start=3 * a), words(b, start=7 * b + 1)) for a, b in lengths]
    return [
        *drawn,
        ("What is the capital of Brazil?", "The capital of Brazil is Brasilia."),
        ("中文没有空格", "日本語も한국어도 있다"),
        (words(5), ""),
        ("", words(5)),
        (".", "a"),
    ]


# Cross-encoders


def _bert(labels: int = 1) -> Built:
    """Its tokenizer tells the model which text of a pair is which, as BertTokenizer does."""
    model, tokenizer = _bert_without_types(labels)
    marking = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    )
    return model, marking


def _bert_3() -> Built:
    return _bert(3)


def _bert_without_types(labels: int = 1) -> Built:
    model, tokenizer = FAMILIES["bert"].build()
    model.config.num_labels = labels
    return BertForSequenceClassification(model.config), tokenizer


def _xlmr() -> Built:
    model, tokenizer = FAMILIES["xlmr"].build()
    model.config.num_labels = 1
    return XLMRobertaForSequenceClassification(model.config), tokenizer


def _modernbert() -> Built:
    model, tokenizer = FAMILIES["modernbert"].build()
    model.config.num_labels = 1
    model.config.classifier_pooling = "mean"
    return ModernBertForSequenceClassification(model.config), tokenizer


def _qwen2_classifier() -> Built:
    tokenizer = _chat_tokenizer([])
    config = Qwen2Config(
        **_DECODER, vocab_size=len(tokenizer), rope_parameters=_ROPE, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    return Qwen2ForSequenceClassification(config), tokenizer


# Causal language models


def _chat_tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """As Qwen's: adds nothing, and knows the words of a chat."""
    return as_transformers(
        vocabularies.byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *specials], "$A", "$A $B"),
        model_max_length=1024,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def _gemma_tokenizer() -> PreTrainedTokenizerFast:
    return as_transformers(
        vocabularies.byte_bpe(["<pad>", "<eos>", "<bos>", "<unk>", "Yes"], "<bos> $A", "<bos> $A $B"),
        model_max_length=1024,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _qwen3_reranker() -> Built:
    """Its output layer is its embedding. `no` is a syllable of the vocabulary, `yes` is added."""
    tokenizer = _chat_tokenizer(["yes"])
    config = Qwen3Config(
        **_DECODER, head_dim=32, vocab_size=len(tokenizer), rope_parameters=_ROPE, tie_word_embeddings=True
    )
    return Qwen3ForCausalLM(config), tokenizer


def _mxbai() -> Built:
    """Its output layer is its own."""
    tokenizer = _chat_tokenizer([])
    config = Qwen2Config(**_DECODER, vocab_size=len(tokenizer), rope_parameters=_ROPE, tie_word_embeddings=False)
    return Qwen2ForCausalLM(config), tokenizer


def _gemma() -> Built:
    tokenizer = _gemma_tokenizer()
    config = GemmaConfig(
        **_DECODER, head_dim=16, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=2
    )
    return GemmaForCausalLM(config), tokenizer


def _gemma2() -> Built:
    """Caps its logits, as tightly as shows."""
    tokenizer = _gemma_tokenizer()
    config = Gemma2Config(
        **_DECODER,
        head_dim=16,
        vocab_size=len(tokenizer),
        final_logit_softcapping=2.0,
        sliding_window=48,
        query_pre_attn_scalar=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2ForCausalLM(config), tokenizer


# Reward models


def _math_shepherd() -> Built:
    """Judges each step with the logits of two tokens of its vocabulary."""
    tokenizer = _chat_tokenizer(["+", "-", STEP_TAG])
    config = LlamaConfig(**_DECODER, vocab_size=len(tokenizer), rope_parameters=_ROPE)
    return LlamaForCausalLM(config), tokenizer


def _llama_reward() -> Built:
    tokenizer = _chat_tokenizer([])
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(**_DECODER, vocab_size=len(tokenizer), rope_parameters=scaling, num_labels=1)
    config.pad_token_id = tokenizer.pad_token_id
    return LlamaForSequenceClassification(config), tokenizer


def reward_model(directory: Path) -> tuple[Qwen2Model, nn.Sequential]:
    """What Qwen2ForRewardModel and Qwen2ForProcessRewardModel are made of, filled from a checkpoint."""
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    backbone = Qwen2Model.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    labels = tensors["score.2.weight"].shape[0]
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, labels))
    head.load_state_dict({name.removeprefix("score."): t for name, t in tensors.items() if name.startswith("score.")})
    return backbone, head


def _write_reward(directory: Path, architecture: str, labels: int) -> None:
    tokenizer = _chat_tokenizer([STEP_TAG])
    config = Qwen2Config(**_DECODER, vocab_size=len(tokenizer), rope_parameters=_ROPE, num_labels=labels)
    config.architectures = [architecture]
    model = Qwen2Model(config)
    sharpen(model, seed=labels)
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, labels))
    generator = torch.Generator().manual_seed(labels)
    for weight in head.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1])
    rows = torch.cat([_last_rows(model, tokenizer, text)[-1:] for text in _samples()])
    _rescale(head[2], head[:2](rows))
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {f"score.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", config.to_dict())
    tokenizer.save_pretrained(directory)


# Writing


def write(name: str, directory: Path) -> Path:
    """The checkpoint of that name; reward models have no class in transformers."""
    if name in _REWARDS:
        _write_reward(directory, *_REWARDS[name])
        return directory
    model, tokenizer = _BUILDERS[name]()
    sharpen(model, seed=len(name))
    _spread(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


_REWARDS = {"qwen2-reward": ("Qwen2ForRewardModel", 1), "qwen2-process-reward": ("Qwen2ForProcessRewardModel", 2)}
_BUILDERS: dict[str, Callable[[], Built]] = {
    "bert": _bert,
    "bert-3-labels": _bert_3,
    "bert-without-types": _bert_without_types,
    "xlmr": _xlmr,
    "modernbert": _modernbert,
    "qwen2-classifier": _qwen2_classifier,
    "qwen3-reranker": _qwen3_reranker,
    "mxbai": _mxbai,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "math-shepherd": _math_shepherd,
    "llama-reward": _llama_reward,
}


def _samples() -> list[str]:
    return [words(3 + 4 * index, start=5 * index) for index in range(_SAMPLES)]


def _last_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))[0][0].clone()


def _spread(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Scales the last layer by what it reads of the samples."""
    layer = model.get_output_embeddings() or getattr(model, "score", None) or getattr(model, "classifier", None)
    layer = getattr(layer, "out_proj", layer)
    read: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, __: read.append(given[0].detach().reshape(-1, 64)[-1:]))
    for text in _samples():
        _last_rows(model, tokenizer, text)
    hook.remove()
    rows = torch.cat(read)
    if layer.weight is model.get_input_embeddings().weight:
        _rescale_norm(model.base_model.norm, float(_SPREAD / (rows @ layer.weight.detach().T).std()))
    else:
        _rescale(layer, rows)


def _rescale(layer: nn.Linear, rows: torch.Tensor) -> None:
    with torch.no_grad():
        mean = rows.mean(0)
        layer.weight.sub_(torch.outer(layer.weight @ mean, mean) / mean.square().sum())
        layer.weight.mul_(_SPREAD / (rows @ layer.weight.T).std())
        if layer.bias is not None:
            layer.bias.zero_()


def _rescale_norm(norm: nn.Module, factor: float) -> None:
    """The last norm instead of an output layer that is the embedding too; Gemma's counts from one."""
    start = 1.0 if "Gemma" in type(norm).__name__ else 0.0
    weight = cast(torch.Tensor, norm.weight)
    with torch.no_grad():
        weight.copy_((weight + start) * factor - start)
