"""Scores of Sentence Transformers' LogitScore modules, against its CrossEncoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from pooling import LLM
from tests.scored import (
    ROUNDING,
    Scorers,
    cross_encoder,
    predicted,
    scores,
    told_apart,
)


def write_logit_score(source: Path, directory: Path, template: str, variables: dict[str, Any], form: str) -> Path:
    """As CrossEncoder saves a causal language model with a LogitScore module."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    ids = {f"{side}_token_id": tokenizer.convert_tokens_to_ids(t) for side, t in (("true", "yes"), ("false", "no"))}
    (directory / "1_LogitScore").mkdir()
    method = {"method": "forward", "method_output_name": "logits"}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_LogitScore",
                "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
            },
        ],
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": method, "message": {**method, "format": form}},
            "module_output_name": "causal_logits",
            "processing_kwargs": {"chat_template": variables},
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "prompts": {"code": "find code"},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
        },
        "1_LogitScore/config.json": {**ids, "module_input_name": "causal_logits"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


_FLAT = (
    "{%- set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('retrieve') -%}\n"
    "<|im_start|>system\n{{ told }}<|im_end|>\n<|im_start|>user\n"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>: {{ m.content }}\n{% endfor %}<|im_end|>\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
_STRUCTURED = _FLAT.replace("m.content", "m.content[0].text").replace("| first", "| first", 1)


@pytest.fixture(scope="module", params=["flat", "structured"])
def logit_score(request: pytest.FixtureRequest, scorer: Scorers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = {"flat": _FLAT, "structured": _STRUCTURED}[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    source = scorer("qwen3-reranker")
    return write_logit_score(source, directory, template, {"add_generation_prompt": True}, request.param)


def test_a_logit_score_module_scores_as_cross_encoder_predicts(logit_score: Path) -> None:
    reference = cross_encoder(logit_score)
    expected = predicted(reference)
    assert told_apart(expected)
    with LLM(str(logit_score), dtype="float32") as llm:
        assert np.abs(scores(llm) - expected).max() < ROUNDING
        prompted = predicted(reference, prompt_name="code")
        assert np.abs(scores(llm, prompt_name="code") - prompted).max() < ROUNDING
        assert np.abs(prompted - expected).max() > 0.01


def test_a_logit_score_module_cuts_as_cross_encoder_does(logit_score: Path) -> None:
    reference = cross_encoder(logit_score)
    with LLM(str(logit_score), dtype="float32") as llm:
        for limit in (40, 64, 100):
            reference.max_seq_length = limit
            expected = predicted(reference)
            answers = scores(llm, tokenization_kwargs={"truncate_prompt_tokens": limit})
            assert np.abs(answers - expected).max() < ROUNDING
