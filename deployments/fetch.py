"""Fetcher: images by URL, from allowed hosts at public addresses only, however often they redirect."""

import asyncio
from collections.abc import Callable, Sequence
from socket import AF_UNSPEC, AddressFamily

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from deployments.addresses import is_public
from deployments.media import MediaConfig
from pooling import __version__
from pooling.errors import FetchFailed, FetchRefused, ImageTooLarge

_SCHEMES = ("http", "https")
_REDIRECTS = (301, 302, 303, 307, 308)
# What servers call images beside image/*: files of which they know nothing, in the words of HTTP and of S3.
_UNTYPED = ("application/octet-stream", "binary/octet-stream")
_HEADERS = {"user-agent": f"raypool/{__version__}", "accept": "image/*", "accept-encoding": "identity"}
_CHUNK_BYTES = 65_536
# What servers read of a request's first line; yarl keeps the last URLs that it read, of any length.
_MOST_URL_CHARS = 8_192


class Fetcher:
    """Fetches what the config allows. For one event loop.

    resolver: of names, the system's if None. reaches: which of its addresses may
    be connected to. An address is judged once it is resolved and is then the one
    that is connected to, so that a name cannot answer twice.
    """

    def __init__(
        self,
        config: MediaConfig,
        resolver: AbstractResolver | None = None,
        reaches: Callable[[str], bool] = is_public,
    ) -> None:
        self._config = config
        self._resolver = resolver
        self._reaches = reaches
        self._at_once = asyncio.Semaphore(config.max_fetches)

    async def fetch(
        self, urls: Sequence[str], max_bytes: int, count: Callable[[int], None] = lambda _: None
    ) -> list[bytes]:
        """The bytes at each URL, of not more than max_bytes together; count is told of them as they come.

        Raises FetchRefused, FetchFailed, ImageTooLarge or what count raises, and then fetches no more.
        """
        for url in urls:
            self._judge_text(url)
            self._judge(_parsed(url))
        connector = aiohttp.TCPConnector(
            resolver=_JudgedResolver(self._resolver or aiohttp.ThreadedResolver(), self._reaches),
            use_dns_cache=False,
            family=AF_UNSPEC,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            # What is packed may unpack to anything.
            auto_decompress=False,
        ) as session:
            room = _Room(max_bytes, count)
            tasks = [asyncio.ensure_future(self._one(session, url, room)) for url in urls]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)  # before the session closes under them

    async def _one(self, session: aiohttp.ClientSession, given: str, room: "_Room") -> bytes:
        url = _parsed(given)
        host = url.host
        async with self._at_once:
            try:
                async with asyncio.timeout(self._config.fetch_timeout_s):
                    return await self._follow(session, url, room)
            except TimeoutError:
                raise FetchFailed(
                    f"the image at {host} did not come within {self._config.fetch_timeout_s:g} s (fetch_timeout_s)",
                    "image_url",
                ) from None
            except (aiohttp.ClientError, OSError):
                raise FetchFailed(
                    f"the image at {host} cannot be fetched: the host does not answer", "image_url"
                ) from None
            except ValueError:  # what resolves names, or sends requests, judges hosts by rules of its own
                raise _unreadable() from None

    async def _follow(self, session: aiohttp.ClientSession, url: URL, room: "_Room") -> bytes:
        for _ in range(self._config.max_redirects + 1):
            self._judge(url)
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, url, room)
                target = response.headers.get("location", "")
            url = _joined(url, target)
        raise FetchFailed(
            f"the image at {url.host} redirects more than {self._config.max_redirects} times (max_redirects)",
            "image_url",
        )

    def _judge_text(self, url: str) -> None:
        """Raises FetchRefused for what is not even to be parsed."""
        if len(url) > _MOST_URL_CHARS:
            raise FetchRefused(
                f"an image URL has {len(url)} characters; allowed are {_MOST_URL_CHARS}, and data URIs of any length",
                "image_url",
            )
        scheme = _scheme(url)
        if scheme not in _SCHEMES:
            raise _wrong_scheme(scheme)
        if not self._config.allowed_domains:
            raise FetchRefused(
                "this service fetches no images by URL (media.allowed_domains is empty); send them as data URIs, "
                "data:image/png;base64,...",
                "image_url",
            )

    def _judge(self, url: URL) -> None:
        """Raises FetchRefused for a URL that is not of an allowed host."""
        if url.scheme not in _SCHEMES:
            raise _wrong_scheme(url.scheme)
        if url.user is not None or url.password is not None:
            raise FetchRefused("an image URL holds a user name or a password; allowed are URLs without", "image_url")
        host = (url.raw_host or "").lower().removesuffix(".")
        port = None if url.is_default_port() else url.port
        if not any(_matches(allowed, host, port) for allowed in self._config.allowed_domains):
            where = host[:200] if port is None else f"{host[:200]}:{port}"
            raise FetchRefused(
                f"images are not fetched from {where!r}; allowed are {', '.join(self._config.allowed_domains)}",
                "image_url",
            )

    async def _read(self, response: aiohttp.ClientResponse, url: URL, room: "_Room") -> bytes:
        if response.status != 200:
            raise FetchFailed(f"the image at {url.host} cannot be fetched: status {response.status}", "image_url")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in _UNTYPED:
            said = repr(kind[:100]) if kind else "without a content type"
            raise FetchFailed(f"what is at {url.host} is {said}; allowed is image/*", "image_url")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchFailed(f"the image at {url.host} comes packed; allowed is an image as it is", "image_url")
        most = self._config.max_image_bytes
        if (response.content_length or 0) > most:
            raise _too_large(url, most)
        chunks, size = [], 0
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise _too_large(url, most)
            room.take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)


