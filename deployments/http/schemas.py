"""The bodies that clients may send. Fields that are not named here are ignored, as in vLLM."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.inputs import as_inputs
from pooling.errors import InvalidRequest
from pooling.request import PoolingParams, PoolingRequest

# The first wrong item ends the check: a body may hold a million of them.
_Ids = Annotated[list[int], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Input = _Ids | Annotated[list[_Ids], Field(fail_fast=True)] | str | _Texts


class PoolingBody(BaseModel):
    """What every pooling route takes.

    The literals of one value are vLLM's fields of which we do only that value:
    another is refused, never ignored.
    """

    model_config = ConfigDict(frozen=True)

    input: _Input
    model: str | None = None
    user: str | None = None
    request_id: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    embed_dtype: Literal["float32"] | None = None
    endianness: Literal["native", "little"] | None = None
    padding: Literal["do_not_pad"] | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    normalize: bool | None = None
    prompt_name: str | None = None

    def request(self, task: str | None, dimensions: int | None = None) -> PoolingRequest:
        """Raises InvalidRequest if both names of one setting are given."""
        if self.normalize is not None and self.use_activation is not None:
            raise InvalidRequest(
                "give use_activation or normalize, not both: they are two names of one setting", "normalize"
            )
        return PoolingRequest(
            as_inputs(self.input),
            task,
            PoolingParams(self.normalize if self.use_activation is None else self.use_activation, dimensions),
            self.truncate_prompt_tokens,
            self.truncation_side,
            self.add_special_tokens,
            self.prompt_name,
        )


class EmbeddingBody(PoolingBody):
    """POST /v1/embeddings"""

    dimensions: int | None = None


class PoolBody(PoolingBody):
    """POST /pooling"""

    # Every task of Raypool is known here; whether a model does it is the model's to say.
    task: Literal["embed", "classify", "score", "reward", "token_embed", "token_classify"] | None = None
    dimensions: int | None = None
