"""What each command of `raypool` does with its arguments."""

import json
import os
import sys
import threading
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.node import set_flags, starts_own_node
from pooling.config import ModelSpec, parse_settings
from pooling.errors import ConfigError, InvalidRequest
from pooling.loading.card import ModelCard
from pooling.quantise import int8_limit
from pooling.request import PoolingParams

if TYPE_CHECKING:
    from deployments.plan import ServePlan

_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
_MODEL_FLAGS = (
    "dtype",
    "device",
    "tensor_parallel_size",
    "max_model_len",
    "max_batch_tokens",
    "enforce_eager",
    "quantization",
    "override_pooler_config",
    "hf_overrides",
    "limit_mm_per_prompt",
    "chat_template",
    "instruction",
)
_JSON_FLAGS = ("override_pooler_config", "hf_overrides", "limit_mm_per_prompt")
_SERVED_FLAGS = (*_MODEL_FLAGS, "task", "served_model_name", "replicas", "api_key", "allowed_media_domains")


def serve(arguments: Namespace) -> None:
    """Serves until a signal; stops everything it started."""
    started = time.monotonic()
    set_flags(_serve_flags())
    from deployments.ports import refuse_taken_ports
    from pooling.loading.preflight import refuse_bad_source

    plan = _plan(arguments)
    models = [model for service in plan.services.values() for model in service.models]
    if starts_own_node():
        refuse_taken_ports(plan.host, plan.port)
        for model in models:
            refuse_bad_source(model.source)
            _refuse_bad_split(model.spec)
            _refuse_bad_quantization(model.spec)
    from deployments.greeting import greeting
    from deployments.serving import address, serving

    where = "this machine" if starts_own_node() else os.environ["RAY_ADDRESS"]
    _say(f"starting {', '.join(model.served_name for model in models)} on {where}")
    with serving(plan, _say):
        for prefix, service in plan.services.items():
            print(f"\n{greeting(address(plan) + prefix.rstrip('/'), service)}\n", flush=True)
        _say(f"ready in {time.monotonic() - started:.1f} s at {address(plan)}; Ctrl-C stops it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            _say("stopping")


def _refuse_bad_split(spec: ModelSpec) -> None:
    """Raises ConfigError for a model that cannot be split as asked, before room is made for its ranks."""
    if spec.tensor_parallel_size > 1:
        from pooling.loading.describe import describe

        describe(spec)


def _refuse_bad_quantization(spec: ModelSpec) -> None:
    """Raises ConfigError for one that this machine cannot do, before Ray is started for its engines."""
    if spec.quantization is not None:
        from pooling.loading.dtype import choose_device, choose_dtype
        from pooling.quantized import check_quantization

        device = choose_device(spec.device)
        check_quantization(spec.quantization, spec.served_name, device, choose_dtype(spec.dtype, device))


def pool_files(arguments: Namespace) -> None:
    """Embeds, classifies, scores or rewards texts in files, into a directory of files."""
    set_flags()
    from cluster.job import PoolingJob, run_job

    given = {name: value for name, value in vars(arguments).items() if name in PoolingJob.model_fields}
    given["spec"] = {"source": _source(arguments.model), **_model_settings(arguments)}
    job = parse_settings(PoolingJob, given, f"raypool {arguments.task}")
    if starts_own_node():
        _refuse_bad_quantization(job.spec)
    print(run_job(job))


def inspect(arguments: Namespace) -> None:
    """Prints a model's card, known from its small files."""
    task = {} if arguments.task is None else {"task": arguments.task}
    settings = {"source": arguments.model, **task, **_model_settings(arguments)}
    spec = parse_settings(ModelSpec, settings, "raypool inspect")
    from pooling.intake import Intake

    card = Intake.load(spec).card
    print(json.dumps(asdict(card), indent=2) if arguments.json else _describe(card))


def _say(line: str) -> None:
    print(f"raypool: {line}", file=sys.stderr, flush=True)


def _serve_flags() -> dict[str, str]:
    cpus = len(os.sched_getaffinity(0))
    return {
        # HAProxy in front of the replicas' own HTTP servers; the Python proxy answers a tenth of the requests.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # HAProxy relays bytes: half the CPUs are more than it can use beside the models.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(8, cpus // 2))),
        # A reply of 2,048 vectors of 4,096 numbers is 32 MiB; gRPC's own limit is 4.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 << 20),
        # How long a replica that is to stop stays reachable: for balancers that poll. HAProxy here is told at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def _plan(arguments: Namespace) -> "ServePlan":
    from deployments.plan import plan_file, plan_model

    target = Path(arguments.target)
    if not target.is_file() and target.suffix not in _CONFIG_SUFFIXES:
        return plan_model(_service(arguments), arguments.host, arguments.port)
    if not target.is_file():
        raise ConfigError(f"config file {arguments.target!r} does not exist")
    given = [f"--{name.replace('_', '-')}" for name in _SERVED_FLAGS if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} would go unheard beside a config file; write it in {arguments.target}")
    return plan_file(target, arguments.host, arguments.port)


def _service(arguments: Namespace) -> dict[str, Any]:
    """The command line as the plain data of a ServiceConfig with one model."""
    model = {
        "name": arguments.served_model_name or arguments.target,
        "source": _source(arguments.target),
        "task": arguments.task,
        "replicas": arguments.replicas,
        **_model_settings(arguments),
    }
    return {
        "models": [{name: value for name, value in model.items() if value is not None}],
        "api_keys": arguments.api_key or [],
        "media": {"allowed_domains": arguments.allowed_media_domains or []},
    }


def _model_settings(arguments: Namespace) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in _MODEL_FLAGS if getattr(arguments, name) is not None}
    if "chat_template" in settings:
        settings["chat_template"] = _template(settings["chat_template"])
    return {name: _json_object(name, value) if name in _JSON_FLAGS else value for name, value in settings.items()}


def _source(given: str) -> str:
    """Engines may run in another directory: one that is here is named whole."""
    directory = Path(given).expanduser()
    return str(directory.resolve()) if directory.is_dir() else given


def _template(given: str) -> str:
    file = os.path.expanduser(given)
    return os.path.realpath(file) if os.path.isfile(file) else given  # of a long text, Path.is_file() raises OSError


def _json_object(name: str, text: str) -> dict[str, Any]:
    flag = f"--{name.replace('_', '-')}"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{flag} is not JSON: {error} (given {text!r})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} is not a JSON object such as {{...}} (given {text!r})")
    return value


