"""Conversations as input: `messages`, or `input` with the same in it."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.media import SentImage
from pooling.errors import InvalidRequest
from pooling.loading.chat_template import Message
from pooling.media import Content, Conversation


class ImageUrl(BaseModel):
    """Where an image is: http(s), where the service fetches any, or `data:image/png;base64,...`.

    detail is OpenAI's, and has no effect: the model's files say how large images are read.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    detail: str | None = None


class ImageRows(BaseModel):
    """An image that is embedded already, base64 of what torch.save() or numpy.save() writes, and its patches."""

    model_config = ConfigDict(frozen=True)

    image_embeds: str
    image_grid_thw: str | None = None


class Part(BaseModel):
    """One part of a message: `text`, `image_url` or `image_embeds`, under its own name."""

    model_config = ConfigDict(frozen=True)

    type: str
    text: str | None = None
    image_url: str | ImageUrl | None = None
    image_embeds: str | ImageRows | None = None

    def said(self) -> str | SentImage:
        """Raises InvalidRequest for a part of a type that is not read, or without what it is to hold."""
        if self.type == "text" and self.text is not None:
            return self.text
        if self.type == "image_url" and self.image_url:
            where = self.image_url
            return SentImage(where if isinstance(where, str) else where.url)
        if self.type == "image_embeds" and self.image_embeds:
            rows = self.image_embeds
            if isinstance(rows, str):
                return SentImage("", rows)
            return SentImage("", rows.image_embeds, rows.image_grid_thw)
        if self.type in _TYPES:
            raise InvalidRequest(f"a part of type {self.type!r} has no {self.type}", "messages")
        raise InvalidRequest(f"a part is of type {self.type[:50]!r}; allowed are {', '.join(_TYPES)}", "messages")


_TYPES = ("text", "image_url", "image_embeds")


class ChatMessage(BaseModel):
    """What one side said."""

    model_config = ConfigDict(frozen=True)

    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None

    def plain(self) -> Message:
        """Its text alone, for a model that reads no more. Raises InvalidRequest for a part that is no text."""
        if not isinstance(self.content, list):
            return {"role": self.role, "content": self.content or ""}
        for part in self.content:
            if part.type != "text" or part.text is None:
                kind = part.type.removesuffix("_url").removeprefix("input_")
                raise InvalidRequest(
                    f"At most 0 {kind}(s) may be provided in one prompt: the model reads text alone", "messages"
                )
        return {"role": self.role, "content": "\n".join(part.text or "" for part in self.content)}

    def said(self) -> Content:
        """Its texts and images, in order. Raises InvalidRequest for a part that is neither."""
        return content_of([self.content or ""] if not isinstance(self.content, list) else self.content, self.role)


def content_of(parts: Sequence[str | Part], role: str = "user") -> Content:
    """Raises InvalidRequest for a part that is neither text nor image."""
    said: Any = tuple(part if isinstance(part, str) else part.said() for part in parts)
    return Content(said, role)


Messages = Annotated[list[ChatMessage], Field(fail_fast=True)]


class ChatFields(BaseModel):
    """What a body takes that holds conversations."""

    messages: Messages | Annotated[list[Messages], Field(fail_fast=True)]
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
        return [[message.plain() for message in messages] for messages in self.batch()]

    def said(self) -> list[Conversation]:
        """With the images among the texts. Raises InvalidRequest as conversations(), and for one without a message."""
        if not all(self.batch()):
            raise InvalidRequest(
                "Cannot apply chat template to an empty conversation. Provide at least one message.", "messages"
            )
        return [
            Conversation(
                tuple(message.said() for message in messages),
                self.add_generation_prompt,
                self.continue_final_message,
                self.chat_template_kwargs or {},
            )
            for messages in self.batch()
        ]

    def batch(self) -> list[list[ChatMessage]]:
        """Each conversation. Raises InvalidRequest if a template came along."""
        if self.chat_template is not None or "chat_template" in (self.chat_template_kwargs or {}):
            raise InvalidRequest(
                "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request "
                "with untrusted chat template.",
                "chat_template",
            )
        given: list[Any] = list(self.messages)
        return given if given and isinstance(given[0], list) else [given]


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
