"""serve_rank(): ranks 1 and up: join a group, load a share of the model, run every step beside rank 0."""

import logging
import os
import select
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch

from pooling.config import ModelSpec
from pooling.forward import PackedForward
from pooling.loading.describe import describe
from pooling.parallel.collective import Collective
from pooling.parallel.forward import load_share
from pooling.parallel.links import Kind, Link, Order, Stage, number_of
from pooling.parallel.ring import Ring
from pooling.parallel.shard import Shard
from pooling.vision.outline import media_of

log = logging.getLogger("raypool")


def serve_rank(door: str, rank: int, device: torch.device) -> None:
    """Serves until rank 0 ends the group in good order; ends the process at once when rank 0 is gone.

    Raises what loading or a step raised, after telling rank 0.
    """
    link = Link.to(door)
    link.send_json(Kind.JOIN, {"rank": rank})
    order, memory = link.receive_order()
    place = Path(door).parent
    with _tied_to(link, place) as over:
        try:
            forward = _load(order, rank, device, link, place / "collective")
            link.send_number(Kind.READY, Stage.LOADED)
            _run_steps(forward, link, Ring(memory, order.slots, order.slot_bytes))
        except (EOFError, BrokenPipeError):
            _end_process(place)
        except Exception as error:
            over.set()
            _report(error, link, place)
            raise
        over.set()  # first: rank 0 may close the line as soon as it hears the word
        link.send(Kind.BYE)


def _load(order: Order, rank: int, device: torch.device, link: Link, place: Path) -> PackedForward:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(order.threads)
    description = describe(ModelSpec.model_validate_json(order.spec))
    link.send_number(Kind.READY, Stage.PREPARED)
    kind, _ = link.receive()
    if kind != Kind.MEET:  # rank 0 has given up
        raise EOFError
    collective = Collective(place, rank, order.size, device, order.timeout_s)
    dtype: torch.dtype = getattr(torch, order.dtype)
    shard = Shard(rank, order.size, collective.add_up)
    forward, _ = load_share(description, dtype, device, order.max_batch_tokens, shard)
    return forward


def _run_steps(forward: PackedForward, link: Link, ring: Ring) -> None:
    """Runs what rank 0 runs, in its order, until it says STOP; what comes out is rank 0's to read."""
    with torch.inference_mode():
        while True:
            kind, payload = link.receive()
            if kind == Kind.STOP:
                return
            step = ring.read(number_of(payload))
            link.send(Kind.READ, payload)
            if step.alone:
                forward.alone(step.ids)
            else:
                forward.shares_prefixes = step.shares_prefixes
                media = None if step.images is None else media_of(step.images, len(step.lengths))
                forward(forward.prepare(step.ids, step.lengths, step.second, step.attended, media))


def _report(error: Exception, link: Link, place: Path) -> None:
    """Tells rank 0, and waits until it has ended the group; a sum fails here too because rank 0 is gone."""
    try:
        link.send_json(Kind.FAILED, [type(error).__name__, str(error)])
        while True:
            link.receive()
    except EOFError:
        shutil.rmtree(place, ignore_errors=True)
    except OSError:
        _end_process(place)


def _end_process(place: Path) -> NoReturn:
    """Rank 0 is gone, and could not take away the group's files."""
    shutil.rmtree(place, ignore_errors=True)
    os._exit(1)


@contextmanager
def _tied_to(link: Link, place: Path) -> Iterator[threading.Event]:
    """Ends this process when the other end of the link is gone, even in the middle of a sum that waits for it.

    Not any more once the event is set.
    """
    over = threading.Event()

    def watch() -> None:
        poll = select.poll()
        poll.register(link.fileno(), select.POLLRDHUP)
        poll.poll()
        if not over.is_set():
            _end_process(place)

    watcher = threading.Thread(target=watch, name="raypool-rank-0", daemon=True)
    watcher.start()
    try:
        yield over
    finally:
        over.set()
        link.close()
        watcher.join()
