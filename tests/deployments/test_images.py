"""Images over HTTP, beside texts: every route that reads texts reads them too, and bad ones are refused by name."""

import asyncio
import base64
import io
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from deployments.admission import Admission
from deployments.engines import ServeEngines
from deployments.http.app import build_http
from deployments.http.uploads import Uploads
from pooling.images import ImageLimits, decode_data_uri
from pooling.media import Content, Conversation, Image, ProcessedImage
from pooling.request import PackedBatch, PoolingRequest
from tests.deployments.local import LocalRouter
from tests.deployments.site import Site, fetcher, served_site
from tests.encoded import bomb, data_uri, drawn, encoded

EMBED, POOL, CLASSIFY, SCORE, RERANK, COHERE = (
    "/v1/embeddings",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/v2/embed",
)
CAT, DOG = data_uri(encoded(drawn(1))), data_uri(encoded(drawn(2), "JPEG", quality=95), "image/jpeg")


@pytest.fixture
def router(pictured: LocalRouter) -> LocalRouter:
    return pictured


@pytest.fixture
async def app(router: LocalRouter) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_http(router), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        yield client


@pytest.fixture
async def site(router: LocalRouter, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A server that the service may fetch images from."""
    async with served_site() as site:
        monkeypatch.setattr(router._images, "_fetcher", fetcher(site))
        yield site


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def says(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


async def send(app: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await app.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def expected(router: LocalRouter, model: str, *inputs: Any, task: str = "embed", special: bool = True) -> Any:
    """What the engine says of nouns, without HTTP."""
    request = PoolingRequest(inputs, task, add_special_tokens=special)
    return (await router.answer(router.pick(model, task), request, None)).output.data


def picture(seed: int) -> Image:
    return Image.of(drawn(seed))


async def test_messages_hold_images_as_urls_in_both_shapes(app: httpx.AsyncClient, router: LocalRouter) -> None:
    (as_noun,) = await expected(router, "clip", picture(1))
    for url in (CAT, {"url": CAT}, {"url": CAT, "detail": "low"}):
        answer = await send(app, EMBED, model="clip", messages=says(image(url)))
        np.testing.assert_array_equal(np.float32(answer["data"][0]["embedding"]), as_noun)
        assert answer["usage"]["prompt_tokens"] == 17  # (32 / 8)² patches and the class token
    pooled = await send(app, POOL, model="clip", messages=says(image(CAT)))
    np.testing.assert_array_equal(np.float32(pooled["data"][0]["data"]), as_noun)
    other = await send(app, EMBED, model="clip", messages=says(image(DOG)))
    assert abs(np.float32(other["data"][0]["embedding"]) - as_noun).max() > 1e-2


async def test_conversations_of_texts_and_images_stand_side_by_side(
    app: httpx.AsyncClient, router: LocalRouter
) -> None:
    both = says(text("ba"), image(CAT), text("be"), image(DOG))
    batch = [both, says(text("bi")), [{"role": "system", "content": "bo"}, *says(image(CAT))]]
    answer = await send(app, EMBED, model="qwen", messages=batch, add_generation_prompt=True)
    dog = (await app.post("/tokenize", json={"model": "qwen", "messages": both, "add_generation_prompt": True})).json()
    decoded = decode_data_uri(DOG, ImageLimits())
    conversations = [
        Conversation((Content(("ba", picture(1), "be", decoded)),), True),
        Conversation((Content(("bi",)),), True),
        Conversation((Content(("bo",), "system"), Content((picture(1),))), True),
    ]
    rows = await expected(router, "qwen", *conversations, special=False)
    np.testing.assert_allclose(np.float32([one["embedding"] for one in answer["data"]]), rows, atol=1e-6)
    batched = await router.pick("qwen", None).tokenize(PoolingRequest(conversations))
    assert answer["usage"]["prompt_tokens"] == batched.tokens
    assert dog["tokens"] == batched.ids[: batched.lengths[0]].tolist()


async def test_a_text_said_to_a_model_without_a_template_is_that_text(app: httpx.AsyncClient) -> None:
    as_input = await send(app, EMBED, model="clip", input="ba be")
    for content in ("ba be", [text("ba be")]):
        said = await send(app, EMBED, model="clip", messages=[{"role": "user", "content": content}])
        assert (said["data"], said["usage"]) == (as_input["data"], as_input["usage"])
    bare = await send(app, EMBED, model="clip", messages=says(text("ba be")), add_special_tokens=False)
    assert bare["usage"]["prompt_tokens"] == as_input["usage"]["prompt_tokens"] - 2


async def test_an_image_is_classified(app: httpx.AsyncClient, router: LocalRouter) -> None:
    answer = await send(app, CLASSIFY, model="vit", messages=[says(image(CAT)), says(image(DOG))])
    rows = await expected(router, "vit", picture(1), task="classify")
    np.testing.assert_allclose(answer["data"][0]["probs"], rows[0], atol=1e-6)
    assert answer["data"][0]["label"] in ("cat", "dog", "tree", "house", "none of these")
    assert len(answer["data"]) == 2


async def test_towers_compare_texts_and_images(app: httpx.AsyncClient, router: LocalRouter) -> None:
    content = [{"content": [image(CAT)]}, {"content": [image(DOG)]}, "ba", {"content": [text("ba")]}]
    vectors = await expected(router, "clip", "ba", picture(1))
    cosine = float(vectors[0] @ vectors[1])
    answer = await send(app, SCORE, model="clip", queries="ba", documents=content)
    scores = [one["score"] for one in answer["data"]]
    assert scores[0] == pytest.approx(cosine, abs=1e-5)
    assert scores[2] == scores[3] == pytest.approx(1, abs=1e-5)
    for names in (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "items")):
        again = await send(app, SCORE, model="clip", **dict(zip(names, ("ba", content), strict=True)))
        assert again["data"] == answer["data"]
    found = await send(
        app,
        RERANK,
        model="clip",
        query={"content": [image(CAT)]},
        documents=[*content[1:], content[0]],
        return_documents=True,
    )
    assert found["results"][0]["index"] == 3
    assert found["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert found["results"][0]["document"] == {"text": None, "multi_modal": [image(CAT)]}
    texts = {one["index"]: one["document"] for one in found["results"]}
    assert texts[1] == {"text": "ba", "multi_modal": None}


@pytest.mark.parametrize("choice", [{}, {"return_documents": None}])
async def test_images_are_sent_back_only_if_they_are_asked_for(app: httpx.AsyncClient, choice: dict[str, Any]) -> None:
    documents = ["ba", {"content": [text("be")]}, {"content": [text("bi"), image(CAT)]}, {"content": [image(CAT)]}]
    found = await send(app, RERANK, model="reranker", query="bo", documents=documents, **choice)
    assert {one["index"]: one["document"] for one in found["results"]} == {
        0: {"text": "ba", "multi_modal": None},
        1: {"text": None, "multi_modal": [text("be")]},
        2: {"text": None, "multi_modal": [text("bi")]},
        3: {"text": None, "multi_modal": []},
    }


async def test_a_limit_on_the_tokens_of_a_text_leaves_images_whole(app: httpx.AsyncClient) -> None:
    documents = ["ba be bi bo ba be", {"content": [image(CAT)]}]
    whole = await send(app, SCORE, model="clip", queries="ba", documents=documents)
    cut = await send(app, SCORE, model="clip", queries="ba", documents=documents, max_tokens_per_doc=2)
    assert cut["data"][1] == whole["data"][1]
    assert cut["data"][0] != whole["data"][0]
    assert cut["usage"]["prompt_tokens"] < whole["usage"]["prompt_tokens"]


async def test_a_reranker_reads_texts_and_images_together(app: httpx.AsyncClient, router: LocalRouter) -> None:
    documents = [{"content": [text("ba"), image(CAT)]}, "ba be", {"content": [image(CAT)]}]
    answer = await send(app, RERANK, model="reranker", query={"content": [text("bo"), image(CAT)]}, documents=documents)
    query = Content(("bo", picture(1)))
    pairs = [(query, Content(("ba", picture(1)))), (query, "ba be"), (query, Content((picture(1),)))]
    rows = await expected(router, "reranker", *pairs, task="score")
    scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
    np.testing.assert_allclose([scores[index] for index in range(3)], rows[:, 0], atol=1e-6)


async def test_cohere_takes_images_and_mixed_inputs_and_bills_them_apart(
    app: httpx.AsyncClient, router: LocalRouter
) -> None:
    answer = await send(app, COHERE, model="clip", images=[CAT, DOG])
    (row,) = await expected(router, "clip", picture(1))
    np.testing.assert_allclose(np.float32(answer["embeddings"]["float"][0]), row, atol=1e-6)
    assert answer["meta"]["billed_units"] == {"input_tokens": 0, "image_tokens": 34}
    mixed = [{"content": [text("ba"), image({"url": CAT})]}, {"content": [text("be")]}]
    answer = await send(app, COHERE, model="qwen", inputs=mixed)
    rows = await expected(router, "qwen", Content(("ba", picture(1))), Content(("be",)))
    np.testing.assert_allclose(np.float32(answer["embeddings"]["float"]), rows, atol=1e-6)
    billed = answer["meta"]["billed_units"]
    tokenized = await router.pick("qwen", None).tokenize(
        PoolingRequest([Content(("ba", picture(1))), Content(("be",))])
    )
    assert tokenized.media is not None
    assert billed["image_tokens"] == tokenized.media[0][0].tokens > 0
    assert billed["image_tokens"] + billed["input_tokens"] == tokenized.tokens
    texts = await send(app, COHERE, model="clip", texts=["ba"])
    assert texts["meta"]["billed_units"]["image_tokens"] == 0


@pytest.mark.parametrize("writer", ["torch", "numpy"])
async def test_an_image_may_come_embedded(app: httpx.AsyncClient, router: LocalRouter, writer: str) -> None:
    vision = router.pick("qwen", None).card.vision
    assert vision is not None
    rows = np.random.default_rng(3).standard_normal((6, vision.row)).astype(np.float32)
    grid = np.array([1, 4, 6])

    def written(array: Any) -> str:
        stream = io.BytesIO()
        torch.save(torch.tensor(array), stream) if writer == "torch" else np.save(stream, array)
        return base64.b64encode(stream.getvalue()).decode()

    part = {"type": "image_embeds", "image_embeds": {"image_embeds": written(rows), "image_grid_thw": written(grid)}}
    answer = await send(app, EMBED, model="qwen", messages=says(text("ba"), part))
    none = await send(app, EMBED, model="qwen", messages=says(text("ba")))
    assert answer["usage"]["prompt_tokens"] == none["usage"]["prompt_tokens"] + 6 + 2  # and a token on either side
    without_grid = {"type": "image_embeds", "image_embeds": written(rows)}
    response = await app.post(EMBED, json={"model": "qwen", "messages": says(without_grid)})
    assert response.status_code == 400
    assert "needs its grid" in response.json()["error"]["message"]


async def test_an_image_is_fetched_where_that_is_allowed(
    app: httpx.AsyncClient, router: LocalRouter, site: Site
) -> None:
    url = f"http://images.test:{site.port}/good"
    messages = [says(image(url)), says(image(url))]
    answer = await send(app, EMBED, model="clip", messages=messages)
    (row,) = await expected(router, "clip", Image.of(drawn()))
    for one in answer["data"]:
        np.testing.assert_array_equal(np.float32(one["embedding"]), row)
    assert site.seen == ["images.test/good"]  # once, however often it is asked for


async def test_what_is_not_to_be_cut_is_fetched_once(app: httpx.AsyncClient, site: Site) -> None:
    asked = {"model": "clip", "images": [f"http://images.test:{site.port}/good"], "truncate": "NONE"}
    assert (await app.post(COHERE, json={**asked, "max_tokens": 17})).status_code == 200
    assert site.seen == ["images.test/good"]
    refused = await app.post(COHERE, json={**asked, "max_tokens": 16})
    assert refused.status_code == 400
    assert "Input of 17 tokens exceeds max_tokens=16 with truncate=NONE" in refused.json()["error"]["message"]


BAD = [
    (data_uri(bomb()), 413, "more than 89478485 pixels, which is the most allowed (max_image_pixels)"),
    (data_uri(encoded(drawn())[:300]), 422, "an image is cut off or damaged (PNG)"),
    (data_uri(bytes(100)), 422, "no format that is read; allowed are PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    (data_uri(encoded(drawn()), "image/jpeg"), 422, "is said to be image/jpeg, but it is image/png"),
    (data_uri(encoded(drawn()), "text/html"), 422, "is said to be 'text/html'"),
    (data_uri(b""), 422, "an image has no bytes"),
    ("data:image/png,abc", 400, "must read data:TYPE;base64,DATA"),
    ("data:image/png;base64,****", 400, "is not base64"),
    ("https://images.test/a.png", 400, "fetches no images by URL (media.allowed_domains is empty)"),
    ("file:///etc/passwd", 400, "has the scheme 'file'; allowed are http, https and data"),
    ("/etc/passwd", 400, "has the scheme ''"),
]


@pytest.mark.parametrize(("url", "status", "said"), BAD, ids=[said[:20] for _, _, said in BAD])
async def test_a_bad_image_is_refused_on_every_route(app: httpx.AsyncClient, url: str, status: int, said: str) -> None:
    good = image(CAT)
    bodies: list[tuple[str, dict[str, Any]]] = [
        (EMBED, {"model": "clip", "messages": says(image(url))}),
        (POOL, {"model": "qwen", "messages": says(text("ba"), image({"url": url}))}),
        (CLASSIFY, {"model": "vit", "messages": says(image(url))}),
        (SCORE, {"model": "clip", "queries": "ba", "documents": {"content": [image(url)]}}),
        (RERANK, {"model": "reranker", "query": {"content": [image(url)]}, "documents": ["ba"]}),
        (COHERE, {"model": "clip", "images": [url]}),
        (COHERE, {"model": "qwen", "inputs": [{"content": [text("ba"), image(url)]}]}),
        ("/invocations", {"model": "clip", "messages": says(image(url))}),
        ("/tokenize", {"model": "qwen", "messages": says(image(url))}),
        # One bad among good ones is named; a text in the request beside is answered.
        (EMBED, {"model": "clip", "messages": [says(good), says(image(DOG)), says(image(url))]}),
    ]
    for path, body in bodies:
        refused, text_beside = await asyncio.gather(
            app.post(path, json=body), app.post(EMBED, json={"model": "clip", "input": "ba"})
        )
        assert refused.status_code == status, (path, refused.text)
        error = refused.json()["error"]
        assert said in error["message"]
        assert error["code"] == status
        assert text_beside.status_code == 200
    if url.startswith("data:"):
        assert error["message"].startswith("image 3 of 3: ")


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("to?url=http://127.0.0.1:{port}/good", 400, "images are not fetched from '127.0.0.1:"),
        ("to?url=file:///etc/passwd", 400, "has the scheme 'file'"),
        ("missing", 422, "cannot be fetched: status 404"),
        ("page", 422, "is 'text/html'; allowed is image/*"),
        ("endless", 413, "more than 100000 bytes"),
    ],
)
async def test_a_bad_url_is_refused(app: httpx.AsyncClient, site: Site, path: str, status: int, said: str) -> None:
    url = f"http://images.test:{site.port}/{path.format(port=site.port)}"
    response = await app.post(EMBED, json={"model": "clip", "messages": says(image(url))})
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]


async def test_one_pixel_is_an_image(app: httpx.AsyncClient) -> None:
    answer = await send(app, EMBED, model="clip", messages=says(image(data_uri(encoded(drawn(width=1, height=1))))))
    assert np.isfinite(answer["data"][0]["embedding"]).all()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "qwen", "messages": says(*[image(CAT)] * 50)}, "At most 8 image(s) may be provided in one prompt"),
        ({"model": "clip", "messages": says(image(CAT), image(DOG))}, "At most 1 image(s) may be provided in one prom"),
        ({"model": "clip", "messages": says(text("ba"), image(CAT))}, "reads a text or an image at a time"),
        ({"model": "minilm", "messages": says(image(CAT))}, "At most 0 image(s) may be provided in one prompt"),
        ({"model": "clip", "messages": []}, "Cannot apply chat template to an empty conversation"),
        ({"model": "clip", "messages": [says(image(CAT)), []]}, "Cannot apply chat template to an empty conversation"),
        (
            {"model": "clip", "messages": says({"type": "video_url", "video_url": {"url": "x"}})},
            "of type 'video_url'; a",
        ),
        ({"model": "clip", "messages": says({"type": "image_url"})}, "a part of type 'image_url' has no image_url"),
        ({"model": "clip", "messages": says({"type": "image_url", "image_url": {"uri": CAT}})}, "'missing'"),
        ({"model": "clip", "messages": says(image(CAT)), "chat_template": "x"}, "Refused request with untrusted chat"),
        ({"model": "clip", "messages": says({"type": "image_embeds", "image_embeds": "eA=="})}, "neither a tensor"),
        (
            {"model": "clip", "messages": says(image(CAT)), "mm_processor_kwargs": {}},
            "mm_processor_kwargs are disabled",
        ),
        ({"model": "qwen", "messages": says(text("ba" * 1_000_001))}, "characters, but at most 1000000 are allowed"),
    ],
)
async def test_what_is_no_fit_for_the_model_is_refused(app: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    response = await app.post(EMBED, json=body)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]


async def test_models_of_texts_say_so_in_the_words_of_each_route(app: httpx.AsyncClient) -> None:
    scored = await app.post(SCORE, json={"model": "minilm", "queries": "ba", "documents": {"content": [image(CAT)]}})
    cohere = await app.post(COHERE, json={"model": "minilm", "images": [CAT]})
    assert (scored.status_code, cohere.status_code) == (400, 400)
    assert scored.json()["error"]["message"] == "MultiModalParam is not supported for BertModel"
    assert "At most 0 image(s)" in cohere.json()["error"]["message"]


async def test_the_pictures_of_a_request_are_counted_together(
    app: httpx.AsyncClient, router: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = router._images._config.model_copy(update={"max_request_pixels": 3 * 40 * 30})
    monkeypatch.setattr(router._images, "_config", config)
    uris = [data_uri(encoded(drawn(seed))) for seed in range(4)]
    await send(app, COHERE, model="clip", images=[*uris[:3], *uris[:3]])  # each is decoded once
    response = await app.post(COHERE, json={"model": "clip", "images": uris})
    assert response.status_code == 413
    assert "more than 3600 pixels together, which is the most allowed (max_request_pixels)" in response.text


async def test_processed_images_are_queued_up_to_a_limit(
    app: httpx.AsyncClient, router: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one = 3 * 32 * 32 * 4
    monkeypatch.setattr(router._images, "queued", Admission(3 * of_one, "bytes of images"))
    go, begun = asyncio.Event(), asyncio.Event()
    real = router.engines["clip"].engine.pool

    async def slow(batch: Any) -> Any:
        if batch.media is not None:
            begun.set()
            await go.wait()
        return await real(batch)

    monkeypatch.setattr(router.engines["clip"].engine, "pool", slow)
    waiting = asyncio.ensure_future(app.post(COHERE, json={"model": "clip", "images": [CAT, CAT, DOG]}))
    await begun.wait()  # with two of the three, for equal ones travel once
    refused = await app.post(COHERE, json={"model": "clip", "images": [data_uri(encoded(drawn(s))) for s in (5, 6)]})
    assert refused.status_code == 429
    assert f"({2 * of_one} bytes of images are queued, the limit is {3 * of_one})" in refused.json()["error"]["message"]
    assert (await app.post(EMBED, json={"model": "clip", "input": "ba"})).status_code == 200
    go.set()
    assert (await waiting).status_code == 200
    assert router._images.queued.tokens == 0


async def test_images_that_wait_to_be_decoded_are_counted(
    app: httpx.AsyncClient, router: LocalRouter, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(3 * len(CAT), small=0, what="images")
    monkeypatch.setattr(router._images, "waiting", uploads)
    go, begun = asyncio.Event(), asyncio.Event()
    real = router._images._run

    async def slow(work: Any) -> Any:
        begun.set()
        await go.wait()
        return await real(work)

    monkeypatch.setattr(router._images, "_run", slow)
    waiting = asyncio.ensure_future(app.post(COHERE, json={"model": "clip", "images": [CAT, CAT]}))
    await begun.wait()
    assert uploads.bytes == 2 * len(CAT)
    fetched = f"http://images.test:{site.port}/endless"
    for images in ([CAT, CAT], [fetched]):
        refused = await app.post(COHERE, json={"model": "clip", "images": images})
        assert refused.status_code == 429, refused.text
        assert f"images of {2 * len(CAT)} bytes are being read" in refused.json()["error"]["message"]
        assert uploads.bytes == 2 * len(CAT)
    assert (await app.post(EMBED, json={"model": "clip", "input": "ba"})).status_code == 200
    go.set()
    assert (await waiting).status_code == 200
    assert uploads.bytes == 0


def test_images_travel_by_reference_where_they_are_large(router: LocalRouter) -> None:
    """Serve's messages have room for 4 MiB, which the ids of images never fill."""
    chosen: list[bool] = []

    class Handle:
        def __init__(self, by_reference: bool = False) -> None:
            self._by_reference = by_reference

        def options(self, _by_reference: bool = False, **_: Any) -> "Handle":
            return Handle(_by_reference)

        @property
        def pool(self) -> "Handle":
            return self

        def remote(self, _: Any) -> None:
            chosen.append(self._by_reference)

    engines = ServeEngines(Handle(), router.pick("clip", None).card)  # type: ignore[arg-type]
    small, large = (ProcessedImage(b"", np.zeros((1, 3, side, side), np.float32), 1) for side in (32, 500))
    for images in ((small, small), (small, large), (large, large)):
        engines.send(PackedBatch(np.zeros(2, np.int32), np.ones(2, np.int32), media=tuple((one,) for one in images)))
    assert chosen == [False, True, True]


async def test_a_text_does_not_wait_for_the_pictures_before_it(
    app: httpx.AsyncClient, router: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that take as long as they like, on every thread that they have."""
    go, begun = asyncio.Event(), asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    real = router._images._decoded

    def slow(*given: Any) -> Any:
        loop.call_soon_threadsafe(begun.release)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        return real(*given)

    monkeypatch.setattr(router._images, "_decoded", slow)
    uris = [data_uri(encoded(drawn(seed))) for seed in range(20)]
    pictures = [asyncio.ensure_future(app.post(COHERE, json={"model": "clip", "images": uris})) for _ in range(6)]
    await begun.acquire()
    long = ["ba be bi " * 8 + f"{number:08b}".replace("0", "ba ").replace("1", "be ") for number in range(200)]
    for given in ("ba", long):
        assert (await app.post(EMBED, json={"model": "clip", "input": given})).status_code == 200
    assert not any(one.done() for one in pictures)
    go.set()
    assert [one.status_code for one in await asyncio.gather(*pictures)] == [200] * 6


async def test_no_malformed_part_is_a_fault_of_ours(app: httpx.AsyncClient) -> None:
    draw = random.Random(7)
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        1e308,
        "",
        "\x00",
        "data:",
        CAT,
        CAT[:50],
        "http://[",
        [],
        {},
        [[]],
        {"url": 1},
    ]
    statuses = []
    for _ in range(400):
        part: Any = draw.choice(
            [text("ba"), image(CAT), image({"url": DOG}), {"type": "image_embeds", "image_embeds": ""}]
        )
        if draw.random() < 0.7:
            part = {**part, draw.choice([*part, "text", "image_url", "image_embeds"]): draw.choice(odd)}
        parts = draw.choice([[part], [text("be"), part], [part, image(CAT)], part])
        model = draw.choice(["clip", "qwen", "vit", "minilm", "reranker", "colqwen"])
        path, body = draw.choice(
            [
                (EMBED, {"messages": [{"role": "user", "content": parts}]}),
                (POOL, {"messages": [[{"role": "user", "content": parts}]]}),
                (CLASSIFY, {"input": [{"role": "user", "content": parts}]}),
                (SCORE, {"queries": "ba", "documents": {"content": parts}}),
                (RERANK, {"query": {"content": parts}, "documents": ["ba", {"content": parts}]}),
                (COHERE, {"inputs": [{"content": parts}]}),
                (COHERE, {"images": [draw.choice(odd)]}),
                ("/tokenize", {"messages": [{"role": "user", "content": parts}]}),
            ]
        )
        response = await app.post(path, json={"model": model, **body})
        assert response.status_code in (200, 400, 413, 422, 501), (path, model, body, response.text[:500])
        assert not any(mark in response.text for mark in ("Traceback", "site-packages", ".py", "0x7f", "BytesIO"))
        statuses.append(response.status_code)
    assert statuses.count(400) > 100
    assert statuses.count(200) > 20
