"""The parts of the HTTP surface that need no cluster: the table of errors, encoding, reading what was given."""

import json
from typing import Any

import numpy as np
import pytest

from deployments.http import errors as http_errors
from deployments.http.body import _brief
from deployments.http.encode import _PIECE_BYTES, Encoding, Listing, Wire, encode
from deployments.http.errors import STATUSES, error_response, status_of
from deployments.inputs import as_inputs
from pooling import errors
from pooling.errors import PoolingError
from pooling.request import PooledOutput

LISTING = Listing({"id": "embd-1", "model": "m"}, "embedding", "embedding", prompt_tokens=9)
KINDS = [
    kind
    for module in (errors, http_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, PoolingError)
]


@pytest.mark.parametrize("kind", sorted(set(KINDS), key=lambda kind: kind.__name__))
def test_every_error_has_a_status_and_a_body_in_one_shape(kind: type[PoolingError]) -> None:
    response = error_response(kind("what happened", "field"))
    body = json.loads(response.body)["error"]
    assert body == {"message": "what happened", "type": status_of(kind(""))[1], "param": "field", "code": body["code"]}
    assert response.status_code == body["code"]
    assert 400 <= body["code"] < 600


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InvalidRequest, 400),
        (errors.InputTooLong, 400),
        (errors.UnsupportedTask, 400),
        (errors.UnknownModel, 404),
        (errors.Overloaded, 429),
        (errors.NonFiniteResult, 500),
        (errors.Unavailable, 503),
        (errors.EngineDead, 503),
        (errors.DeadlineExceeded, 504),
        (http_errors.ApiNotServed, 501),
        (http_errors.BodyTooLarge, 413),
        (http_errors.MalformedBody, 400),
    ],
)
def test_the_statuses_are_those_that_are_promised(kind: type[PoolingError], status: int) -> None:
    assert status_of(kind("")) == (status, STATUSES.get(kind, status_of(kind("")))[1])


def test_an_error_that_is_none_of_ours_tells_nothing_of_itself() -> None:
    response = error_response(OSError("/secret/path: connection to 10.0.0.1 refused"))
    assert response.status_code == 500
    assert b"secret" not in response.body


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_pass_later_says_when(status: int) -> None:
    kind = next(kind for kind, (code, _) in STATUSES.items() if code == status)
    assert error_response(kind("")).headers["retry-after"] == "1"


@pytest.mark.parametrize("rows", [1, 2, 3_000])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_what_is_encoded_in_pieces_is_whole_and_in_order(rows: int, encoding: Encoding) -> None:
    data = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    assert rows < 3_000 or data.nbytes > 4 * _PIECE_BYTES
    body = json.loads((await encode(LISTING, PooledOutput(data), Wire(encoding))).body)
    assert (body["id"], body["usage"]["total_tokens"]) == ("embd-1", 9)
    assert [item["index"] for item in body["data"]] == list(range(rows))
    vectors = [decoded(item["embedding"]) for item in body["data"]]
    np.testing.assert_array_equal(vectors, data)


async def test_a_token_task_has_one_row_for_each_token() -> None:
    output = PooledOutput(np.arange(10, dtype=np.float32).reshape(5, 2), np.array([2, 3], np.int32))
    body = json.loads((await encode(LISTING, output, Wire("float"))).body)
    assert [item["embedding"] for item in body["data"]] == [[[0, 1], [2, 3]], [[4, 5], [6, 7], [8, 9]]]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("text", 1),
        ([1, 2], 1),
        (["a", "b"], 2),
        ([[1], [2, 3]], 2),
        (np.array([1, 2]), 1),
        ([np.array([1])], 1),
        ([], 0),
    ],
)
def test_a_text_or_a_flat_list_of_ids_is_one_input(given: Any, count: int) -> None:
    assert len(as_inputs(given)) == count


@pytest.mark.parametrize("given", [None, 3, {"a": 1}])
def test_what_is_no_list_is_refused(given: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="allowed are text, token ids, or a list of either"):
        as_inputs(given)


@pytest.mark.parametrize("given", ["x" * 10_000, list(range(10_000)), {str(key): key for key in range(10_000)}])
def test_a_message_does_not_carry_a_body_back(given: Any) -> None:
    assert len(str(_brief(given))) < 500


def decoded(given: Any) -> Any:
    import base64

    return np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else np.array(given, np.float32)
