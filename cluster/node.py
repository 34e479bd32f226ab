"""ray_node(): the Ray that a command runs on: the user's cluster, or one node started here and stopped at the end."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Ray reads these when it is imported.
_FLAGS = {"RAY_USAGE_STATS_ENABLED": "0"}


def starts_own_node() -> bool:
    """Whether ray_node() starts Ray itself: it does unless RAY_ADDRESS names a cluster."""
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def set_flags(flags: dict[str, str] | None = None) -> None:
    """Sets Ray's environment flags; the user's own settings win.

    Call it before the first import of ray in the process: Ray reads most of
    its flags on import, and hands the environment on to all it starts.
    """
    ours = _FLAGS if starts_own_node() else {}
    for name, value in {**ours, **(flags or {})}.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_node(object_store_bytes: int | None = None, show_actors: bool = True) -> Iterator[None]:
    """Connects to the cluster that RAY_ADDRESS names, or runs a one-node Ray inside the `with`.

    A process that has connected to Ray already keeps what it has.
    object_store_bytes: shared memory of a node started here; None leaves the
    size to Ray. show_actors: print here what actors print.
    """
    set_flags()
    import ray

    if ray.is_initialized():
        yield
        return
    # A one-node Ray makes a token for itself and tells how to switch that off: of no use to whoever runs a command.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    own = {"address": "local", "include_dashboard": False, "object_store_memory": object_store_bytes}
    options = own if starts_own_node() else {"address": os.environ["RAY_ADDRESS"]}
    try:
        with _signals_held_back():
            ray.init(logging_level=logging.WARNING, log_to_driver=show_actors, **options)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM act at the end: Ray crashes when its start is broken off, and takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda caught, frame: held.append(caught)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])