def _describe(card: ModelCard) -> str:
    sizes, any_size = card.matryoshka, f"any size up to {card.dim}"
    rows = {
        "model": card.source,
        "architecture": f"{card.architecture} ({card.model_type})",
        **{task: str(pooler) for task, pooler in card.poolers.items()},
        "scoring": card.scoring or "no",
        "labels": ", ".join(card.labels) or "none",
        "vector": f"{card.dim} numbers" if not card.labels else "none",
        "int8 range": _int8_range(card),
        "Matryoshka": any_size if sizes is None else ", ".join(map(str, sizes)) or "no",
        "longest input": f"{card.max_model_len} tokens",
        "images": "none" if card.vision is None else str(card.vision),
        "prompts": ", ".join(card.prompts) or "none",
        "tensor parallel": _ranks(card),
    }
    return "\n".join(f"{name:<16}{value}" for name, value in rows.items())


def _ranks(card: ModelCard) -> str:
    sizes = ", ".join(map(str, card.tensor_parallel_sizes))
    return f"over {sizes} ranks" if sizes else f"no: {card.unsplit_because}"


def _int8_range(card: ModelCard) -> str:
    if "embed" not in card.poolers:
        return "no vectors"
    try:
        return f"±{int8_limit(card, PoolingParams()):.4g}"
    except InvalidRequest:
        return "none, the vectors are not normalised; int8_range in override_pooler_config sets one"
