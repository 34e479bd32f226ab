"""A model split over two GPUs (NCCL) against one. Needs two CUDA devices, but no Ray."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pooling import LLM
from pooling.errors import ConfigError, EngineDead
from tests.checkpoints import EVERY, MINILM
from tests.pooling.test_shard_group import children, wait_until
from tests.texts import words

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
TEXTS = [words(1 + index % 60, start=index) for index in range(40)]
# Without those that run padded on CUDA, which are not split there.
FAMILIES = ["bert", "modernbert", "xlmr", "qwen3", "llama", "gpt2", "phi3", "gpt-neox", "olmo2"]


@two_gpus
@pytest.mark.parametrize("family", FAMILIES)
def test_two_gpus_agree_with_one(checkpoint: Callable[[str], Path], family: str) -> None:
    assert EVERY[family].path == "packed"
    rows = []
    for size in (1, 2):
        with LLM(str(checkpoint(family)), device="cuda", tensor_parallel_size=size) as llm:
            answers = llm.embed(TEXTS, use_tqdm=False)
        rows.append(np.array([answer.outputs.embedding for answer in answers]))
    # Sharp random weights magnify bfloat16's rounding, as in test_cuda.py.
    assert float((rows[0] * rows[1]).sum(1).min()) > 0.99


@two_gpus
def test_a_killed_rank_is_heard_of_though_nccl_waits_for_it() -> None:
    before = children(os.getpid())
    with LLM(MINILM, device="cuda", tensor_parallel_size=2) as llm:
        (other,) = children(os.getpid()) - before
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: not llm._offline._engine.healthy)
        with pytest.raises(EngineDead, match="rank 1 has ended"):
            llm.embed("a", use_tqdm=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_ranks_than_gpus_are_refused() -> None:
    there = torch.cuda.device_count()
    size = next(size for size in (2, 3, 4, 6, 12) if size > there)
    with pytest.raises(ConfigError, match=f"tensor_parallel_size is {size}, but this machine has {there} CUDA device"):
        LLM(MINILM, device="cuda", tensor_parallel_size=size)
