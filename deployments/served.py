"""ServedModel: one model as the router has it; intake, admission and its engines."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from deployments.admission import Admission
from deployments.config import Limits
from deployments.dispatch import EngineClient
from deployments.engines import answer_bytes, image_bytes
from deployments.image_loader import ImageLoader, has_pictures, pictures_of
from pooling.errors import InputTooLong, InvalidRequest, Overloaded, Unavailable
from pooling.loading.card import ModelCard
from pooling.media import Content, Conversation, ImagePrompt
from pooling.pair_intake import most_tokens
from pooling.request import Ids, PackedBatch, PooledOutput, PoolingRequest
from pooling.sparse import SparseView

if TYPE_CHECKING:
    from tokenizers import Encoding

    from pooling.intake import Intake
    from pooling.loading.chat_template import Message

Result = TypeVar("Result")

# About a millisecond of tokenising: longer would hold up every other request, shorter is not worth a thread.
_INLINE_CHARS = 4_096
# What a message or a part costs beside its text: template and tokenizer are called for each, however short it is.
_PART_CHARS = 256


class Answered(NamedTuple):
    """An answer, how many tokens the request had, how long tokenising them took, and how many of them were images'."""

    output: PooledOutput
    prompt_tokens: int
    tokenise_s: float = 0.0
    image_tokens: int = 0


