"""Asked: what a call of the offline API asks of all its prompts, and the prompts as one list."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pooling.errors import InvalidRequest
from pooling.loading.card import InputType
from pooling.media import Content, Conversation, Image, ImagePrompt, Picture
from pooling.request import Ids, PoolingParams, PoolingRequest, Prompt

Media = Image | ImagePrompt | Content | Conversation
Prompts = (
    str
    | Sequence[int]
    | Sequence[str | Sequence[int] | Ids | Media]
    | Mapping[str, Any]
    | Sequence[Mapping[str, Any]]
    | Media
)

_TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")
_PER_TEXT = ("max_tokens_per_query", "max_tokens_per_doc")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks of all its prompts."""

    task: str | None
    params: PoolingParams | None
    prompt_name: str | None
    tokenization: Mapping[str, Any] | None
    prompt: str | None = None
    input_type: InputType | None = None
    instruction: str | None = None
    chat_template: str | None = None

    def request(self, inputs: list[Prompt]) -> PoolingRequest:
        known = _TOKENIZATION if self.task != "score" else (*_TOKENIZATION, *_PER_TEXT)
        if not isinstance(self.tokenization, Mapping | None):
            raise InvalidRequest(
                f"tokenization_kwargs is {type(self.tokenization).__name__}; allowed is a mapping of {', '.join(known)}"
            )
        options = dict(self.tokenization or {})
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InvalidRequest(f"unknown tokenization_kwargs {unknown}; known are {', '.join(known)}")
        params = PoolingParams() if self.params is None else self.params
        return PoolingRequest(
            inputs,
            self.task,
            params,
            prompt_name=self.prompt_name,
            prompt=self.prompt,
            input_type=self.input_type,
            instruction=self.instruction,
            chat_template=self.chat_template,
            **options,
        )


def as_list(prompts: Prompts | Sequence[Prompt]) -> list[Any]:
    """A single prompt as a list of one; vLLM's dicts still wrap what they hold."""
    if isinstance(prompts, Media):
        return [prompts]
    if not isinstance(prompts, Sequence | Mapping | np.ndarray) or (
        isinstance(prompts, np.ndarray) and not prompts.ndim
    ):
        raise InvalidRequest(
            f"prompts is {type(prompts).__name__}; allowed are a text, token ids, or a list of either", "prompts"
        )
    single = isinstance(prompts, str | Mapping) or (
        len(prompts) > 0 and isinstance(prompts[0], int | np.integer) and not isinstance(prompts[0], bool)
    )
    return [prompts] if single else list(prompts)


def texts_of(given: Any, name: str) -> list[str]:
    """One text, or several, as a list. Raises InvalidRequest for what is neither."""
    if isinstance(given, str):
        return [given]
    items = None if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable) else list(given)
    if items is None or not all(isinstance(item, str) for item in items):
        odd = given if items is None else next(item for item in items if not isinstance(item, str))
        raise InvalidRequest(f"{name} holds {type(odd).__name__}; allowed are a text or a list of texts", name)
    return items


def sides_of(given: Any, name: str) -> list[str | Content]:
    """One text or content, or several, as a list. Raises InvalidRequest for what is neither."""
    if isinstance(given, Content):
        return [given]
    if isinstance(given, Sequence) and any(isinstance(item, Content) for item in given):
        odd = next((item for item in given if not isinstance(item, str | Content)), None)
        if odd is not None:
            raise InvalidRequest(f"{name} holds {type(odd).__name__}; allowed are texts and Content", name)
        return list(given)
    return list(texts_of(given, name))


def _with_images(prompt: Any, data: Any) -> ImagePrompt:
    """vLLM's multi_modal_data: `image` is a picture, one that is embedded already, or a list of either."""
    if not isinstance(data, Mapping) or set(data) != {"image"}:
        given = ", ".join(sorted(map(str, data))) if isinstance(data, Mapping) else type(data).__name__
        raise InvalidRequest(f"multi_modal_data has {given or 'nothing'}; allowed is image", "multi_modal_data")
    given = data["image"]
    images = given if isinstance(given, list | tuple) else [given]
    return ImagePrompt(prompt, tuple(one if isinstance(one, Picture) else Image.of(one) for one in images))


def unwrap(item: Any) -> Prompt:
    """vLLM's dict as what it holds; anything else as it is. Its images are copied, so it is done shortly before use."""
    if not isinstance(item, Mapping):
        return cast(Prompt, item)
    for key in ("prompt", "prompt_token_ids"):
        if key in item:
            prompt = cast(Prompt, item[key])
            return prompt if item.get("multi_modal_data") is None else _with_images(prompt, item["multi_modal_data"])
    raise InvalidRequest(f"a prompt has the keys {sorted(item)}; allowed is prompt or prompt_token_ids", "prompts")
