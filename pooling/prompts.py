"""Prompts: the text that a model was trained to read before a query or a document."""

from typing import Literal

from pooling.loading.card import ModelCard

Role = Literal["query", "document"]

# The names that models give them, in the order Sentence Transformers documents for encode_query and encode_document.
# Its 6.2 itself never gets to `passage`: it adds an empty `document` to every model, so an E5 would lose its prompt.
_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def role_prompt(role: Role, card: ModelCard) -> str:
    """The model's prompt for a query or a document; without one "", and then its default prompt does not apply."""
    return next((card.prompts[name] for name in _NAMES[role] if name in card.prompts), "")
