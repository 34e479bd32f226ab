"""Collective: the ranks of one group, joined to add tensors up; a process may be part of several groups."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_LOOPBACK = "127.0.0.1"


class Collective:
    """Joins the group whose ranks meet in the file `place`; returns when all are there.

    NCCL for a CUDA device, gloo for the CPU. Nothing of torch.distributed's
    global state is used: whoever runs this process may have a group of their own.
    A rank waits for the others for up to timeout_s, in joining and in each sum.
    """

    def __init__(self, place: Path, rank: int, size: int, device: torch.device, timeout_s: float) -> None:
        stores: Any = dist  # it lists its stores for no type checker
        store = stores.FileStore(str(place), size)
        timeout = timedelta(seconds=timeout_s)
        self._nccl = device.type == "cuda"
        self._group = (_nccl if self._nccl else _gloo)(store, rank, size, timeout)
        self.add_up(torch.zeros(1, device=device))  # the first one connects

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place; on CUDA it is only enqueued."""
        tensor = tensor.contiguous()
        self._group.allreduce([tensor]).wait()
        return tensor

    def abort(self) -> None:
        """Ends a sum that waits for a rank that is gone: gloo's ends by itself, NCCL's would spin for ever."""
        abort = getattr(self._group, "abort", None)
        if self._nccl and abort is not None:
            abort()


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    # The ranks of a group are on one machine; gloo's own choice is the address that its name resolves to.
    options._devices = [kind.create_device(hostname=_LOOPBACK)]
    options._timeout = timeout
    return kind(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    # The ranks of a group are on one machine; NCCL's own choice is its first address that looks like a network's.
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    kind: Any = dist.ProcessGroupNCCL
    options = kind.Options()
    options._timeout = timeout
    return kind(store, rank, size, options)
