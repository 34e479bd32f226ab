"""LLM: the offline API, shaped like vLLM's: encode, embed; outputs in input order."""

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from tqdm import tqdm

from pooling.config import ModelSpec, PoolerConfig, parse_settings
from pooling.engine import Engine
from pooling.errors import EngineDead, InvalidRequest
from pooling.intake import Intake
from pooling.outputs import EmbeddingOutput, EmbeddingRequestOutput, PoolingOutput, PoolingRequestOutput
from pooling.request import Ids, PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Prompt, Rows

Prompts = str | Sequence[int] | Sequence[str | Sequence[int] | Ids] | Mapping[str, Any] | Sequence[Mapping[str, Any]]

# Inputs tokenised at once: enough for long runs of equal length, which the CPU kernel likes,
# while the next ones are tokenised during the forward pass of these.
_CHUNK = 2_048
_CHUNKS_AHEAD = 2


class LLM:
    """A pooling model in this process.

    model: a directory, a hub id, or python:package/dir. task: `auto`, `embed`
    or `token_embed`. dtype: `auto` is bfloat16 where the hardware multiplies it
    fast, float32 elsewhere. override_pooler_config: a PoolerConfig or its fields
    as a dict; beats what the model's files say. max_model_len: tokens an input
    may have; None takes the model's own limit.
    Raises StartupError of the fitting kind if the model cannot be served exactly.
    Usable as a context manager; close() ends its threads.
    """

    def __init__(
        self,
        model: str,
        *,
        task: Literal["auto", "embed", "token_embed"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        override_pooler_config: PoolerConfig | Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
        max_batch_tokens: int | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        served_model_name: str | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        override = override_pooler_config
        settings = {
            "source": model,
            "name": served_model_name,
            "task": task,
            "dtype": dtype,
            "device": device,
            "override_pooler_config": dict(override) if isinstance(override, Mapping) else override,
            "max_model_len": max_model_len,
            "max_batch_tokens": max_batch_tokens,
            "tensor_parallel_size": tensor_parallel_size,
        }
        spec = parse_settings(ModelSpec, settings, "LLM")
        self._intake = Intake.load(spec)
        self._engine = Engine.load(spec)
        self.card = self._engine.card
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raypool-llm", daemon=True)
        self._thread.start()

    def encode(
        self,
        prompts: Prompts,
        pooling_params: PoolingParams | None = None,
        *,
        pooling_task: str | None = None,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """The pooled hidden states of each prompt, as they are.

        prompts: a text, a list of token ids, or a list of either.
        pooling_task: None is the model's default task. tokenization_kwargs:
        `truncate_prompt_tokens`, `truncation_side`, `add_special_tokens`.
        `outputs.data` is a float32 tensor: [dim], or [tokens, dim] for a token
        task. Raises InvalidRequest if one prompt cannot be served; none is then.
        """
        asked = _Asked(pooling_task, pooling_params, prompt_name, tokenization_kwargs)
        return [
            PoolingRequestOutput(self._id(), PoolingOutput(torch.from_numpy(rows.copy())), ids.tolist())
            for rows, ids in self._run(prompts, asked, use_tqdm)
        ]

    def embed(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """One vector for each prompt; arguments as in encode()."""
        asked = _Asked("embed", pooling_params, prompt_name, tokenization_kwargs)
        return [
            EmbeddingRequestOutput(self._id(), EmbeddingOutput(rows.tolist()), ids.tolist())
            for rows, ids in self._run(prompts, asked, use_tqdm)
        ]

    def close(self) -> None:
        """Ends the engine and its threads; using the LLM afterwards raises EngineDead."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._engine.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _id(self) -> str:
        return str(next(self._numbers))

    def _run(self, prompts: Prompts, asked: "_Asked", use_tqdm: bool) -> list[tuple[Rows, Ids]]:
        """Tokenises chunk after chunk, a few ahead of the engine; (rows, ids) of each prompt in order."""
        if not self._thread.is_alive():
            raise EngineDead("this LLM was closed")
        inputs = _as_list(prompts)
        answers: list[tuple[Rows, Ids]] = []
        under_way: deque[tuple[PackedBatch, Future[PooledOutput]]] = deque()
        with tqdm(total=len(inputs), desc="Processed prompts", disable=not use_tqdm, dynamic_ncols=True) as bar:
            try:
                for batch in self._batches(inputs, asked):
                    under_way.append((batch, asyncio.run_coroutine_threadsafe(self._engine.pool(batch), self._loop)))
                    if len(under_way) > _CHUNKS_AHEAD:
                        answers.extend(_collect(under_way, bar))
                while under_way:
                    answers.extend(_collect(under_way, bar))
            finally:
                for _, future in under_way:
                    future.cancel()
        return answers

    def _batches(self, inputs: list[Prompt], asked: "_Asked") -> Iterator[PackedBatch]:
        for start in range(0, max(len(inputs), 1), _CHUNK):
            yield self._intake.tokenize(asked.request(inputs[start : start + _CHUNK]))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a call asks of all its prompts."""

    task: str | None
    params: PoolingParams | None
    prompt_name: str | None
    tokenization: Mapping[str, Any] | None

    def request(self, inputs: list[Prompt]) -> PoolingRequest:
        known = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")
        options = dict(self.tokenization or {})
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InvalidRequest(f"unknown tokenization_kwargs {unknown}; known are {', '.join(known)}")
        params = self.params or PoolingParams()
        return PoolingRequest(inputs, self.task, params, prompt_name=self.prompt_name, **options)


def _as_list(prompts: Prompts) -> list[Prompt]:
    """A single prompt as a list of one; vLLM's dicts as what they hold."""
    single = isinstance(prompts, str | Mapping) or (
        len(prompts) > 0 and isinstance(prompts[0], int | np.integer) and not isinstance(prompts[0], bool)
    )
    items = [prompts] if single else list(prompts)
    return [_unwrap(item) for item in items]


def _unwrap(item: Any) -> Prompt:
    if not isinstance(item, Mapping):
        return cast(Prompt, item)
    for key in ("prompt", "prompt_token_ids"):
        if key in item:
            return cast(Prompt, item[key])
    raise InvalidRequest(f"a prompt has the keys {sorted(item)}; allowed is prompt or prompt_token_ids", "prompts")


def _collect(under_way: deque[tuple[PackedBatch, Future[PooledOutput]]], bar: Any) -> list[tuple[Rows, Ids]]:
    """Waits for the oldest chunk."""
    batch, future = under_way.popleft()
    rows = future.result().rows()
    bar.update(len(rows))
    return list(zip(rows, np.split(batch.ids, batch.offsets()[1:-1]), strict=True))
