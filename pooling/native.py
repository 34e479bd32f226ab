"""native(): a function over tensors without Python between its operations."""

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch

log = logging.getLogger("raypool")

Function = TypeVar("Function", bound=Callable[..., object])


def native(function: Function) -> Function:
    """Compiled by TorchScript, where this torch and this Python still have it; else the function as it is.

    Between two operations Python takes its lock, for which threads that compute
    and the event loop wait on each other: with a core each, two threads that
    compute single texts are 1.6 times as fast without (docs/benchmarks.md).
    torch.compile and torch.export lead out of Python as well, but need a C++
    compiler where the service runs, and compile whenever it starts anew.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return cast(Function, torch.jit.script(function))
    except Exception as error:  # whatever a later torch says
        log.info("%s runs in Python: TorchScript cannot compile it: %s", function.__name__, type(error).__name__)
        return function
