"""What clients get, for /docs and /openapi.json: the routes write these without going through pydantic."""

from typing import Any, Literal

from pydantic import BaseModel

Vector = list[float] | list[list[float]] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0]
    prompt_tokens_details: None
    completion_tokens_details: None


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class _Answer(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class Embedding(BaseModel):
    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingAnswer(_Answer):
    data: list[Embedding]


class Pooled(BaseModel):
    index: int
    object: Literal["pooling"]
    data: Vector


class PoolingAnswer(_Answer):
    data: list[Pooled]


class Classified(BaseModel):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassifyAnswer(_Answer):
    data: list[Classified]


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(_Answer):
    data: list[Score]


class Document(BaseModel):
    text: str | None
    multi_modal: list[dict[str, Any]] | None


class Ranked(BaseModel):
    index: int
    relevance_score: float
    document: Document | None = None


class RerankAnswer(BaseModel):
    id: str
    model: str
    usage: RerankUsage
    results: list[Ranked]
    meta: dict[str, Any]


class TEIRanked(BaseModel):
    index: int
    score: float
    text: str | None = None


class TEIWeight(BaseModel):
    index: int
    value: float


class CohereEmbeddings(BaseModel):
    float: list[list[float]] | None = None
    base64: list[str] | None = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None


class CohereEmbedAnswer(BaseModel):
    id: str
    embeddings: CohereEmbeddings
    texts: list[str] | None = None
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"]


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenDetail(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Detokenized(BaseModel):
    prompt: str


class Label(BaseModel):
    score: float
    label: str


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(BaseModel):
    error: Error


class TEIErrorAnswer(BaseModel):
    error: str
    error_type: str


class Unauthorized(BaseModel):
    error: Literal["Unauthorized"]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]


class Version(BaseModel):
    version: str


class Load(BaseModel):
    server_load: int


class Info(BaseModel):
    model_id: str
    model_dtype: str
    model_type: dict[str, Any]
    max_input_length: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str
