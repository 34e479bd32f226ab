"""Checkpoints that sentence-transformers saved itself, small and sharp, for comparing our answers with its own.

Their layers are those of tests/checkpoints.py; what stands behind them is drawn
here, large enough that leaving it out moves the answer far above rounding.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch import nn
from transformers import (
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertForMaskedLM,
    XLMRobertaModel,
)

from tests.checkpoints import FAMILIES, HIDDEN, write_sentence_transformers
from tests.checkpoints.writing import sharpen
from tests.reference import Rows

# Rounding alone, in units of the largest component.
ROUNDING = 2e-5


def backbone(directory: Path, family: str = "bert", **settings: Any) -> Transformer:
    """The layers of a family as sentence-transformers reads them, with eager attention in float32."""
    model, tokenizer = FAMILIES[family].build()
    sharpen(model, seed=len(family))
    return saved(model, tokenizer, directory, **settings)


def saved(model: Any, tokenizer: Any, directory: Path, **settings: Any) -> Transformer:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Transformer(str(directory), model_kwargs={"attn_implementation": "eager"}, **settings)


def drawn(module: Any, seed: int) -> Any:
    """The module with weights that are no identity and no zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            scale = 1.4 / math.sqrt(weight.shape[1]) if weight.ndim == 2 else 0.4
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return module


def sentence_transformer(directory: Path, *behind: Any, pooling: str = "mean", **settings: Any) -> SentenceTransformer:
    """Saved under `directory`: the layers of a BERT, a pooling and what stands behind it."""
    first = backbone(directory / "layers")
    model = SentenceTransformer(modules=[first, Pooling(HIDDEN, pooling), *behind], **settings).eval()
    model.save(str(directory / "model"))
    return model


def splade(
    directory: Path, architecture: str = "bert", strategy: str = "max", activation: str = "relu"
) -> SparseEncoder:
    """Saved under `directory`: layers, their masked-language-model head and SpladePooling."""
    layers, tokenizer = FAMILIES["modernbert" if architecture == "modernbert" else "bert"].build()
    if architecture == "distilbert":
        config = DistilBertConfig(
            dim=HIDDEN, n_heads=4, n_layers=3, hidden_dim=128, vocab_size=len(tokenizer), max_position_embeddings=320
        )
        model: Any = DistilBertForMaskedLM(config)
    else:
        model = {"bert": BertForMaskedLM, "modernbert": ModernBertForMaskedLM}[architecture](layers.config)
    sharpen(model, seed=3)
    with torch.no_grad():  # as many words without a weight as with one, and weights far apart
        model.get_output_embeddings().bias.sub_(2.0)
    first = saved(model, tokenizer, directory / "layers", transformer_task="fill-mask")
    encoder = SparseEncoder(modules=[first, SpladePooling(strategy, activation_function=activation)]).eval()
    encoder.save(str(directory / "model"))
    return encoder


def multi_vector(directory: Path, first: Transformer, **settings: Any) -> MultiVectorEncoder:
    """Saved under `directory`: layers, a projection of every token, a skiplist of two signs, and Normalize."""
    project = Dense(HIDDEN, 24, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings")
    modules = [
        first,
        drawn(project, seed=5),
        MultiVectorMask(skiplist_words=[",", ".", "no such word"]),
        Normalize(module_input_name="token_embeddings"),
    ]
    encoder = MultiVectorEncoder(modules=modules, **settings).eval()
    encoder.save(str(directory / "model"))
    return encoder


def bge_m3(directory: Path) -> None:
    """Written to `directory`: the layers of an XLM-R, and the two linear layers beside them that make it a bge-m3."""
    headed, tokenizer = FAMILIES["xlmr"].build()
    layers = XLMRobertaModel(headed.config, add_pooling_layer=False)
    sharpen(layers, seed=8)
    layers.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_sentence_transformers(directory, "cls", normalize=True, max_seq_length=320)
    for name, width in (("sparse", 1), ("colbert", HIDDEN)):
        layer = drawn(torch.nn.Linear(HIDDEN, width), seed=width)
        if name == "sparse":
            with torch.no_grad():
                layer.bias.sub_(2.0)  # so that about as many words have no weight as have one
        torch.save(layer.state_dict(), directory / f"{name}_linear.pt")


def alone(encode: Any, texts: Sequence[str], **settings: Any) -> list[Rows]:
    """What sentence-transformers answers for each text in a batch of its own: [width], or [tokens, width]."""
    with torch.inference_mode():
        answers = [encode([text], show_progress_bar=False, **settings)[0] for text in texts]
    return [np.asarray(answer.cpu() if isinstance(answer, torch.Tensor) else answer, np.float32) for answer in answers]
