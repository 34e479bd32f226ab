"""What all of vLLM's pooling routes take. Fields that are not named here are ignored, as in vLLM."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.http.encode import Encoding, Wire
from deployments.http.numbers import EmbedDtype, Endianness
from pooling.errors import InvalidRequest
from pooling.request import PoolingParams, PoolingRequest, Prompt

# The first wrong item ends the check: a body may hold a million of them.
Texts = Annotated[list[str], Field(fail_fast=True)]
_MOST_SALT_CHARS = 1_024


class CommonBody(BaseModel):
    """The fields of every pooling and scoring route.

    The literals of one value are vLLM's fields of which we do only that value:
    another is refused, never ignored. `user`, `priority` and `cache_salt` are
    judged and then have no effect: there is no cache, and the engine shares
    itself out by size and age.
    """

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    user: str | None = None
    request_id: str | None = None
    priority: int = Field(0, ge=-(2**63), lt=2**63)
    cache_salt: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    padding: Literal["do_not_pad"] | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    prompt_name: str | None = None

    @field_validator("cache_salt", mode="before")
    @classmethod
    def _salted(cls, given: Any) -> Any:
        if given is not None and not (isinstance(given, str) and 0 < len(given) <= _MOST_SALT_CHARS):
            raise ValueError(
                "Parameter 'cache_salt' must be a non-empty string if provided. (of at most 1024 characters)"
            )
        return given

    def check(self) -> None:
        """Raises InvalidRequest for a field that a client is not trusted with."""
        if self.mm_processor_kwargs is not None:
            raise InvalidRequest(
                "Per-request mm_processor_kwargs are disabled by default: images are read as the model's files say",
                "mm_processor_kwargs",
            )


class PoolingBody(CommonBody):
    """What the routes take that answer each input by itself."""

    encoding_format: Encoding | None = None
    embed_dtype: EmbedDtype | None = None
    endianness: Endianness | None = None
    normalize: bool | None = None
    input_type: Literal["query", "document", "passage"] | None = None

    @property
    def wire(self) -> Wire:
        return Wire(self.encoding_format or "float", self.embed_dtype or "float32", self.endianness or "native")

    def activation(self) -> bool | None:
        """use_activation under whichever name it was given. Raises InvalidRequest if under two."""
        if self.normalize is not None and self.use_activation is not None:
            raise InvalidRequest(
                "give use_activation or normalize, not both: they are two names of one setting", "normalize"
            )
        return self.normalize if self.use_activation is None else self.use_activation

    def request(self, inputs: Sequence[Prompt], task: str | None, dimensions: int | None = None) -> PoolingRequest:
        """Raises InvalidRequest if fields contradict each other."""
        self.check()
        return PoolingRequest(
            inputs,
            task,
            PoolingParams(self.activation(), dimensions),
            self.truncate_prompt_tokens,
            self.truncation_side,
            self.add_special_tokens,
            self.prompt_name,
            input_type="document" if self.input_type == "passage" else self.input_type,
        )
