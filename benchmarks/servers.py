"""The servers that are compared over HTTP: how each is started in its best CPU mode, and ended."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import PEERS, Peer

_ROOT = Path(__file__).resolve().parent.parent
_MODEL = "minilm"
_START_S = 300.0
_END_S = 10.0
# In the environment of a server and of all that it starts.
_MARK = "RAYPOOL_BENCHMARK_SERVER"


@dataclass(frozen=True)
class Server:
    """A server as one command; `{port}`, `{model}`, `{dtype}` and `{threads}` in it are filled in.

    peer: the environment that it runs in; None is ours.
    """

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    peer: Peer | None = None

    @property
    def model_name(self) -> str:
        return _MODEL

    @contextmanager
    def running(self, model: Path, dtype: str, threads: int, ready: Callable[[str], bool]) -> Iterator[str]:
        """Its address, once it answers. Raises RuntimeError with the end of its log if it never does."""
        port = _free_port()
        values = {"port": port, "model": model, "dtype": dtype, "threads": threads, "name": _MODEL}
        filled = [part.format(**values) for part in self.command]
        environment = self.peer.environment(threads) if self.peer else {**os.environ, "PYTHONPATH": str(_ROOT)}
        mark = uuid.uuid4().hex
        environment |= {**self.variables, _MARK: mark}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                filled, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tempfile.gettempdir(),
                start_new_session=True,
            )  # fmt: skip
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(process, lambda: ready(url))
                yield url
            except Exception as error:
                log.seek(0)
                end = log.read()[-3_000:].decode(errors="replace")
                raise RuntimeError(f"{self.name} failed: {error}\n{end}") from error
            finally:
                _end(process, mark)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"it did not answer within {_START_S:g} s")
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Asks it to end, then ends what is left of all that it started: a proxy may outlive its cluster."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    end = time.monotonic() + _END_S
    while (left := started_with(f"{_MARK}={mark}")) and time.monotonic() < end:
        for child in left:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def started_with(variable: str) -> list[int]:
    """Processes that have this in their environment, from whoever started them; on Linux."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if variable.encode() in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}

_OURS = (
    str(Path(sys.executable).with_name("raypool")), "serve", "{model}", "--served-model-name", "{name}",
    "--dtype", "{dtype}", "--port", "{port}",
)  # fmt: skip

SERVERS = {
    server.name: server
    for server in (
        Server("raypool", _OURS, {"RAY_USAGE_STATS_ENABLED": "0"}),
        # With other answers than the rest, and only where the CPU has VNNI.
        Server("raypool-int8", (*_OURS, "--quantization", "int8"), {"RAY_USAGE_STATS_ENABLED": "0"}),
        # Eager: its default, compiled float16, is several times slower on a CPU.
        Server(
            "vllm",
            (
                "vllm", "serve", "{model}", "--served-model-name", "{name}", "--runner", "pooling", "--dtype",
                "{dtype}", "--enforce-eager", "--host", "127.0.0.1", "--port", "{port}",
            ),
            {},
            PEERS["vllm"],
        ),
        Server(
            "ray-serve-llm",
            (
                "python", str(_ROOT / "benchmarks" / "ray_serve_llm.py"), "{model}", "{name}", "{port}", "{threads}",
                "{dtype}",
            ),
            _RAY,
            PEERS["vllm"],
        ),
        Server(
            "infinity",
            (
                "infinity_emb", "v2", "--model-id", "{model}", "--served-model-name", "{name}", "--engine", "torch",
                "--device", "cpu", "--dtype", "{dtype}", "--no-bettertransformer", "--batch-size", "32", "--host",
                "127.0.0.1", "--port", "{port}", "--url-prefix", "/v1",
            ),
            {},
            PEERS["infinity"],
        ),
    )
}  # fmt: skip
