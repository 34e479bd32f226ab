"""An engine's actor computes on the CPUs that Ray gave it, says what it does, and ends when it must."""

import logging
import math
import os
import sys

import ray
import torch

log = logging.getLogger("raypool")


def settle_actor_process(threads: int | None = None) -> None:
    """Sets torch's threads, to the actor's CPUs where None, and sends our log lines to the actor's stderr.

    Ray sets OMP_NUM_THREADS from whole CPUs, and to 1 where an actor asks for
    none, before anyone can say otherwise. Outside an actor nothing is changed:
    the process is not ours.
    """
    if not _is_actor():
        return
    context = ray.get_runtime_context()
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.setLevel(logging.INFO)
    resources: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]  # Ray's is untyped
    assigned = resources.get("CPU", 0.0)
    threads = max(1, min(threads or math.ceil(assigned), len(os.sched_getaffinity(0))))
    torch.set_num_threads(threads)
    log.info("actor has %g CPUs: %d threads", assigned, threads)


def end_actor_process(reason: str) -> None:
    """Ends the actor, not as asked, so that Ray starts it anew and repeats its calls. Outside an actor it returns."""
    if _is_actor():
        log.error("the actor ends: %s", reason)
        logging.shutdown()
        os._exit(1)


def _is_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
