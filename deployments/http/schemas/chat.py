"""Conversations as input: `messages`, or `input` with the same in it."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pooling.errors import InvalidRequest
from pooling.loading.chat_template import Message


class Part(BaseModel):
    """One part of a message; only those of type `text` are read."""

    model_config = ConfigDict(frozen=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """What one side said."""

    model_config = ConfigDict(frozen=True)

    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None

    def plain(self) -> Message:
        """Its text alone. Raises InvalidRequest for a part that is no text."""
        if not isinstance(self.content, list):
            return {"role": self.role, "content": self.content or ""}
        for part in self.content:
            if part.type != "text" or part.text is None:
                kind = part.type.removesuffix("_url").removeprefix("input_")
                raise InvalidRequest(
                    f"At most 0 {kind}(s) may be provided in one prompt: the models served here read text alone",
                    "messages",
                )
        return {"role": self.role, "content": "\n".join(part.text or "" for part in self.content)}


Conversation = Annotated[list[ChatMessage], Field(fail_fast=True)]


class ChatFields(BaseModel):
    """What a body takes that holds conversations."""

    messages: Conversation | Annotated[list[Conversation], Field(fail_fast=True)]
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _input_is_messages_too(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("messages") is None and "input" in data:
            return {**data, "messages": data["input"]}
        return data

    @model_validator(mode="after")
    def _one_ending(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        return self

    def conversations(self) -> list[list[Message]]:
        """Raises InvalidRequest if a message holds more than text, or a template came along."""
        if self.chat_template is not None or "chat_template" in (self.chat_template_kwargs or {}):
            raise InvalidRequest(
                "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request "
                "with untrusted chat template.",
                "chat_template",
            )
        given: list[Any] = list(self.messages)
        batch = given if given and isinstance(given[0], list) else [given]
        return [[message.plain() for message in conversation] for conversation in batch]


def holds_conversations(data: Any) -> bool:
    """Whether a body is meant as chat: it has `messages`, or objects where texts or ids would be."""
    if not isinstance(data, dict):
        return False
    given = data.get("messages")
    if given is not None:
        return True
    given = data.get("input")
    first = given[0] if isinstance(given, list) and given else None
    return isinstance(first, dict) or (isinstance(first, list) and bool(first) and isinstance(first[0], dict))
