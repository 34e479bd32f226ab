"""ask_all(): the same question to every running replica of a deployment."""

from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle


async def ask_all(handle: "DeploymentHandle[Any]", method: str, timeout_s: float) -> list[Any]:
    """What the replicas answer, those that fail left out; empty if none runs, and none is woken.

    Raises TimeoutError if one of them does not answer in time.
    """
    try:
        answers = await handle.broadcast(method).results_async(timeout_s=timeout_s, return_exceptions=True)
    except (RayError, RayServeException):
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]
