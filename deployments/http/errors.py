"""The one table from errors to HTTP statuses, and the body that tells a client of one, in vLLM's shape."""

import logging
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from pooling.errors import (
    BadImage,
    DeadlineExceeded,
    EngineFailure,
    FetchFailed,
    ImageTooLarge,
    InvalidRequest,
    Overloaded,
    PoolingError,
    Unavailable,
    UnknownModel,
    UnsupportedTask,
)

log = logging.getLogger("raypool")

RETRY_AFTER_S = 1


class MalformedBody(InvalidRequest):
    """The body is not JSON, or not JSON of the shape that the route takes."""


class WrongShape(MalformedBody):
    """The body is JSON, but not of the shape that the route takes."""


class WrongContentType(MalformedBody):
    """The body does not call itself JSON."""


class BodyTooLarge(PoolingError):
    """The body has more bytes than this service takes."""


class ApiNotServed(UnsupportedTask):
    """No model that was asked for can answer on this route."""


# What the routes refuse before the router hears of it, which therefore must be counted at the door.
REFUSED_AT_THE_DOOR = (MalformedBody, BodyTooLarge, UnknownModel, ApiNotServed)

# The most special class of an error decides. PoolingError stands for what no caller can help.
STATUSES: dict[type[PoolingError], tuple[int, str]] = {
    MalformedBody: (400, "Bad Request"),
    InvalidRequest: (400, "BadRequestError"),
    UnknownModel: (404, "NotFoundError"),
    BodyTooLarge: (413, "Payload Too Large"),
    ImageTooLarge: (413, "Payload Too Large"),
    BadImage: (422, "UnprocessableEntityError"),
    FetchFailed: (422, "UnprocessableEntityError"),
    Overloaded: (429, "Too Many Requests"),
    EngineFailure: (500, "InternalServerError"),
    PoolingError: (500, "InternalServerError"),
    ApiNotServed: (501, "NotImplementedError"),
    Unavailable: (503, "Service Unavailable"),
    DeadlineExceeded: (504, "Gateway Timeout"),
}


def status_of(error: BaseException) -> tuple[int, str]:
    """The HTTP status and the `type` of the body; 500 for what is none of our errors."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return STATUSES[PoolingError]


def error_response(error: BaseException) -> Response:
    """Tells a client what was wrong, and nothing of where we run."""
    status, kind = status_of(error)
    message = error.detail if isinstance(error, PoolingError) else "the service failed in a way it does not know"
    param = error.param if isinstance(error, PoolingError) else None
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(dumps(body), status, headers, "application/json")


async def on_unknown_error(request: Request, error: Exception) -> Response:
    log.error("%s %s failed in a way that is not known", request.method, request.url.path, exc_info=error)
    return error_response(error)


def dumps(body: Any) -> bytes:
    return orjson.dumps(body)
