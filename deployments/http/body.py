"""Request bodies: read under a limit, parsed once, judged by a pydantic model; errors in vLLM's words."""

import asyncio
from collections.abc import Callable
from reprlib import Repr
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from deployments.config import Limits
from deployments.http.errors import BodyTooLarge, MalformedBody, WrongContentType, WrongShape
from deployments.http.headers import mark_arrival
from deployments.http.uploads import Upload
from pooling.errors import DeadlineExceeded

Body = TypeVar("Body", bound=BaseModel)

_MOST_ERRORS = 10
# pydantic's names for the branches of a union, which are no part of the body.
_BRANCHES = ("str", "int", "ChatMessage", "Part", "ImageUrl", "ImageRows", "TextItem", "ContentItem")
_MOST_INPUT_CHARS = 200
_MANY_FIELDS = 100  # Repr sorts all keys before it shows a few
# Of a conversation for each of the inputs that a request may have: itself, a message or two, and their parts.
_LISTS_AN_INPUT = 8
# However few inputs may be sent, one may be a long conversation.
_LEAST_LISTS = 4_096


async def read_body(request: Request, choose: Callable[[Any], type[Body]], limits: Limits) -> Body:
    """The JSON body of a request, judged by the kind that is chosen for it.

    Raises what read_json and judge raise.
    """
    data = await read_json(request, limits)
    return judge(choose(data), data)


async def read_json(request: Request, limits: Limits) -> Any:
    """The JSON body of a request.

    Raises BodyTooLarge as soon as more than is allowed has come, Overloaded if all
    bodies together are too much, DeadlineExceeded if it takes for ever to come,
    WrongContentType or MalformedBody if it is no JSON, WrongShape if it has more
    messages and parts than any request needs.
    """
    mark_arrival(request)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise WrongContentType("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")
    with request.app.state.uploads.one() as upload:
        try:
            async with asyncio.timeout(limits.request_timeout_s):
                raw = await _read(request, limits.max_body_bytes, upload)
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not come within {limits.request_timeout_s:g} s") from None
        data = _parsed(raw)
        _refuse_many(raw, data, max(_LEAST_LISTS, _LISTS_AN_INPUT * limits.max_inputs))
        return data


def _parsed(raw: bytes) -> Any:
    if not raw:
        raise _malformed(MalformedBody, [{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        place = ("body", str(error.pos))
        found = {"type": "json_invalid", "loc": place, "msg": f"JSON decode error: {error.msg}", "input": {}}
        raise _malformed(MalformedBody, [found]) from None


def _refuse_many(raw: bytes, data: Any, most: int) -> None:
    """Judging a million small objects would hold up every other request, so they are counted before."""
    if raw.count(b"{") + raw.count(b"[") <= most:  # more may stand in texts
        return
    left, count = [data] if isinstance(data, dict | list) else [], 0
    while left:
        one = left.pop()
        count += 1
        if count + len(left) > most:
            raise WrongShape(
                f"the body holds more than {most} lists and objects, such as messages and their parts, which is the "
                "most allowed; send fewer inputs at once"
            )
        values = one.values() if isinstance(one, dict) else one
        left.extend(value for value in values if isinstance(value, dict | list))


def judge(kind: type[Body], data: Any) -> Body:
    """Raises WrongShape if the data is not of that kind."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _malformed(
            WrongShape, [{**item, "loc": ("body", *_fields(item["loc"]))} for item in error.errors(include_url=False)]
        ) from None


async def _read(request: Request, max_bytes: int, upload: Upload) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        upload.add(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body has more than {max_bytes} bytes, which is the most this service takes")


def _malformed(kind: type[MalformedBody], found: list[Any]) -> MalformedBody:
    lines = [str(_shown(item)) for item in found[:_MOST_ERRORS]]
    if len(found) > _MOST_ERRORS:
        lines.append(f"... and {len(found) - _MOST_ERRORS} more")
    count = f"{len(found)} validation error{'s' if len(found) > 1 else ''}"
    return kind(f"{count}:\n  " + "\n  ".join(lines), ".".join(found[0]["loc"]))


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": item["type"], "loc": ".".join(item["loc"]), "msg": item["msg"], "input": _brief(item["input"])}


def _brief(given: Any) -> Any:
    """What was given, as it is if short: a message must not carry a body of megabytes back."""
    if isinstance(given, str):
        return given if len(given) <= _MOST_INPUT_CHARS else given[:_MOST_INPUT_CHARS] + "..."
    if isinstance(given, dict) and len(given) > _MANY_FIELDS:
        return f"an object with {len(given)} fields"
    return Repr().repr(given) if isinstance(given, dict | list) else given


def _fields(place: tuple[int | str, ...]) -> list[str]:
    """Where in the body, without the names of a union's branches."""
    return [str(part) for part in place if isinstance(part, int) or (part.isidentifier() and part not in _BRANCHES)]
