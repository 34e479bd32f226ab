"""ServePlan: what `raypool serve` is to start, judged whole before anything is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from deployments.config import ServiceConfig
from pooling.config import describe, parse_settings
from pooling.errors import ConfigError

BUILDER = "deployments.app:build"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServePlan:
    """A Serve config and what it says about us.

    services maps the route prefix of each Raypool application to its settings.
    """

    schema: ServeDeploySchema
    services: dict[str, ServiceConfig]

    @property
    def host(self) -> str:
        return str(self.schema.http_options.host)

    @property
    def port(self) -> int:
        return int(self.schema.http_options.port)


def plan_file(path: Path, host: str | None = None, port: int | None = None) -> ServePlan:
    """The plan that a Serve config file states; host and port, where given, beat the file's.

    Raises ConfigError naming the file, the key, what was given and what is allowed.
    """
    return _judge(_read(path), str(path), host, port)


def plan_model(service: dict[str, Any], host: str | None = None, port: int | None = None) -> ServePlan:
    """The plan for one ServiceConfig given as plain data, as the command line does.

    Raises ConfigError naming the setting, what was given and what is allowed.
    """
    parse_settings(ServiceConfig, service, "raypool serve")  # speaks of settings alone, not of a file that nobody wrote
    application = {"name": "raypool", "route_prefix": "/", "import_path": BUILDER, "args": service}
    return _judge({"applications": [application]}, "", host, port)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"config file {str(path)!r} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"config file {str(path)!r} is not YAML: {getattr(error, 'problem', error)}{place}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config file {str(path)!r} holds no mapping; it needs at least `applications:`")
    return data


def _judge(data: dict[str, Any], where: str, host: str | None, port: int | None) -> ServePlan:
    _refuse_unknown(data, ServeDeploySchema, where)
    http = data.get("http_options") or {}
    _refuse_unknown(http, HTTPOptionsSchema, _join(where, "http_options"))
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    # Serve's own default is every interface; ours is that nobody is let in unasked.
    data = {**data, "http_options": {"host": _LOOPBACK, **http, **given}}
    try:
        schema = ServeDeploySchema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_join(where, describe(error))) from None
    if not 0 < schema.http_options.port < 65536:
        raise ConfigError(_join(where, f"http_options.port is {schema.http_options.port}; allowed are 1 to 65535"))
    return ServePlan(schema, _services(data["applications"], schema, where))


def _services(applications: list[Any], schema: ServeDeploySchema, where: str) -> dict[str, ServiceConfig]:
    services = {}
    for index, (data, application) in enumerate(zip(applications, schema.applications, strict=True)):
        place = _join(where, f"applications.{index}")
        _refuse_unknown(data, ServeApplicationSchema, place)
        if application.import_path == BUILDER:
            services[application.route_prefix or "/"] = parse_settings(ServiceConfig, application.args, f"{place}.args")
    if not services:
        raise ConfigError(
            _join(where, f"no application has import_path {BUILDER}, so there is nothing of Raypool here")
        )
    return services


def _refuse_unknown(data: Any, schema: type[BaseModel], where: str) -> None:
    """Serve passes over keys that it does not know; a slip of the pen would go unseen."""
    if not isinstance(data, dict):
        return  # the schema says it better
    unknown = [str(key) for key in data if key not in schema.model_fields]
    if unknown:
        known = ", ".join(schema.model_fields)
        raise ConfigError(_join(where, f"unknown setting {', '.join(map(repr, unknown))}; known settings are: {known}"))


def _join(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what
