"""Bodies of /tokenize and /detokenize, vLLM's and TEI's."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from deployments.http.schemas.chat import ChatFields
from deployments.http.schemas.common import Texts

# Larger ids are in no vocabulary, and tokenizers count in 32 bits.
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class _TokensBody(BaseModel):
    model_config = ConfigDict(frozen=True)

    model: str | None = None


class TokenizeText(_TokensBody):
    """POST /tokenize of a text"""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class TokenizeChat(ChatFields, _TokensBody):
    """POST /tokenize of a conversation"""

    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    return_token_strs: bool | None = None


class TokenizeInputs(_TokensBody):
    """TEI's POST /tokenize"""

    inputs: str | Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DetokenizeBody(_TokensBody):
    """POST /detokenize"""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def tokenize_kind(data: Any) -> type[TokenizeText] | type[TokenizeChat] | type[TokenizeInputs]:
    names = data if isinstance(data, dict) else ()
    if "messages" in names:
        return TokenizeChat
    return TokenizeInputs if "inputs" in names and "prompt" not in names else TokenizeText


def detokenize_kind(_: Any) -> type[DetokenizeBody]:
    return DetokenizeBody
