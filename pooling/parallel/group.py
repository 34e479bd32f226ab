"""Group: rank 0's side of the step protocol: starts the other ranks, hands them each step, and fails as one.

A rank joins by connecting to the group's door and is told its Order; it says
READY at each stage of loading its share of the model; when all know the model,
rank 0 says MEET and they join for their sums, which is not before, for there
they wait for each other only as long as in a step. For each step rank 0 leaves the
inputs in shared memory and sends its number; the rank says READ and runs it
beside rank 0: their sums over the ranks are what holds them together. Nothing
else is answered: rank 0 alone has heads and returns rows. A rank that fails
says why; one that ends is noticed by its closed line, at once, whatever anyone
waits for; then the group is over for good.
"""

import json
import logging
import os
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pooling import errors
from pooling.errors import EngineFailure, PoolingError, StartupError
from pooling.parallel.links import Kind, Link, Order, Stage, number_of
from pooling.parallel.ring import Ring, StepMessage

log = logging.getLogger("raypool")

# A rank imports torch before it joins, which takes half a minute on a busy machine and more from a network disk.
_JOIN_S = 300.0
_LOOK_S = 0.2
# For a rank to leave: it has nothing to do but to give up its memory.
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ranks 1 to size - 1 join, and on which kind of device they run."""

    door: str
    size: int
    device: str


class Ranks(Protocol):
    """The processes of ranks 1 and up, however they were started."""

    def gone(self) -> str | None:
        """Which of them has ended, and how; None: none."""
        ...

    def end(self) -> None:
        """Ends those that are still there; more than once does no harm."""
        ...


StartRanks = Callable[[Meeting], Ranks]


class Group:
    """Ranks 1 and up of one model, seen from rank 0. Raises StartupError if they do not all join.

    `failure` says why the group is over, None while it is not; `watch()` has it
    told to someone at once. send() is for one thread at a time.
    """

    def __init__(self, order: Order, start: StartRanks) -> None:
        self.failure: str | None = None
        self._error: PoolingError | None = None
        self._changed = threading.Condition()
        self._listeners: list[Callable[[str, bool], None]] = []
        self._stopping = self._ended = False
        self._next = 0
        self._place = Path(tempfile.mkdtemp(prefix="raypool-"))
        self._links: dict[int, Link] = {}
        self._ranks: Ranks | None = None
        memory: int | None = None
        try:
            memory = Ring.memory(order.slots, order.slot_bytes)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                door.bind(str(self._place / "door"))
                door.listen(order.size)
                self._ranks = start(Meeting(str(self._place / "door"), order.size, order.device))
                self._let_in(door, order, memory)
            self._ring = Ring(memory, order.slots, order.slot_bytes)
        except BaseException:
            self._give_up()
            self._close_links()
            if memory is not None:
                os.close(memory)
            raise
        self._slots = order.slots
        self._stages = dict.fromkeys(self._links, 0)
        self._read = dict.fromkeys(self._links, -1)
        self._watcher = threading.Thread(target=self._watch, name="raypool-ranks", daemon=True)
        self._watcher.start()

    @property
    def meeting_file(self) -> Path:
        """Where the ranks' collective finds its members."""
        return self._place / "collective"

    def wait_for(self, stage: Stage) -> None:
        """Returns when every rank has come so far. Raises what a rank failed with."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure or min(self._stages.values()) >= stage)
        if self.failure is not None:
            raise self._error or StartupError(self.failure)

    def meet(self) -> None:
        """Lets every rank join the collective, once all are ready to. Raises what a rank failed with."""
        self.wait_for(Stage.PREPARED)
        try:
            self._tell(lambda link: link.send(Kind.MEET))
        except EngineFailure as error:
            raise self._error or StartupError(error.detail) from None

    def send(self, message: StepMessage) -> None:
        """Gives every rank a step to run beside this one. Raises EngineFailure if the group is over."""
        number, self._next = self._next, self._next + 1
        with self._changed:  # until the slot is free: every rank has read what it held
            self._changed.wait_for(lambda: self.failure or number - min(self._read.values()) <= self._slots)
        self.confirm()
        self._ring.write(number, message)
        self._tell(lambda link: link.send_number(Kind.STEP, number))

    def confirm(self) -> None:
        """Raises EngineFailure if the group is over: what its sums gave last may then be no sums."""
        if self.failure is not None:
            raise EngineFailure(self.failure)

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """listener(failure, ended) is called, on a thread of the group's, when the group is over before stop().

        ended: because a rank's process has, not because of what it raised.
        """
        with self._changed:
            failure, ended = self.failure, self._ended
            if failure is None:
                self._listeners.append(listener)
        if failure is not None:
            listener(failure, ended)

    def stop(self) -> None:
        """Ends the group in good order: ranks that are idle leave by themselves, others are ended."""
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
        for link in self._links.values():
            try:
                link.send(Kind.STOP)
            except OSError:
                continue
        self._watcher.join(_LEAVE_S)
        self._give_up()

    def _let_in(self, door: socket.socket, order: Order, memory: int) -> None:
        door.settimeout(_LOOK_S)
        deadline = time.monotonic() + _JOIN_S
        while len(self._links) < order.size - 1:
            try:
                connection, _ = door.accept()
            except TimeoutError:
                self._refuse_absent(order.size, deadline)
                continue
            connection.settimeout(None)
            link = Link(connection)
            _, payload = link.receive()
            link.send_order(order, memory)
            self._links[int(json.loads(payload)["rank"])] = link

    def _refuse_absent(self, size: int, deadline: float) -> None:
        gone = self._ranks.gone() if self._ranks is not None else None
        if gone is not None:
            raise StartupError(f"a shard of the model did not start: {gone}")
        if time.monotonic() > deadline:
            absent = sorted(set(range(1, size)) - set(self._links))
            raise StartupError(f"ranks {absent} of {size} did not join within {_JOIN_S:g} s")

    def _tell(self, say: Callable[[Link], None]) -> None:
        for rank, link in self._links.items():
            try:
                say(link)
            except OSError:
                self._lose(f"rank {rank} has ended", ended=True)
                raise EngineFailure(self.failure or "a rank has ended") from None

    def _watch(self) -> None:
        """Hears every rank until all have left, or one too early."""
        try:
            self._hear_all()
        finally:
            self._close_links()

    def _hear_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, rank)
            while selector.get_map() and self.failure is None:
                for key, _ in selector.select():
                    rank = int(key.data)
                    if not self._hear(rank, self._links[rank]):
                        selector.unregister(key.fileobj)

    def _hear(self, rank: int, link: Link) -> bool:
        """One frame; false if it was the last of this rank."""
        try:
            kind, payload = link.receive()
        except (EOFError, OSError):
            if not self._stopping:
                self._lose(f"rank {rank} has ended", ended=True)
            return False
        if kind == Kind.FAILED:
            name, detail = json.loads(payload)
            self._error, ours = _rebuilt(name, detail)
            self._lose(f"rank {rank} has failed: {detail if ours else name}", f"{name}: {detail}")
            return False
        with self._changed:
            if kind == Kind.READY:
                self._stages[rank] = number_of(payload)
            elif kind == Kind.READ:
                self._read[rank] = number_of(payload)
            self._changed.notify_all()
        return kind != Kind.BYE

    def _lose(self, failure: str, logged: str = "", ended: bool = False) -> None:
        """failure reaches clients; logged is beside it in the log alone."""
        with self._changed:
            if self.failure is not None or self._stopping:
                return
            self._ended = ended
            self.failure = failure  # before the listeners, of which one ends the sums: see confirm()
            listeners, self._listeners = self._listeners, []
            self._changed.notify_all()
        log.error("tensor parallel: %s; the group ends%s", failure, f" ({logged})" if logged else "")
        self._hang_up()
        for listener in listeners:
            try:
                listener(failure, ended)
            except Exception:  # the others must hear of it all the same
                log.exception("tensor parallel: one that watches the group has failed")
        self._give_up()

    def _hang_up(self) -> None:
        """Every rank hears of it, even in the middle of a sum, and ends; so does the watcher."""
        for link in self._links.values():
            link.hang_up()

    def _close_links(self) -> None:
        for link in self._links.values():
            link.close()

    def _give_up(self) -> None:
        self._hang_up()
        if self._ranks is not None:
            self._ranks.end()
        shutil.rmtree(self._place, ignore_errors=True)


def _rebuilt(name: str, detail: str) -> tuple[PoolingError, bool]:
    """A rank's error as one of ours, and whether it is one: then it is raised in the same words.

    The words of any other may name paths and addresses, and are for the log.
    """
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PoolingError):
        return kind(detail), True
    return StartupError(f"a shard of the model failed: {name}"), False
