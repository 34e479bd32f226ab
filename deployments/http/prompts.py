"""What a body asks to be read, as a request to its model: texts and ids as they are, conversations as their ids.

A model that takes images reads a conversation as a whole, for its images have to be loaded first.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from deployments.http.schemas.chat import ChatFields
from deployments.http.schemas.pooling import InputFields
from deployments.served import ServedModel
from pooling.request import PoolingRequest, Prompt


async def asked(body: Any, model: ServedModel, task: str | None, dimensions: int | None = None) -> PoolingRequest:
    """Raises InvalidRequest if fields contradict each other, and what prompts() raises."""
    request: PoolingRequest = body.request(await prompts(body, model), task, dimensions)
    untold = isinstance(body, ChatFields) and "add_special_tokens" not in body.model_fields_set
    if untold and model.card.vision is not None and not model.has_chat_template:
        # A template writes its special tokens itself, and there is none.
        return replace(request, add_special_tokens=True)
    return request


async def prompts(body: Any, model: ServedModel) -> Sequence[Prompt]:
    """Raises InvalidRequest if there are conversations and the model has no template for them, or it refuses one."""
    if isinstance(body, InputFields):
        return body.inputs()
    assert isinstance(body, ChatFields)
    if model.card.vision is not None:
        return body.said()
    return await model.render(
        body.conversations(),
        add_special_tokens=body.add_special_tokens,  # type: ignore[attr-defined]  # every body with ChatFields has it
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
    )