class ServedModel:
    """Takes requests for one model from their text to their vectors. For one event loop."""

    def __init__(
        self,
        intake: "Intake",
        engines: EngineClient,
        admission: Admission,
        threads: Executor,
        images: ImageLoader,
        limits: Limits,
        dtype: str = "auto",
    ) -> None:
        self.dtype = dtype
        self.admission = admission
        self._limits = limits
        self.engines = engines
        self._intake = intake
        self._threads = threads
        self._images = images

    @property
    def card(self) -> ModelCard:
        return self._intake.card

    @property
    def name(self) -> str:
        return self._intake.card.name

    @property
    def has_chat_template(self) -> bool:
        return self._intake.tokenizer.chat is not None

    async def answer(self, request: PoolingRequest, judge: Callable[[PackedBatch], None] | None = None) -> Answered:
        """The vectors of a request. judge: raises what refuses the request once it is tokenised.

        Raises InvalidRequest of the fitting kind, Overloaded if too much waits
        already, Unavailable if nothing can work it off, and what the engine raises.
        """
        try:
            self.admission.check()
            started = time.monotonic()
            batch = await self.tokenize(request)
            tokenise_s = time.monotonic() - started
            if judge is not None:
                judge(batch)
            self._refuse_large_answer(batch)
            pictures = image_bytes(batch)
            with self.admission.hold(batch.tokens), self._images.queued.hold(pictures) if pictures else nullcontext():
                return Answered(await self.engines.pool(batch), batch.tokens, tokenise_s, _image_tokens(batch))
        except Overloaded:
            if await self.engines.alive():
                raise
            raise Unavailable(f"no engine of the model `{self.name}` is running now") from None

    def _refuse_large_answer(self, batch: PackedBatch) -> None:
        size, most = answer_bytes(batch, self.card), self._limits.max_answer_bytes
        if size > most and len(batch) > 1:
            raise InvalidRequest(
                f"the answer to these {len(batch)} inputs has {size} bytes, but at most {most} are allowed "
                "(max_answer_bytes); ask for fewer inputs at once",
                "input",
            )

    async def tokenize(self, request: PoolingRequest) -> PackedBatch:
        """The request as the engine reads it. Raises InvalidRequest of the fitting kind."""
        sizes = [_size(item) for item in request.inputs]
        self._refuse_long(sizes)
        if has_pictures(request.inputs):
            self._refuse_pictures(request.inputs)
            return await self._images.read(request, self._intake.tokenize)
        work = sum(sizes) + _PART_CHARS * sum(map(_parts, request.inputs))
        return await self._run(work, partial(self._intake.tokenize, request))

    def _refuse_pictures(self, inputs: Sequence[Any]) -> None:
        """Raises InvalidRequest for more than the model takes, before any is fetched or decoded."""
        vision = self.card.vision
        most = 0 if vision is None else vision.max_images
        for number, item in enumerate(inputs):
            given = sum(1 for _ in pictures_of([item]))
            if given > most:
                whose = f" (input {number} of {len(inputs)})" if len(inputs) > 1 else ""
                why = f"{given} are given{whose}" if vision is not None else f"`{self.name}` reads text alone"
                raise InvalidRequest(f"At most {most} image(s) may be provided in one prompt: {why}", "image")

    async def render(
        self,
        conversations: "Sequence[Sequence[Message]]",
        *,
        add_special_tokens: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[Ids]:
        """The token ids of each conversation, by the tokenizer's own chat template.

        Raises InvalidRequest if it has none, or the template refuses a conversation.
        """
        chat = self._intake.tokenizer.chat
        if chat is None:
            raise InvalidRequest(
                "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
                "template if the tokenizer does not define one.",
                "messages",
            )
        sizes = [sum(len(message["content"]) for message in conversation) for conversation in conversations]
        self._refuse_long(sizes)

        def ids_of(conversation: "Sequence[Message]") -> Ids:
            text = chat.render(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=variables,
            )
            return self._intake.tokenize_text(text, add_special_tokens)

        work = sum(sizes) + _PART_CHARS * sum(map(len, conversations))
        return await self._run(work, lambda: [ids_of(conversation) for conversation in conversations])

    def sparse(self) -> SparseView:
        """The model's answers as the weights of words. Raises UnsupportedTask if it weighs none."""
        return SparseView(self.card, self._intake.tokenizer)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary writes each token."""
        return self._intake.tokenizer.strings(ids)

    def prompt(self, name: str | None) -> str:
        """What the model puts before a text under that name, None for its default. Raises InvalidRequest."""
        known, chosen = self.card.prompts, self.card.default_prompt_name if name is None else name
        if chosen is not None and chosen not in known:
            allowed = ", ".join(sorted(known)) or "none: this model defines no prompts"
            raise InvalidRequest(f"Unknown prompt_name {chosen!r}. Supported values: {allowed}", "prompt_name")
        return "" if chosen is None else known[chosen]

    def most_tokens(self, asked: int | None, which: Literal["query", "doc"]) -> int | None:
        """Tokens that a text of one side may have, special ones included. Raises InvalidRequest if that is no limit."""
        most = most_tokens(self._intake.card, asked, which)
        return None if most is None else min(most + self._intake.tokenizer.special_tokens, self.card.max_model_len)

    async def in_tokens(self, texts: list[str], special: bool) -> "list[Encoding]":
        """Whole texts with what the tokenizer knows of each of their tokens; no prompt, no limit on tokens."""
        sizes = [len(text) for text in texts]
        self._refuse_long(sizes)
        return await self._run(sum(sizes) + len(texts), partial(self._intake.detail, texts, special))

    async def in_text(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; those outside the vocabulary have none."""
        return await self._run(len(ids), partial(self._intake.tokenizer.decode, ids, skip_special_tokens))

    def _refuse_long(self, sizes: Sequence[int]) -> None:
        longest, most = max(sizes, default=0), self._limits.max_input_chars
        if longest > most:
            raise InputTooLong(
                f"an input has {longest} characters, but at most {most} are allowed (max_input_chars)",
                "input",
            )

    async def _run(self, chars: int, work: Callable[[], Result]) -> Result:
        if chars <= _INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _size(item: Any) -> int:
    """Characters of the texts of an input, or ids of a list; what has no length is no text, as intake says."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, tuple):
        return sum(map(_size, item))
    if isinstance(item, Content):
        return sum(len(part) for part in item.parts if isinstance(part, str))
    if isinstance(item, Conversation):
        return sum(map(_size, item.messages))
    if isinstance(item, ImagePrompt):
        return _size(item.prompt)
    return len(item) if hasattr(item, "__len__") else 0


def _parts(item: Any) -> int:
    """Messages and parts of an input; a text alone has none."""
    if isinstance(item, tuple):
        return sum(map(_parts, item))
    if isinstance(item, Content):
        return 1 + len(item.parts)
    return sum(map(_parts, item.messages)) if isinstance(item, Conversation) else 0


def _image_tokens(batch: PackedBatch) -> int:
    return sum(image.tokens for images in batch.media or () for image in images)
