"""Encoders: one checkpoint of each family that reads a text both ways."""

import torch
import transformers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForTextEncoding,
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    EsmConfig,
    EsmModel,
    EuroBertConfig,
    EuroBertModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    MT5Config,
    MT5ForConditionalGeneration,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

from tests import vocabularies
from tests.checkpoints.family import Family
from tests.checkpoints.writing import HIDDEN
from tests.vocabularies import as_transformers, bert_tokenizer, bytes_tokenizer, fairseq_tokenizer, t5_tokenizer

Built = tuple[PreTrainedModel, PreTrainedTokenizerFast]
ENCODER = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 128}
_SMALL = ENCODER | {"num_hidden_layers": 2}
_T5 = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


def _bert() -> Built:
    tokenizer = bert_tokenizer(320)
    return BertModel(BertConfig(**ENCODER, vocab_size=len(tokenizer), max_position_embeddings=320)), tokenizer


def _xlmr() -> Built:
    """Saved with its language-model head, as xlm-roberta-base is: names carry a `roberta.` prefix."""
    tokenizer = fairseq_tokenizer(320)
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**ENCODER, **_fairseq(tokenizer, 322))), tokenizer


def _fairseq(tokenizer: PreTrainedTokenizerFast, table: int) -> dict[str, object]:
    """Positions start at pad_token_id + 1 = 2, so that a table has room for two tokens less."""
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": table,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
    }


def _modernbert() -> Built:
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
        **(ENCODER | {"num_hidden_layers": 4}),
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


def _mpnet() -> Built:
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
    config = MPNetConfig(**ENCODER, vocab_size=len(tokenizer), max_position_embeddings=322, pad_token_id=1)
    return MPNetModel(config), tokenizer


def _roberta() -> Built:
    tokenizer = fairseq_tokenizer(200)
    return RobertaModel(RobertaConfig(**_SMALL, **_fairseq(tokenizer, 202))), tokenizer


def _xlmr_xl() -> Built:
    """Norms before the layers and one at the end."""
    tokenizer = fairseq_tokenizer(200)
    return XLMRobertaXLModel(XLMRobertaXLConfig(**_SMALL, **_fairseq(tokenizer, 202))), tokenizer


def _camembert() -> Built:
    tokenizer = fairseq_tokenizer(200)
    return CamembertForMaskedLM(CamembertConfig(**_SMALL, **_fairseq(tokenizer, 202))), tokenizer


def _distilbert() -> Built:
    tokenizer = bert_tokenizer(200)
    config = DistilBertConfig(
        dim=HIDDEN, n_heads=4, n_layers=2, hidden_dim=128, vocab_size=len(tokenizer), max_position_embeddings=200
    )
    return DistilBertForMaskedLM(config), tokenizer


def _albert() -> Built:
    """One set of layers run three times, from embeddings narrower than its vectors."""
    tokenizer = bert_tokenizer(200)
    sizes = {"embedding_size": 32, "max_position_embeddings": 200, "vocab_size": len(tokenizer)}
    return AlbertForMaskedLM(AlbertConfig(**ENCODER, **sizes)), tokenizer


def _electra() -> Built:
    """The discriminator, as electra-small is saved, from embeddings narrower than its vectors."""
    tokenizer = bert_tokenizer(200)
    sizes = {"embedding_size": 32, "max_position_embeddings": 200, "vocab_size": len(tokenizer)}
    return ElectraForPreTraining(ElectraConfig(**_SMALL, **sizes)), tokenizer


def _nomic() -> Built:
    tokenizer = bert_tokenizer(200)
    config = NomicBertConfig(
        **_SMALL,
        vocab_size=len(tokenizer),
        max_position_embeddings=200,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    return NomicBertModel(config, add_pooling_layer=False), tokenizer


def _jina() -> Built:
    tokenizer = fairseq_tokenizer(200)
    config = JinaEmbeddingsV3Config(
        **_SMALL,
        **_fairseq(tokenizer, 200),
        rope_parameters={"rope_type": "default", "rope_theta": 20_000.0},
    )
    return JinaEmbeddingsV3Model(config, add_pooling_layer=False), tokenizer


def _eurobert() -> Built:
    tokenizer = bytes_tokenizer(200, ends=True)
    config = EuroBertConfig(
        **_SMALL,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=200,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 250_000.0},
    )
    return EuroBertModel(config), tokenizer


def _gte() -> Built:
    tokenizer = fairseq_tokenizer(200)
    config = transformers.GteConfig(
        **_SMALL,
        **_fairseq(tokenizer, 200),
        rope_parameters={"rope_type": "default", "rope_theta": 160_000.0},
    )
    return transformers.GteModel(config, add_pooling_layer=False), tokenizer


