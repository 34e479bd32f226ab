"""The yardstick: how many operations a second torch's own nn.Linear reaches here, at sizes that suit it."""

import statistics
import threading
import time
from collections.abc import Sequence

import torch
from torch import nn

# (tokens, in, out). Small ones suit a CPU's caches, large ones fill a GPU.
_CPU_SIZES = ((1024, 1024, 1024), (2048, 1024, 1024), (1024, 1024, 4096), (1024, 4096, 1024), (4096, 2048, 2048))
_CUDA_SIZES = ((8192, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 16384), (16384, 8192, 8192))


class Peak:
    """Measures a little at a time, beside what it is compared with, so that other load falls on both.

    `rates` has, for each size, the operations per second of each measurement.
    sizes: (tokens, in, out) of each product; None: those that suit the device.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, sizes: Sequence[tuple[int, int, int]] | None = None
    ) -> None:
        self._device = device
        sizes = sizes or (_CUDA_SIZES if device.type == "cuda" else _CPU_SIZES)
        self.rates: dict[tuple[int, int, int], list[float]] = {size: [] for size in sizes}
        self._linears = {size: nn.Linear(size[1], size[2], device=device, dtype=dtype) for size in sizes}
        self._rows = {size: torch.randn(size[0], size[1], device=device, dtype=dtype) for size in sizes}
        self.measure()
        for rates in self.rates.values():
            rates.clear()  # the first measurement also compiled and packed

    def measure(self, seconds: float = 0.5) -> None:
        """Runs every size for its part of the seconds, on a thread that ends with it.

        OpenMP keeps a team for each thread that computes; while there are more
        teams than cores for them, the engine's would wait asleep and look slower.
        """
        thread = threading.Thread(target=self._measure, args=(seconds,))
        thread.start()
        thread.join()

    @torch.inference_mode()
    def _measure(self, seconds: float) -> None:
        for size, rates in self.rates.items():
            linear, rows, runs = self._linears[size], self._rows[size], 0
            start = self._now()
            while (elapsed := self._now() - start) < seconds / len(self.rates):
                linear(rows)
                runs += 1
            tokens, width, out = size
            rates.append(2 * tokens * width * out * runs / elapsed)

    @property
    def best_size(self) -> tuple[int, int, int]:
        """The size with the highest median."""
        return max(self.rates, key=lambda size: statistics.median(self.rates[size]))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
