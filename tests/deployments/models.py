"""The models of the tests of this directory, written once a session."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.checkpoints import FAMILIES, write_sentence_transformers
from tests.checkpoints.writing import write_json
from tests.headed import Headed

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if tone %}{{ tone }}\n{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)
POISON = "€"
PROMPTS = {"query": "query: ", "document": "document: ", "empty": ""}


def write_chatty(directory: Path) -> Path:
    """A BERT with a chat template, prompts and Matryoshka sizes, unlike the others of its family."""
    FAMILIES["bert"].write(directory)
    write_sentence_transformers(directory, "mean", True, 300)
    _change(directory / "config.json", matryoshka_dimensions=[16, 32, 12])
    _change(directory / "tokenizer_config.json", chat_template=TEMPLATE)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_json(directory / "config_sentence_transformers.json", {"prompts": PROMPTS})
    return directory


def write_emotions(directory: Path) -> Path:
    """A classifier of three labels."""
    return Headed("bert", "sequence", 3, (("id2label", {0: "joy", 1: "fear", 2: "anger"}),)).write(directory)


def write_reranker(directory: Path) -> Path:
    """A cross-encoder: one label. Its tokenizer tells it which text is which, as BERT's own does."""
    Headed("bert", "sequence", 1).write(directory)
    _change(directory / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    return directory


def write_poisoned(directory: Path) -> Path:
    """A BERT that answers NaN for inputs with POISON in them; the self-check at its start happens not to draw it."""
    FAMILIES["bert"].write(directory)
    token = AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids(POISON)
    tensors = load_file(directory / "model.safetensors")
    row = tensors["embeddings.word_embeddings.weight"][token]
    row[::2], row[1::2] = 3e38, -3e38  # finite, as weights must be, until they are subtracted
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


WRITERS = {
    "chatty": write_chatty,
    "emotions": write_emotions,
    "reranker": write_reranker,
    "poisoned": write_poisoned,
}


def _change(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | changes)
