"""Images by URL: from allowed hosts at public addresses only, within limits of size and time, however they redirect."""

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments import fetch
from deployments.addresses import is_public
from deployments.fetch import Fetcher
from deployments.media import MediaConfig
from pooling.config import parse_settings
from pooling.errors import ConfigError, FetchFailed, FetchRefused, ImageTooLarge, PoolingError
from tests.deployments.site import INNER, OPEN, PNG, Names, Site, fetcher, served_site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with served_site() as site:
        yield site


async def refused(fetcher: Fetcher, *urls: str, max_bytes: int = 1_000_000) -> PoolingError:
    with pytest.raises(PoolingError) as refusal:
        await fetcher.fetch(urls, max_bytes)
    return refusal.value


@pytest.mark.parametrize("path", ["images.test:{port}/good", "images.test:{port}/untyped", "a.cdn.test:{port}/good"])
async def test_an_allowed_image_is_fetched(site: Site, path: str) -> None:
    assert await fetcher(site).fetch([f"http://{path.format(port=site.port)}"], 1_000_000) == [PNG]


async def test_images_come_in_the_order_in_which_they_are_asked(site: Site) -> None:
    base = f"http://images.test:{site.port}"
    names = ["together", "good", "together"]
    assert await fetcher(site).fetch([f"{base}/{name}" for name in names], 1_000_000) == [PNG] * 3


async def test_redirects_are_followed_within_the_list(site: Site) -> None:
    base = f"http://images.test:{site.port}"
    url = f"{base}/to?url=http://a.cdn.test:{site.port}/to?url=/good"
    assert await fetcher(site).fetch([url], 1_000_000) == [PNG]
    assert site.seen == ["images.test/to", "a.cdn.test/to", "a.cdn.test/good"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"http://{OPEN}:{{port}}/good", "images are not fetched from '127.0.0.1:"),
        ("http://169.254.169.254/latest/meta-data", "not fetched from '169.254.169.254'"),
        ("http://[::1]:{port}/good", "not fetched from '::1:"),
        ("http://other.test:{port}/good", "not fetched from 'other.test:"),
        ("file:///etc/passwd", "has the scheme 'file'"),
        ("ftp://images.test:{port}/good", "has the scheme 'ftp'"),
        ("http://user:word@images.test:{port}/good", "user name or a password"),
        ("http://images.test:{port}@other.test/", "user name or a password"),
        ("http://inner.cdn.test:{port}/good", "'inner.cdn.test': its address is not a public one"),
    ],
)
async def test_every_redirect_is_judged_anew(site: Site, target: str, said: str) -> None:
    names = Names(images_test=[[OPEN]], inner_cdn_test=[[INNER]])
    location = target.format(port=site.port)
    error = await refused(fetcher(site, names), f"http://images.test:{site.port}/to?url={location}")
    assert isinstance(error, FetchRefused)
    assert said in error.detail
    assert site.seen == ["images.test/to"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://images.test/a.png",
        "gopher://images.test/",
        "/etc/passwd",
        "images.test/a.png",
        "",
        "http://",
        "http:///a.png",
        "http://[::1",
        "http://localhost/a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://images.test/a.png",  # another port than is allowed
        "http://images.test.evil.test:{port}/good",
        "http://evilcdn.test:{port}/good",
        "http://cdn.test:{port}/good",  # *. is what is below it
        "http://images.test:{port}@evil.test:{port}/good",
        "http://evil.test:{port}\\@images.test:{port}/good",
        "http://evil.test:{port}#@images.test:{port}/good",
        "http://images.test:99999999/good",
    ],
)
async def test_what_is_not_allowed_is_never_looked_up(site: Site, url: str) -> None:
    names = Names()
    error = await refused(fetcher(site, names), url.format(port=site.port))
    assert isinstance(error, FetchRefused)
    assert not names.asked
    assert not site.seen


async def test_without_allowed_domains_nothing_is_fetched(site: Site) -> None:
    error = await refused(fetcher(site, allowed_domains=[]), f"http://images.test:{site.port}/good")
    assert isinstance(error, FetchRefused)
    assert "fetches no images by URL (media.allowed_domains is empty); send them as data URIs" in error.detail


@pytest.mark.parametrize(
    "host", ["a..cdn.test", ".cdn.test", "a" * 70 + ".cdn.test", "xn--.cdn.test", "xn--a-.cdn.test"]
)
async def test_a_host_that_is_no_name_is_refused(site: Site, host: str) -> None:
    names = Names(images_test=[[OPEN]])
    url = f"http://{host}:{site.port}/good"
    error = await refused(fetcher(site, names), url)
    assert isinstance(error, FetchRefused)
    assert error.detail == "an image URL cannot be read as one"
    assert not names.asked
    error = await refused(fetcher(site, names), f"http://images.test:{site.port}/to?url={url}")
    assert isinstance(error, FetchRefused)
    assert error.detail == "the image at images.test redirects to what is no URL"


async def test_a_host_that_the_resolver_cannot_read_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any) -> Any:
        raise UnicodeError("label empty or too long")

    names = Names()
    monkeypatch.setattr(names, "resolve", unreadable)
    error = await refused(fetcher(site, names), f"http://images.test:{site.port}/good")
    assert isinstance(error, FetchRefused)
    assert error.detail == "an image URL cannot be read as one"


