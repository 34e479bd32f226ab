"""Bodies of TEI's routes (text-embeddings-inference)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.http.schemas.common import Texts
from deployments.http.schemas.tokens import TokenId
from pooling.request import Prompt

_Ids = Annotated[list[int], Field(fail_fast=True)]
_Mixed = Annotated[list[str | _Ids], Field(fail_fast=True)]


class TEIBody(BaseModel):
    """What TEI's routes share. `model` is ours: TEI serves one model, and needs no name for it."""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] = "Right"

    @property
    def limit(self) -> int | None:
        """TEI cuts unless it is told not to."""
        return None if self.truncate is False else -1

    @property
    def side(self) -> Literal["left"] | None:
        """None is the tokenizer's own side, whose cut keeps special tokens."""
        return "left" if self.truncation_direction.lower() == "left" else None


class EmbedAllBody(TEIBody):
    """POST /embed_all"""

    inputs: str | _Ids | _Mixed
    prompt_name: str | None = None

    def prompts(self) -> list[Prompt]:
        """A text, or a flat list of ids, is one input."""
        given: Any = self.inputs
        return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)


class EmbedSparseBody(EmbedAllBody):
    """POST /embed_sparse"""


class EmbedBody(EmbedAllBody):
    """POST /embed"""

    normalize: bool = True
    dimensions: int | None = None


class PredictBody(TEIBody):
    """POST /predict"""

    inputs: str | Texts | Annotated[list[Texts], Field(fail_fast=True)]
    raw_scores: bool = False


class TextsBody(TEIBody):
    """TEI's POST /rerank"""

    query: str
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False


class _Sentences(BaseModel):
    source_sentence: str
    sentences: Texts


class _SimilarityParameters(TEIBody):
    prompt_name: str | None = None


class SimilarityBody(BaseModel):
    """POST /similarity"""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    inputs: _Sentences
    parameters: _SimilarityParameters | None = None


class DecodeBody(BaseModel):
    """POST /decode"""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    ids: (
        Annotated[list[TokenId], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[TokenId], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    skip_special_tokens: bool = True
