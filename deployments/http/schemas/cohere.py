"""Body of Cohere's POST /v2/embed."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.http.packing import EmbeddingType
from deployments.http.schemas.chat import Part
from deployments.http.schemas.common import Texts


class ContentParts(BaseModel):
    """One input of several parts."""

    model_config = ConfigDict(frozen=True)

    content: Annotated[list[Part], Field(fail_fast=True)]


class CohereEmbedBody(BaseModel):
    """POST /v2/embed"""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    input_type: str | None = None
    texts: Texts | None = None
    images: Texts | None = None
    inputs: Annotated[list[ContentParts], Field(fail_fast=True)] | None = None
    output_dimension: int | None = None
    embedding_types: list[EmbeddingType] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: int | None = None
    priority: int = Field(0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        if sum(bool(given) for given in (self.texts, self.images, self.inputs)) != 1:
            raise ValueError("Exactly one of texts, images, or inputs must be provided, and it must be non-empty")
        return self


def cohere_embed_kind(_: Any) -> type[CohereEmbedBody]:
    return CohereEmbedBody