def _esm() -> Built:
    """Scales its embeddings by the share of mask tokens, of which one of the texts has some."""
    tokenizer = fairseq_tokenizer(200)
    config = EsmConfig(
        **_SMALL,
        **_fairseq(tokenizer, 202) | {"type_vocab_size": None},
        mask_token_id=tokenizer.mask_token_id,
        token_dropout=True,
        position_embedding_type="rotary",
    )
    return EsmModel(config, add_pooling_layer=False), tokenizer


def _deberta() -> Built:
    tokenizer = bert_tokenizer(200)
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 200}
    config = DebertaConfig(
        **_SMALL, **relative, vocab_size=len(tokenizer), max_position_embeddings=200, position_biased_input=False
    )
    return DebertaModel(config), tokenizer


def _deberta_v2(token_types: int, **more: object) -> DebertaV2Config:
    return DebertaV2Config(
        **_SMALL,
        vocab_size=len(bert_tokenizer(200)),
        max_position_embeddings=200,
        type_vocab_size=token_types,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=16,
        **more,
    )


def _deberta_v3() -> Built:
    """No positions in its input, no token types; saved with its language-model head."""
    return DebertaV2ForMaskedLM(_deberta_v2(0, position_biased_input=False)), bert_tokenizer(200)


def _deberta_v2_conv() -> Built:
    """Positions and token types in its input, and a convolution over neighbouring tokens, as the larger ones have."""
    return DebertaV2Model(_deberta_v2(2, conv_kernel_size=3, conv_act="gelu")), bert_tokenizer(200)


def _t5() -> Built:
    """The encoder alone, as Sentence-T5 is saved."""
    return T5EncoderModel(T5Config(**_T5, vocab_size=len(t5_tokenizer(180)))), t5_tokenizer(180)


def _t5_pair() -> Built:
    """Encoder and decoder, gated as version 1.1 is."""
    tokenizer = t5_tokenizer(512)
    config = T5Config(**_T5, vocab_size=len(tokenizer), feed_forward_proj="gated-gelu")
    return T5ForConditionalGeneration(config), tokenizer


def _mt5() -> Built:
    tokenizer = t5_tokenizer(512)
    return MT5ForConditionalGeneration(MT5Config(**_T5, vocab_size=len(tokenizer))), tokenizer


def _umt5() -> Built:
    """A bias of its own in each layer."""
    tokenizer = t5_tokenizer(180)
    return UMT5EncoderModel(UMT5Config(**_T5, vocab_size=len(tokenizer))), tokenizer


_T5_KIND = {"kind": AutoModelForTextEncoding}
FIRST_ENCODERS = (
    Family("bert", _bert, "MEAN", max_model_len=300, pooling="mean", max_seq_length=300),
    Family("xlmr", _xlmr, "CLS", max_model_len=320),
    Family("modernbert", _modernbert, "MEAN", max_model_len=512, pooling="mean", normalize=False),
    Family("mpnet", _mpnet, "MEAN", max_model_len=320, pooling="mean", path="padded"),
)
ENCODERS = (
    Family("roberta", _roberta, "CLS", max_model_len=200, dtype=torch.float16),
    Family("xlmr-xl", _xlmr_xl, "CLS", max_model_len=200),
    Family("camembert", _camembert, "MEAN", max_model_len=200, pooling="mean"),
    Family("distilbert", _distilbert, "CLS", max_model_len=200),
    Family("albert", _albert, "CLS", max_model_len=200),
    Family("electra", _electra, "CLS", max_model_len=200),
    Family("nomic", _nomic, "MEAN", max_model_len=200, pooling="mean"),
    Family("jina", _jina, "CLS", max_model_len=200),
    Family("eurobert", _eurobert, "CLS", max_model_len=200, dtype=torch.bfloat16),
    Family("esm", _esm, "CLS", max_model_len=200, path="padded"),
    Family("deberta", _deberta, "CLS", max_model_len=200, path="padded"),
    Family("deberta-v3", _deberta_v3, "CLS", max_model_len=200, path="padded"),
    Family("deberta-v2-conv", _deberta_v2_conv, "CLS", max_model_len=200, path="padded"),
    Family("t5", _t5, "MEAN", max_model_len=180, **_T5_KIND),
    Family("t5-pair", _t5_pair, "MEAN", max_model_len=200, pooling="mean", max_seq_length=200, **_T5_KIND),
    Family("mt5", _mt5, "MEAN", max_model_len=200, pooling="mean", max_seq_length=200, **_T5_KIND),
    Family("umt5", _umt5, "MEAN", max_model_len=180, **_T5_KIND),
    # Younger than the oldest transformers that we support.
    *([Family("gte", _gte, "CLS", max_model_len=200)] if hasattr(transformers, "GteModel") else []),
)
