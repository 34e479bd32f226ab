"""What a figure was measured on: the machine, the number format that suits it, the versions, the commit."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from benchmarks.peers import PEERS
from pooling.loading.dtype import choose_dtype

_ROOT = Path(__file__).resolve().parent.parent
_OWN = ("torch", "transformers", "ray")


def machine_dtype() -> Literal["bfloat16", "float32"]:
    """bfloat16 where the CPU multiplies it fast (AVX512_BF16 or AMX), float32 elsewhere: for everybody."""
    return "bfloat16" if choose_dtype("auto", torch.device("cpu")) == torch.bfloat16 else "float32"


def cpu() -> str:
    """Its name, how many cores of it, and which of its instructions multiply matrices."""
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    names = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
    widest = next((name for name in names if able.get(name)), "widest instructions unknown")
    return f"{torch.get_num_threads()} cores of {_cpu_name()} ({widest})"


def versions() -> dict[str, str]:
    """Of ours, and of each peer that is built, in its own environment."""
    own = ", ".join(f"{name} {version(name)}" for name in _OWN)
    return {"raypool": own} | {name: peer.version() for name, peer in PEERS.items() if peer.is_built}


def commit() -> str:
    """Short, with a word if the working tree differs from it; "unknown" outside a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "pooling", "cluster", "deployments")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
