"""What stands for a function of Python: compiled code where torch has it, the function itself where it has not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pooling import encoder_layers, full_attention, masked_attention, prepacked, quantized
from pooling.native import native

COMPILED = [
    prepacked.linear,
    quantized.int8_linear,
    quantized.activated,
    encoder_layers._encode,
    encoder_layers._added,
    full_attention.attend_merged,
    full_attention.attend_group,
    masked_attention.attend_masked,
]


@pytest.mark.parametrize("function", COMPILED)
def test_what_computes_is_compiled(function: object) -> None:
    """A name that is defined too late, or a construct TorchScript lacks, would leave it to Python without a sign."""
    assert isinstance(function, torch.jit.ScriptFunction)


def test_without_torchscript_the_function_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError("TorchScript is gone")

    def twice(x: Tensor) -> Tensor:
        return x + x

    monkeypatch.setattr(torch.jit, "script", gone)
    assert native(twice) is twice
