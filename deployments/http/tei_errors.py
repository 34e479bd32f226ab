"""Refusals as TEI's clients know them: its body, and its statuses where they differ from vLLM's."""

from starlette.responses import Response

from deployments.http.errors import (
    RETRY_AFTER_S,
    BodyTooLarge,
    MalformedBody,
    WrongContentType,
    WrongShape,
    dumps,
)
from pooling.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    Overloaded,
    PoolingError,
    Unavailable,
    UnknownModel,
    UnsupportedTask,
)


class EmptyInput(InvalidRequest):
    """There is nothing to read."""


# The most special class of an error decides, as in deployments/http/errors.py.
TEI_STATUSES: dict[type[PoolingError], tuple[int, str]] = {
    MalformedBody: (400, "Validation"),
    WrongContentType: (415, "Validation"),
    WrongShape: (422, "Validation"),
    EmptyInput: (400, "Empty"),
    InvalidRequest: (422, "Validation"),
    UnsupportedTask: (424, "Backend"),
    UnknownModel: (404, "Validation"),
    BodyTooLarge: (413, "Validation"),
    Overloaded: (429, "Overloaded"),
    EngineFailure: (424, "Backend"),
    PoolingError: (500, "Backend"),
    Unavailable: (503, "Unhealthy"),
    DeadlineExceeded: (504, "Backend"),
}


def tei_error_response(error: PoolingError) -> Response:
    """Tells a client of TEI's what was wrong."""
    status, kind = next(TEI_STATUSES[each] for each in type(error).__mro__ if each in TEI_STATUSES)
    message = "Model is overloaded" if kind == "Overloaded" else error.detail
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(dumps({"error": message, "error_type": kind}), status, headers, "application/json")
