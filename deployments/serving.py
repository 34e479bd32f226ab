"""serving(): Serve with one plan deployed, from nothing to ready and back to nothing."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_LOGGER_NAME, SERVE_NAMESPACE
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from cluster.failure import last_line, refusal
from cluster.node import ray_node, starts_own_node
from deployments.plan import ServePlan
from deployments.resources import refuse_too_much, running_cluster, warn_of_room
from pooling.errors import ConfigError, StartupError

# Requests and answers travel by gRPC; shared memory only ever holds what is larger than its message limit.
_OBJECT_STORE_BYTES = 512 << 20
_POLL_S = 0.1
_STOP_TIMEOUT_S = 30.0  # serve.shutdown()'s own
# The proxy has a new replica within seconds, on a busy machine too.
_REACHABLE_S = 60.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

Say = Callable[[str], None]


def address(plan: ServePlan) -> str:
    """The URL at which this machine reaches what the plan serves."""
    host = _ANYWHERE.get(plan.host, plan.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{plan.port}"


@contextmanager
def serving(plan: ServePlan, say: Say) -> Iterator[None]:
    """Starts Ray where none is named, deploys the plan, and is ready inside the `with`; then stops what it started.

    say is told what is waited for. Raises StartupError, or the subclass that a
    replica raised, when an application cannot start.
    """
    logging.getLogger(SERVE_LOGGER_NAME).setLevel(logging.WARNING)  # what it tells at INFO, `say` tells better
    with ray_node(_OBJECT_STORE_BYTES, show_actors=False):
        if starts_own_node():  # a cluster may grow; this machine will not
            for service in plan.services.values():
                refuse_too_much(service, running_cluster())
                warn_of_room(service, running_cluster())
        stop = _undo(plan)
        try:
            serve.start(proxy_location=plan.schema.proxy_location, http_options=plan.schema.http_options.model_dump())
            client = _get_global_client()
            client.deploy_apps(plan.schema)  # type: ignore[union-attr]  # it raises where there is none
            _wait_until_running({application.name for application in plan.schema.applications}, say)
            _wait_until_reachable([address(plan) + prefix.rstrip("/") for prefix in plan.services])
            yield
        finally:
            stop()


def _undo(plan: ServePlan) -> Callable[[], None]:
    """What takes back the deployment: all of Serve where we start it, else our applications alone.

    Raises ConfigError where deploying would take down applications of others:
    a Serve config replaces all that runs.
    """
    ours = [application.name for application in plan.schema.applications]
    if _get_global_client(raise_if_no_controller_running=False) is None:
        return _stop_serve
    others = sorted(set(serve.status().applications) - set(ours))
    if others:
        raise ConfigError(
            f"the cluster at {os.environ['RAY_ADDRESS']} serves {', '.join(others)}, which this config would remove; "
            "add our applications to its config instead, and use `serve deploy`"
        )

    def delete() -> None:
        for name in ours:
            serve.delete(name)

    return delete


def _stop_serve() -> None:
    """Ends Serve and waits for its end.

    serve.shutdown() waits on a call that its end breaks off, which Ray then
    reports to the user as a fault; this asks for the same and looks.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    client._controller.graceful_shutdown.remote(wait=False)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            return
        time.sleep(_POLL_S)


def _wait_until_running(names: set[str], say: Say) -> None:
    said: set[str] = set()
    while True:
        applications = {name: found for name, found in serve.status().applications.items() if name in names}
        for name, application in applications.items():
            _refuse_failed(name, application)
            for deployment in application.deployments.values():
                if deployment.message and deployment.message not in said:
                    said.add(deployment.message)
                    say(last_line(deployment.message))
        if len(applications) == len(names) and all(
            a.status == ApplicationStatus.RUNNING for a in applications.values()
        ):
            return
        time.sleep(_POLL_S)


def _refuse_failed(name: str, application: Any) -> None:
    """Raises a replica's refusal at the first attempt: the same files will be no better at the next."""
    report = "\n".join([*(deployment.message for deployment in application.deployments.values()), application.message])
    refused = refusal(report)
    if isinstance(refused, StartupError):
        raise refused
    if application.status == ApplicationStatus.DEPLOY_FAILED:
        raise StartupError(f"{name} could not start: {last_line(report)}")


def _wait_until_reachable(urls: list[str]) -> None:
    """The proxy learns of new replicas a moment after they run. Raises StartupError if it never answers."""
    opener = build_opener(ProxyHandler({}))  # this machine is never behind a proxy of the environment's
    deadline = time.monotonic() + _REACHABLE_S
    for url in urls:
        while True:
            try:
                with opener.open(f"{url}/health", timeout=5):
                    break
            except (URLError, OSError) as error:
                if time.monotonic() > deadline:
                    reason = getattr(error, "reason", error)
                    raise StartupError(
                        f"all replicas run, but {url} did not answer within {_REACHABLE_S:g} s ({reason}); "
                        "is the host one that Serve's proxy can listen on?"
                    ) from None
                time.sleep(_POLL_S)
