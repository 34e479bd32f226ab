"""ImageLoader: the images of a request, fetched, decoded off the event loop, and kept no longer than it takes."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image as Pillow

from deployments.admission import Admission
from deployments.config import Limits
from deployments.fetch import Fetcher
from deployments.http.uploads import Upload, Uploads
from deployments.media import MediaConfig, SentImage
from pooling.errors import ImageTooLarge, InvalidRequest, PoolingError
from pooling.image_embeds import read_embeds
from pooling.images import decode_image, is_data_uri, read_data_uri
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt, Picture
from pooling.request import PackedBatch, PoolingRequest, Prompt

Result = TypeVar("Result")

_MOST_THREADS = 4
# Requests whose pictures are in memory at once, each of max_request_pixels at most.
_REQUESTS = 4
# Of one request: some 1,700 images of 224x224 in CLIP's pixels, or 40 of 1024x1024 in Qwen's patches. Pictures of one
# pixel take as much as others, so neither bytes nor pixels bound it; the router holds _REQUESTS of them, and a copy of
# each while it is sent.
MAX_PROCESSED_BYTES = 2**30
_PLAIN = {str, list, tuple, np.ndarray}
_PICTURES = (SentImage, Pillow.Image, Image, ImageEmbeds)


class ImageLoader:
    """Reads requests with images, on threads of its own: a text never waits for a picture. For one event loop."""

    def __init__(self, config: MediaConfig, limits: Limits, fetcher: Fetcher | None = None) -> None:
        """Of limits, max_body_bytes bounds what is fetched for one request, and max_upload_bytes what waits in all."""
        self._config, self._max_bytes = config, limits.max_body_bytes
        self._fetcher = Fetcher(config) if fetcher is None else fetcher
        cpus = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(max(1, min(_MOST_THREADS, cpus // 2)), "raypool-images")
        self._room = asyncio.Semaphore(_REQUESTS)
        # Until it is decoded, a request holds what came with it; many small ones are as much as a large one.
        self.waiting = Uploads(limits.max_upload_bytes, small=0, what="images")
        self.queued = Admission(config.max_queued_bytes, "bytes of images")

    async def read(self, request: PoolingRequest, tokenize: Callable[[PoolingRequest], PackedBatch]) -> PackedBatch:
        """What tokenize makes of the request with every picture decoded, each that is sent more than once but once.

        Raises InvalidRequest of the fitting kind, which names the image, Overloaded, and what tokenize raises.
        """
        self.queued.check()
        with self.waiting.one() as upload:
            upload.add(_bytes_of(request.inputs))
            sent = list(dict.fromkeys(part for part in pictures_of(request.inputs) if isinstance(part, SentImage)))
            fetched = await self._fetched(sent, upload)
            async with self._room:
                pixels = _Pixels(self._config.max_request_pixels)
                pictures = await self._all([partial(self._decoded, one, fetched, pixels) for one in sent])
                known = dict(zip(sent, pictures, strict=True))
                return await self._run(lambda: tokenize(_with_pictures(request, known, pixels)))

    def close(self) -> None:
        self._threads.shutdown()

    async def _fetched(self, sent: Sequence[SentImage], upload: Upload) -> dict[str, bytes]:
        urls = [one.url for one in sent if one.url and not is_data_uri(one.url)]
        if not urls:
            return {}
        return dict(zip(urls, await self._fetcher.fetch(urls, self._max_bytes, upload.add), strict=True))

    def _decoded(self, sent: SentImage, fetched: dict[str, bytes], pixels: "_Pixels") -> Picture:
        if not sent.url:
            return read_embeds(sent.rows, sent.grid, self._config)
        if is_data_uri(sent.url):
            said, data = read_data_uri(sent.url, self._config)
            image = decode_image(data, self._config, said)
        else:
            image = decode_image(fetched[sent.url], self._config)
        pixels.take(image)
        return image

    async def _all(self, work: Sequence[Callable[[], Result]]) -> list[Result]:
        """Side by side; the first that fails ends the others, and is named."""
        tasks = [asyncio.ensure_future(self._run(one)) for one in work]
        try:
            return list(await asyncio.gather(*tasks))
        except PoolingError as error:
            number = next(n for n, task in enumerate(tasks) if task.done() and task.exception() is error)
            raise _named(error, number, len(tasks)) from None
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def has_pictures(inputs: Sequence[Any]) -> bool:
    """Whether there is any; of texts, ids and pairs of texts it is seen by their types alone."""
    kinds = set(map(type, inputs))
    if tuple in kinds:
        kinds.update(type(part) for item in inputs if type(item) is tuple for part in item)
    return not kinds <= _PLAIN and any(True for _ in pictures_of(inputs))


def pictures_of(inputs: Sequence[Any]) -> Iterator[Any]:
    """Every picture of the inputs, in order, decoded or not."""
    for item in inputs:
        yield from _pictures_in(item)


def _pictures_in(item: Any) -> Iterator[Any]:
    if isinstance(item, _PICTURES):
        yield item
    elif isinstance(item, tuple | Content):
        for part in item if isinstance(item, tuple) else item.parts:
            yield from _pictures_in(part)
    elif isinstance(item, Conversation):
        yield from pictures_of(item.messages)
    elif isinstance(item, ImagePrompt):
        yield from pictures_of(item.images)


def _bytes_of(inputs: Sequence[Any]) -> int:
    """What the pictures of the inputs take as they came, one that is handed in several times once."""
    return sum({id(part): _size(part) for part in pictures_of(inputs)}.values())


def _size(part: Any) -> int:
    if isinstance(part, SentImage):
        return len(part.url) + len(part.rows)
    if isinstance(part, Pillow.Image):
        return part.height * part.width * len(part.getbands())
    return int(part.pixels.nbytes if isinstance(part, Image) else part.rows.nbytes)


def _with_pictures(request: PoolingRequest, known: dict[SentImage, Picture], pixels: "_Pixels") -> PoolingRequest:
    """The request with a picture wherever one was sent, or handed in as Pillow has it."""

    def of(part: Any) -> Any:
        if isinstance(part, SentImage):
            return known[part]
        if isinstance(part, Pillow.Image):
            image = Image.of(part)
            pixels.take(image)
            return image
        return part

    def filled(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(filled(part) for part in item)
        if isinstance(item, Content):
            return replace(item, parts=tuple(of(part) for part in item.parts))
        if isinstance(item, Conversation):
            return replace(item, messages=tuple(filled(message) for message in item.messages))
        if isinstance(item, ImagePrompt):
            return replace(item, images=tuple(of(image) for image in item.images))
        return of(item)

    inputs: list[Prompt] = [filled(item) for item in request.inputs]
    return replace(request, inputs=inputs)


class _Pixels:
    """What the pictures of one request may still have. Used by several threads: what they take at once may be lost,
    of which each has at most one picture."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, image: Image) -> None:
        self._left -= image.height * image.width
        if self._left < 0:
            raise ImageTooLarge(
                f"the images of this request have more than {self._most} pixels together, which is the most allowed "
                "(max_request_pixels)",
                "image",
            )


def _named(error: PoolingError, number: int, count: int) -> PoolingError:
    """The refusal of one image of several says which."""
    if count == 1 or not isinstance(error, InvalidRequest):
        return error
    return type(error)(f"image {number + 1} of {count}: {error.detail}", error.param)