class _Room:
    """What the images of one request may still have, in bytes."""

    def __init__(self, max_bytes: int, count: Callable[[int], None]) -> None:
        self._most = self._left = max_bytes
        self._count = count

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ImageTooLarge(
                f"the images of this request have more than {self._most} bytes together, which is the most allowed "
                "(max_body_bytes)",
                "image_url",
            )
        self._count(size)


class _JudgedResolver(AbstractResolver):
    """Answers addresses that may be connected to. Raises FetchRefused if a name has others as well."""

    def __init__(self, inner: AbstractResolver, reaches: Callable[[str], bool]) -> None:
        self._inner, self._reaches = inner, reaches

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not all(self._reaches(one["host"]) for one in found):
            raise FetchRefused(f"images are not fetched from {host!r}: its address is not a public one", "image_url")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _matches(allowed: str, host: str, port: int | None) -> bool:
    name, _, number = allowed.partition(":")
    if port != (int(number) if number else None):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _scheme(url: str) -> str:
    before, colon, _ = url.partition(":")
    return before.lower() if colon and "/" not in before else ""


def _wrong_scheme(scheme: str) -> FetchRefused:
    return FetchRefused(f"an image URL has the scheme {scheme[:20]!r}; allowed are http, https and data", "image_url")


def _parsed(url: str) -> URL:
    try:
        return _named(URL(url))
    except ValueError:
        raise _unreadable() from None


def _named(url: URL) -> URL:
    """The URL. Raises UnicodeError if its host cannot be shown, or not be asked for: yarl reads names late."""
    if url.host is not None:
        str(url.raw_host).encode("idna")
    return url


def _unreadable() -> FetchRefused:
    return FetchRefused("an image URL cannot be read as one", "image_url")


def _joined(url: URL, target: str) -> URL:
    if not target:
        raise FetchFailed(f"the image at {url.host} redirects to nowhere", "image_url")
    try:
        return _named(url.join(URL(target)))
    except ValueError:
        raise FetchRefused(f"the image at {url.host} redirects to what is no URL", "image_url") from None


def _too_large(url: URL, most: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"the image at {url.host} has more than {most} bytes, which is the most allowed (max_image_bytes)", "image_url"
    )
