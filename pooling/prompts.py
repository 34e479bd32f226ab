"""Prompts: the text that a model was trained to read before a query or a document."""

from typing import get_args

from pooling.errors import InvalidRequest
from pooling.loading.card import InputType, ModelCard
from pooling.request import PoolingRequest

# The names that models give them, in the order Sentence Transformers documents for encode_query and encode_document.
# Its 6.2 itself never gets to `passage`: it adds an empty `document` to every model, so an E5 would lose its prompt.
_NAMES: dict[InputType, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
ROLES: tuple[InputType, ...] = get_args(InputType)


def role_prompt(role: InputType, card: ModelCard) -> str:
    """The model's prompt for a query or a document; without one "", and then its default prompt does not apply."""
    return next((card.prompts[name] for name in _NAMES[role] if name in card.prompts), "")


def prompt_of(request: PoolingRequest, card: ModelCard, has_text: bool) -> str:
    """The text before each text of a request. Raises InvalidRequest for one that cannot be."""
    name, known = request.prompt_name, card.prompts
    if request.prompt is not None:
        if name is not None:
            raise InvalidRequest(f"both prompt and prompt_name {name!r} are given; give one of them", "prompt")
        if request.prompt and not has_text:
            raise InvalidRequest("prompt needs text inputs; token ids are taken as they are", "prompt")
        return request.prompt
    if name is None:
        if request.input_type is not None:
            return role_prompt(request.input_type, card)
        default = card.default_prompt_name
        return known[default] if default is not None else ""
    if name not in known:
        allowed = ", ".join(sorted(known)) or "none: this model defines no prompts"
        raise InvalidRequest(f"Unknown prompt_name {name!r}. Supported values: {allowed}", "prompt_name")
    if not has_text:
        raise InvalidRequest("prompt_name needs text inputs; token ids are taken as they are", "prompt_name")
    return known[name]
