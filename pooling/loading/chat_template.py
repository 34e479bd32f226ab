"""ChatTemplate: conversations as the one text that the model was trained on, by the tokenizer's own template."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jinja2

from pooling.errors import InvalidRequest

# The content is a text, or a list of parts: {"type": "text", "text": ...} and {"type": "image"}.
Message = Mapping[str, Any]


class ChatTemplate:
    """Renders conversations. Safe to call from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Arguments of transformers' own, which a template's variable must not be taken for.
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)

    @classmethod
    def of(cls, tokenizer: Any) -> Self | None:
        """That of a transformers tokenizer; None if it has none."""
        return cls(tokenizer) if getattr(tokenizer, "chat_template", None) else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Raises InvalidRequest if the conversation is empty or the template refuses it."""
        if not messages:
            raise InvalidRequest(
                "Cannot apply chat template to an empty conversation. Provide at least one message.", "messages"
            )
        taken = sorted(self._reserved & set(variables or ()))
        if taken:
            raise InvalidRequest(
                f"chat_template_kwargs has {', '.join(taken)}, which is no variable of a template",
                "chat_template_kwargs",
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(variables or {}),
            )
        except (jinja2.TemplateError, ValueError, TypeError, OverflowError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InvalidRequest(f"the chat template refuses the conversation: {reason[0]}", "messages") from None
        return text
