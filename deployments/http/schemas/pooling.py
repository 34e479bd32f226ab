"""Bodies of /v1/embeddings, /pooling and /classify: texts, ids or conversations."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from deployments.http.packing import EmbeddingType
from deployments.http.schemas.chat import ChatFields, holds_conversations
from deployments.http.schemas.common import PoolingBody, Texts
from deployments.inputs import as_inputs
from pooling.errors import InvalidRequest
from pooling.request import Prompt
from pooling.tasks import TASKS, parts_of

# Every task of Raypool is known here; whether a model does it is the model's to say.
_TASKS = ", ".join(repr(task) for task in TASKS)


def _known(name: str) -> str:
    if not all(part in TASKS for part in parts_of(name)):
        raise PydanticCustomError("literal_error", f"Input should be {_TASKS}, or several of them joined by &")
    return name


TaskName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "examples": list(TASKS)})]

_Ids = Annotated[list[int], Field(fail_fast=True)]


class InputFields(BaseModel):
    """What a body takes that holds texts or token ids."""

    input: _Ids | Annotated[list[_Ids], Field(fail_fast=True)] | str | Texts

    def inputs(self) -> Sequence[Prompt]:
        return as_inputs(self.input)


class EmbeddingBody(PoolingBody):
    """POST /v1/embeddings

    embedding_types: one type, as Cohere names them; /v2/embed answers several.
    """

    dimensions: int | None = None
    embedding_types: list[EmbeddingType] | None = Field(None, min_length=1, max_length=1)

    @property
    def embedding_type(self) -> EmbeddingType:
        """Raises InvalidRequest if it contradicts encoding_format."""
        one = self.embedding_types[0] if self.embedding_types else "float"
        if one != "float" and self.encoding_format not in (None, "float"):
            raise InvalidRequest(
                f"give embedding_types {one} or encoding_format {self.encoding_format}, not both: each says how a "
                "vector is written",
                "embedding_types",
            )
        return one


class EmbeddingInput(InputFields, EmbeddingBody):
    """POST /v1/embeddings of texts or token ids"""


class EmbeddingChat(ChatFields, EmbeddingBody):
    """POST /v1/embeddings of conversations"""

    add_special_tokens: bool = False


class PoolBody(PoolingBody):
    """POST /pooling"""

    task: TaskName | None = None
    dimensions: int | None = None


class PoolInput(InputFields, PoolBody):
    """POST /pooling of texts or token ids"""


class PoolChat(ChatFields, PoolBody):
    """POST /pooling of conversations"""

    add_special_tokens: bool = False


class ClassifyBody(PoolingBody):
    """POST /classify"""

    softmax: bool | None = None

    def activation(self) -> bool | None:
        given = [value for value in (self.softmax, super().activation()) if value is not None]
        if len(given) > 1:
            raise InvalidRequest(
                "give softmax or use_activation, not both: they are two names of one setting", "softmax"
            )
        return given[0] if given else None


class ClassifyInput(InputFields, ClassifyBody):
    """POST /classify of texts or token ids"""


class ClassifyChat(ChatFields, ClassifyBody):
    """POST /classify of conversations"""

    add_special_tokens: bool = False


def embedding_kind(data: Any) -> type[EmbeddingInput] | type[EmbeddingChat]:
    return EmbeddingChat if holds_conversations(data) else EmbeddingInput


def pool_kind(data: Any) -> type[PoolInput] | type[PoolChat]:
    return PoolChat if holds_conversations(data) else PoolInput


def classify_kind(data: Any) -> type[ClassifyInput] | type[ClassifyChat]:
    return ClassifyChat if holds_conversations(data) else ClassifyInput