@pytest.mark.parametrize(
    ("length", "settings", "said"),
    [
        (100, {"allowed_domains": []}, "fetches no images by URL"),
        (8_193, {}, "an image URL has 8193 characters; allowed are 8192"),
        (8_193, {"allowed_domains": []}, "an image URL has 8193 characters; allowed are 8192"),
    ],
)
async def test_what_is_refused_as_a_text_is_never_parsed(
    site: Site, monkeypatch: pytest.MonkeyPatch, length: int, settings: dict[str, Any], said: str
) -> None:
    """For what is parsed is kept in memory."""
    parsed: list[Any] = []
    monkeypatch.setattr(fetch, "URL", parsed.append)
    error = await refused(fetcher(site, **settings), f"http://images.test:{site.port}/".ljust(length, "x"))
    assert isinstance(error, FetchRefused)
    assert said in error.detail
    assert not parsed


async def test_a_url_of_the_most_characters_is_fetched(site: Site) -> None:
    url = f"HTTP://images.test:{site.port}/good?".ljust(8_192, "x")
    assert await fetcher(site).fetch([url], 1_000_000) == [PNG]


async def test_one_inner_address_of_a_name_refuses_it(site: Site) -> None:
    for addresses in ([INNER], [OPEN, INNER], [INNER, OPEN]):
        names = Names(images_test=[addresses])
        error = await refused(fetcher(site, names), f"http://images.test:{site.port}/good")
        assert "its address is not a public one" in error.detail
    assert not site.seen


async def test_the_address_that_was_judged_is_the_one_that_is_connected_to(site: Site) -> None:
    """A name that answers an open address first and an inner one from then on."""
    names = Names(images_test=[[OPEN]], rebound_test=[[OPEN], [INNER]])
    one = fetcher(site, names)
    url = f"http://rebound.test:{site.port}/good"
    assert await one.fetch([url], 1_000_000) == [PNG]
    assert names.asked["rebound.test"] == 1
    assert "not a public one" in (await refused(one, url)).detail


async def test_a_real_name_server_is_asked_without_one_of_our_own(site: Site) -> None:
    config = MediaConfig(allowed_domains=["images.invalid"])
    error = await refused(Fetcher(config), "https://images.invalid/a.png")
    assert isinstance(error, FetchFailed)
    assert error.detail == "the image at images.invalid cannot be fetched: the host does not answer"


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("missing", FetchFailed, "the image at images.test cannot be fetched: status 404"),
        ("page", FetchFailed, "what is at images.test is 'text/html'; allowed is image/*"),
        ("packed", FetchFailed, "comes packed"),
        ("nowhere", FetchFailed, "redirects to nowhere"),
        ("round", FetchFailed, "redirects more than 3 times (max_redirects)"),
        ("to?url=http://[", FetchRefused, "redirects to what is no URL"),
        ("endless", ImageTooLarge, "more than 100000 bytes, which is the most allowed (max_image_bytes)"),
        ("declared", ImageTooLarge, "more than 100000 bytes"),
    ],
)
async def test_what_is_no_image_is_told_apart(site: Site, path: str, error: type[PoolingError], said: str) -> None:
    found = await refused(fetcher(site), f"http://images.test:{site.port}/{path}")
    assert isinstance(found, error)
    assert said in found.detail
    assert "secret" not in found.detail


@pytest.mark.parametrize("path", ["slow", "drip"])
async def test_an_image_has_its_time_as_a_whole(site: Site, path: str) -> None:
    found = await refused(fetcher(site, fetch_timeout_s=0.2), f"http://images.test:{site.port}/{path}")
    assert found.detail == "the image at images.test did not come within 0.2 s (fetch_timeout_s)"


async def test_a_host_that_is_not_there_is_said_to_be_silent(site: Site) -> None:
    with socket.create_server((OPEN, 0)) as closed:
        port = closed.getsockname()[1]
    config = MediaConfig(allowed_domains=[f"images.test:{port}"])
    one = Fetcher(config, Names(images_test=[[OPEN]]), reaches=lambda _: True)
    assert "the host does not answer" in (await refused(one, f"http://images.test:{port}/good")).detail


async def test_the_images_of_a_request_are_counted_together(site: Site) -> None:
    urls = [f"http://images.test:{site.port}/good"] * 3
    assert len(await fetcher(site).fetch(urls, 3 * len(PNG))) == 3
    found = await refused(fetcher(site), *urls, max_bytes=3 * len(PNG) - 1)
    assert isinstance(found, ImageTooLarge)
    assert f"more than {3 * len(PNG) - 1} bytes together" in found.detail


async def test_not_more_are_fetched_at_once_than_allowed(site: Site) -> None:
    await fetcher(site, max_fetches=3).fetch([f"http://images.test:{site.port}/together"] * 12, 1_000_000)
    assert site.most_at_once == 3


PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::127.0.0.1", "fec0::1", "", "host",
]  # fmt: skip


def test_which_addresses_are_public() -> None:
    assert [address for address in PUBLIC if not is_public(address)] == []
    assert [address for address in NOT_PUBLIC if is_public(address)] == []


@pytest.mark.parametrize(
    "domain",
    ["", "*", "http://images.test", "images.test/path", "127.0.0.1", "127.1", "::1", "IMAGES.test", "*.*.test",
     "a*.test", "test", "images.test:", "images..test", "*.", "*.test.", "images.test\n"],
)  # fmt: skip
def test_what_is_no_domain_is_refused_at_the_start(domain: str) -> None:
    with pytest.raises(ConfigError, match="allowed are names in lower case such as"):
        parse_settings(MediaConfig, {"allowed_domains": [domain]}, "media")
