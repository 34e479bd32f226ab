"""Bodies of the score and rerank routes, in vLLM's, Cohere's and Jina's shapes at once."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from deployments.http.schemas.chat import Part, content_of
from deployments.http.schemas.common import CommonBody
from deployments.scorer import Asked
from pooling.errors import InvalidRequest
from pooling.loading.card import ModelCard
from pooling.media import Content


class ContentItem(BaseModel):
    """vLLM's multi-modal document, for models that take images."""

    model_config = ConfigDict(frozen=True)

    content: Annotated[list[Part], Field(fail_fast=True)]


class TextItem(BaseModel):
    """A document as Jina and Cohere's first version write it."""

    model_config = ConfigDict(frozen=True)

    text: str


_Side = str | ContentItem | Annotated[list[str | TextItem | ContentItem], Field(fail_fast=True)]


class ScoringBody(CommonBody):
    """What score and rerank share."""

    max_tokens_per_query: int = 0
    max_tokens_per_doc: int = 0
    instruction: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def asked(self) -> Asked:
        """Raises InvalidRequest for a template, which a client is not trusted with."""
        self.check()
        told = dict(self.chat_template_kwargs or {})
        instruction = told.pop("instruction", None)
        if self.chat_template is not None or "chat_template" in told:
            raise InvalidRequest(
                "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request "
                "with untrusted chat template.",
                "chat_template",
            )
        if told or not isinstance(instruction, str | None):
            raise InvalidRequest(
                f"chat_template_kwargs has {', '.join(sorted(told)) or 'an instruction that is no text'}; allowed is a "
                "text as `instruction`",
                "chat_template_kwargs",
            )
        return Asked(
            self.use_activation,
            self.truncate_prompt_tokens,
            self.truncation_side,
            self.add_special_tokens,
            self.prompt_name,
            self.max_tokens_per_query or None,
            self.max_tokens_per_doc or None,
            # vLLM folds the one into the other; the explicit keyword wins.
            self.instruction if instruction is None else instruction,
        )


class QueriesAndDocuments(ScoringBody):
    """POST /score"""

    queries: _Side
    documents: _Side

    def sides(self) -> tuple[Any, Any]:
        return self.queries, self.documents


class QueriesAndItems(ScoringBody):
    """POST /score"""

    queries: _Side
    items: _Side

    def sides(self) -> tuple[Any, Any]:
        return self.queries, self.items


class Data(ScoringBody):
    """POST /score"""

    data_1: _Side
    data_2: _Side

    def sides(self) -> tuple[Any, Any]:
        return self.data_1, self.data_2


class TextPairs(ScoringBody):
    """POST /score"""

    text_1: _Side
    text_2: _Side

    def sides(self) -> tuple[Any, Any]:
        return self.text_1, self.text_2


ScoreBody = QueriesAndDocuments | QueriesAndItems | Data | TextPairs


def score_kind(data: Any) -> type[QueriesAndDocuments] | type[QueriesAndItems] | type[Data] | type[TextPairs]:
    """By the names under which the texts come."""
    names = data if isinstance(data, dict) else ()
    if "text_1" in names:
        return TextPairs
    if "data_1" in names:
        return Data
    if "queries" in names:
        return QueriesAndItems if "items" in names else QueriesAndDocuments
    return Data if "data_2" in names else TextPairs


class RerankBody(ScoringBody):
    """POST /rerank"""

    query: str | ContentItem
    documents: _Side
    top_n: int | None = Field(None, ge=0)
    return_documents: bool | None = None


def rerank_kind(_: Any) -> type[RerankBody]:
    return RerankBody


def items_of(side: Any, card: ModelCard) -> list[str | Content]:
    """One text or several, or texts and images. Raises InvalidRequest for those of a model that takes no images."""
    items: list[str | Content] = []
    for item in side if isinstance(side, list) else [side]:
        if isinstance(item, ContentItem):
            if card.vision is None:
                raise InvalidRequest(f"MultiModalParam is not supported for {card.architecture}", "documents")
            items.append(content_of(item.content))
        else:
            items.append(item.text if isinstance(item, TextItem) else item)
    return items
