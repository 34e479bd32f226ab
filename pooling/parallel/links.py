"""Link: one rank's line to rank 0, a unix socket: short frames both ways, and the news that the other end is gone."""

import contextlib
import json
import socket
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

_FRAME = struct.Struct("!BI")
_NUMBER = struct.Struct("!q")


class Kind(IntEnum):
    """What a frame says. Of a rank: JOIN, READY with a Stage, READ when it has a step's input, FAILED, BYE.

    Of rank 0: ORDER, MEET when all are ready for the first sum, STEP with the number of the step, STOP.
    """

    JOIN = 1
    ORDER = 2
    READY = 3
    STEP = 4
    READ = 5
    FAILED = 6
    STOP = 7
    BYE = 8
    MEET = 9


class Stage(IntEnum):
    """How far a rank is: it knows its model and has its device, so that nothing but the others is missing for the
    first sum; its share is loaded."""

    PREPARED = 1
    LOADED = 2


@dataclass(frozen=True, slots=True)
class Order:
    """What rank 0 tells the others to be: spec is a ModelSpec as JSON; timeout_s: how long a rank waits for another."""

    spec: str
    size: int
    dtype: str
    device: str
    max_batch_tokens: int
    threads: int
    slots: int
    slot_bytes: int
    timeout_s: float


class Link:
    """Frames over a connected socket. Where the other end is gone methods raise OSError, and receive() EOFError too."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def to(cls, door: str) -> "Link":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(door)
        return cls(connection)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self._socket.sendall(_FRAME.pack(kind, len(payload)) + payload)

    def send_number(self, kind: Kind, number: int) -> None:
        self.send(kind, _NUMBER.pack(number))

    def send_json(self, kind: Kind, content: Any) -> None:
        self.send(kind, json.dumps(content).encode())

    def receive(self) -> tuple[Kind, bytes]:
        kind, size = _FRAME.unpack(self._exactly(_FRAME.size))
        return Kind(kind), self._exactly(size)

    def send_order(self, order: Order, memory: int) -> None:
        """The order, and the file descriptor of the memory that the inputs of steps lie in."""
        socket.send_fds(self._socket, [b"\0"], [memory])
        self.send_json(Kind.ORDER, asdict(order))

    def receive_order(self) -> tuple[Order, int]:
        data, memory, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not data or not memory:
            raise EOFError
        _, payload = self.receive()
        return Order(**json.loads(payload)), memory[0]

    def hang_up(self) -> None:
        """Both ends hear of it, and whoever waits in receive()."""
        with contextlib.suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For when nobody waits in receive() any more."""
        self.hang_up()
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def number_of(payload: bytes) -> int:
    number: int = _NUMBER.unpack(payload)[0]
    return number
