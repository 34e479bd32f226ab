"""What /openapi.json says of a route: the bodies it takes, its answer, and every status it may refuse with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from deployments.http.errors import STATUSES
from deployments.http.schemas.answers import ErrorAnswer, TEIErrorAnswer, Unauthorized
from deployments.http.tei_errors import TEI_STATUSES

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Told:
    """bodies: what the route takes, () for none. answer: the type of a 200, None for a body without JSON.

    raw: content types of a 200 that are not JSON. tei: whether refusals may be
    in TEI's words; only: whether all are. statuses: what a route without a body
    may answer beside 200 and 401.
    """

    bodies: Sequence[type[BaseModel]] = ()
    answer: Any = None
    raw: Sequence[str] = ()
    tei: bool = False
    vllm: bool = True
    statuses: Sequence[int] = ()


def describe(app: FastAPI, told: dict[tuple[str, str], Told]) -> None:
    """Makes the app's /openapi.json that of the table: by method and path."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _written(app, told)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to replace it


def _written(app: FastAPI, told: dict[tuple[str, str], Told]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models: set[type[BaseModel]] = {body for one in told.values() for body in one.bodies} | {
        ErrorAnswer,
        TEIErrorAnswer,
        Unauthorized,
    }
    inputs: list[Any] = [(model, "validation") for model in sorted(models, key=str)]
    _, definitions = models_json_schema(inputs, ref_template=_REF)
    schemas: dict[str, Any] = definitions.get("$defs", {})
    for (method, path), one in told.items():
        operation = document["paths"][path][method.lower()]
        if one.bodies:
            operation["requestBody"] = {"required": True, "content": _json(_any_of([_ref(b) for b in one.bodies]))}
        operation["responses"] = _responses(one, schemas)
    document["components"] = {"schemas": dict(sorted(schemas.items()))}
    return document


def _responses(one: Told, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {} for kind in one.raw}
    if one.answer is not None:
        schema = TypeAdapter(one.answer).json_schema(ref_template=_REF, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        content |= _json(schema)
    good: dict[str, Any] = {"description": "OK"} | ({"content": content} if content else {})
    found = {"200": good, "401": {"description": "Unauthorized", "content": _json(_ref(Unauthorized))}}
    statuses: dict[int, list[dict[str, Any]]] = {status: [] for status in one.statuses}
    if one.bodies and one.vllm:
        for status, _ in STATUSES.values():
            statuses.setdefault(status, [_ref(ErrorAnswer)])
    if one.bodies and one.tei:
        for status, _ in TEI_STATUSES.values():
            shapes = statuses.setdefault(status, [])
            if _ref(TEIErrorAnswer) not in shapes:
                shapes.append(_ref(TEIErrorAnswer))
    for status, shapes in sorted(statuses.items()):
        refusal: dict[str, Any] = {"description": "refused"}
        found[str(status)] = refusal | ({"content": _json(_any_of(shapes))} if shapes else {})
    return found


def _any_of(shapes: list[dict[str, Any]]) -> dict[str, Any]:
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
