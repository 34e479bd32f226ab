"""LLM: the offline API, shaped like vLLM's: encode, embed, classify, score, reward; outputs in input order."""

import asyncio
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from tqdm import tqdm

from pooling.config import HfOverrides, ModelSpec, PoolerConfig, Task, parse_settings
from pooling.engine import Engine
from pooling.errors import EngineDead, InvalidRequest
from pooling.intake import Intake
from pooling.judge import check_task
from pooling.kept import apart, side_of
from pooling.loading.card import InputType
from pooling.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    MultiOutput,
    MultiRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    SparseOutput,
    SparseRequestOutput,
)
from pooling.quantise import Precision, Quantiser, quantiser_for
from pooling.request import Chunks, Ids, PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Prompt, Rows
from pooling.scoring import check_scoring, compare, pair_up
from pooling.sparse import SparseView
from pooling.tasks import AND

Prompts = str | Sequence[int] | Sequence[str | Sequence[int] | Ids] | Mapping[str, Any] | Sequence[Mapping[str, Any]]

# Inputs tokenised at once: enough for long runs of equal length, which the CPU kernel likes,
# while the next ones are tokenised during the forward pass of these.
_CHUNK = 2_048
_CHUNKS_AHEAD = 2
# Of answers as wide as a vocabulary, which are held until they are read.
_CHUNK_BYTES = 64 * 2**20
_TOKENIZATION = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens")
_PER_TEXT = ("max_tokens_per_query", "max_tokens_per_doc")


class LLM:
    """A pooling model in this process.

    model: a directory, a hub id, or python:package/dir. task: what encode()
    does by default; `auto` takes the model's own first task. dtype: `auto` is bfloat16 where the hardware multiplies it
    fast, float32 elsewhere. override_pooler_config: a PoolerConfig or its fields
    as a dict; beats what the model's files say. max_model_len: tokens an input
    may have; None takes the model's own limit. hf_overrides, an HfOverrides or its
    fields as a dict, says which logits of a causal language model are its answer;
    chat_template, Jinja or a file of it, how a pair reads; instruction, what a
    template tells the model.
    Raises StartupError of the fitting kind if the model cannot be served exactly.
    Usable as a context manager; close() ends its threads.
    """

    def __init__(
        self,
        model: str,
        *,
        task: Task | Literal["auto"] = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        override_pooler_config: PoolerConfig | Mapping[str, Any] | None = None,
        hf_overrides: HfOverrides | Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        instruction: str | None = None,
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
            "hf_overrides": dict(hf_overrides) if isinstance(hf_overrides, Mapping) else hf_overrides,
            "chat_template": chat_template,
            "instruction": instruction,
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
        # For those who never close: the thread knows the loop alone, not this object.
        weakref.finalize(self, _stop, self._loop)

    def encode(
        self,
        prompts: Prompts,
        pooling_params: PoolingParams | None = None,
        *,
        pooling_task: str | None = None,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        input_type: InputType | None = None,
    ) -> list[PoolingRequestOutput]:
        """The pooled hidden states of each prompt, as they are.

        prompts: a text, a list of token ids, or a list of either.
        pooling_task: None is the model's default task; several joined by `&` are
        answered from one forward pass. What is put before every text: `prompt`, or
        the model's prompt of that `prompt_name`; neither: its default prompt, and ""
        is none at all. tokenization_kwargs:
        `truncate_prompt_tokens`, `truncation_side`, `add_special_tokens`.
        input_type: which side of a search the prompts are on.
        `outputs.data` is a float32 tensor: [dim], or [tokens, dim] for a token
        task; of several tasks all their numbers in a line. Raises InvalidRequest if
        one prompt cannot be served; none is then.
        """
        asked = _Asked(pooling_task, pooling_params, prompt_name, tokenization_kwargs, prompt, input_type)
        several = AND in (pooling_task or "")
        return [
            PoolingRequestOutput(
                self._id(), PoolingOutput(torch.from_numpy((rows[:, 0] if several else rows).copy())), ids.tolist()
            )
            for rows, ids in self._run(prompts, asked, use_tqdm)
        ]

    def encode_multi(
        self,
        prompts: Prompts,
        tasks: Sequence[str] | None = None,
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        input_type: InputType | None = None,
    ) -> list[MultiRequestOutput]:
        """The answers to several tasks from one forward pass, e.g. bge-m3's dense, sparse and multi-vector ones.

        tasks: None means all that the model can do. `outputs.data` maps each
        task to a float32 tensor; the other arguments are as in encode().
        """
        task = AND.join(self.card.poolers if tasks is None else tasks)
        params, side = pooling_params or PoolingParams(), side_of(self.card, input_type)
        asked = _Asked(task, params, prompt_name, tokenization_kwargs, input_type=input_type)
        answers = []
        for rows, ids in self._run(prompts, asked, use_tqdm):
            parts = {task: rows} if AND not in task else apart(rows[:, 0], ids, task, self.card, params, side)
            data = {name: torch.from_numpy(part.copy()) for name, part in parts.items()}
            answers.append(MultiRequestOutput(self._id(), MultiOutput(data), ids.tolist()))
        return answers

    def embed_sparse(
        self,
        prompts: Prompts,
        *,
        keys: Literal["id", "token"] = "id",
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        input_type: InputType | None = None,
    ) -> list[SparseRequestOutput]:
        """The words of each prompt, or words near it in meaning, that have a weight.

        keys: by what `outputs.weights` names a word. The other arguments are as
        in encode(). Raises UnsupportedTask for a model that weighs no words.
        """
        view, params = SparseView(self.card, self._intake.tokenizer), PoolingParams()
        asked = _Asked(view.task, params, prompt_name, tokenization_kwargs, input_type=input_type)
        answers = []
        for rows, ids in self._stream(prompts, asked, use_tqdm):
            weights = view.weights(rows, ids, params)
            named = SparseOutput(view.tokens(weights) if keys == "token" else weights)
            answers.append(SparseRequestOutput(self._id(), named, ids.tolist()))
        return answers

    def embed(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        precision: Precision = "float32",
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        input_type: InputType | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """One vector for each prompt; arguments as in encode().

        precision: `float32`, or `int8`, `uint8`, `binary` or `ubinary`, of which
        `embedding` then has the integers (pooling/quantise.py); eight numbers
        share one of the latter two.
        """
        asked = _Asked("embed", pooling_params, prompt_name, tokenization_kwargs, prompt, input_type)
        quantise = self._quantiser(precision, pooling_params)
        return [
            EmbeddingRequestOutput(self._id(), EmbeddingOutput(quantise(rows).tolist()), ids.tolist())
            for rows, ids in self._run(prompts, asked, use_tqdm)
        ]

    def encode_query(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        precision: Precision = "float32",
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """embed() for what is searched with: behind the model's prompt `query` where none is given, if it has one."""
        return self.embed(
            prompts,
            pooling_params=pooling_params,
            precision=precision,
            use_tqdm=use_tqdm,
            prompt_name=prompt_name,
            prompt=prompt,
            tokenization_kwargs=tokenization_kwargs,
            input_type="query",
        )

    def encode_document(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        precision: Precision = "float32",
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """embed() for what is searched: behind the first of the model's prompts `document`, `passage` and `corpus`."""
        return self.embed(
            prompts,
            pooling_params=pooling_params,
            precision=precision,
            use_tqdm=use_tqdm,
            prompt_name=prompt_name,
            prompt=prompt,
            tokenization_kwargs=tokenization_kwargs,
            input_type="document",
        )

    def embed_late(
        self,
        documents: Sequence[Sequence[str]],
        *,
        separator: str = " ",
        pooling_params: PoolingParams | None = None,
        precision: Precision = "float32",
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[list[EmbeddingRequestOutput]]:
        """Late chunking: a vector for each chunk of each document, read in the context of the whole document.

        documents: the chunks of each, in order, joined by `separator` into one
        text of at most the model's max_model_len tokens. A chunk's vector is the
        mean of its tokens' contextual states; special tokens, prompts and
        separators are in none. Other arguments as in embed(). Raises
        InvalidRequest for a model that does not pool MEAN and for a chunk without
        a token. Source: Guenther et al. 2024, arXiv:2409.04701.
        """
        if isinstance(documents, str) or any(isinstance(document, str) for document in documents):
            raise InvalidRequest("embed_late takes documents, each a list of its chunks; a text is given", "documents")
        asked = _Asked("embed", pooling_params, prompt_name, tokenization_kwargs, prompt)
        quantise = self._quantiser(precision, pooling_params)
        read = self._run([Chunks(tuple(document), separator) for document in documents], asked, use_tqdm)
        return [
            [EmbeddingRequestOutput(self._id(), EmbeddingOutput(row.tolist()), ids.tolist()) for row in quantise(rows)]
            for rows, ids in read
        ]

    def classify(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """The probability of each label for each prompt; arguments as in encode().

        With `pooling_params=PoolingParams(use_activation=False)` the logits.
        """
        asked = _Asked("classify", pooling_params, None, tokenization_kwargs)
        columns = None if pooling_params is None else pooling_params.returned_token_ids
        labels = self.card.labels if columns is None else tuple(self.card.labels[column] for column in columns)
        return [
            ClassificationRequestOutput(self._id(), ClassificationOutput(rows.tolist(), labels), ids.tolist())
            for rows, ids in self._run(prompts, asked, use_tqdm)
        ]

    def reward(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """A reward model's answer for every token of each prompt; arguments as in encode().

        `outputs.data` is float32 [tokens, labels]; of a process reward model
        [steps, labels].
        """
        return self.encode(
            prompts,
            pooling_params,
            pooling_task="reward",
            use_tqdm=use_tqdm,
            tokenization_kwargs=tokenization_kwargs,
        )

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        /,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        instruction: str | None = None,
        chat_template: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ScoringRequestOutput]:
        """How relevant each of data_2 is to data_1: 1:1, 1:N, or N:N one by one.

        A cross-encoder reads each pair; an embedding model's vectors are
        compared as its files say, by cosine where they say nothing. prompt_name:
        the prompt before the query of a pair, or before every text of an embedding
        model. instruction and chat_template: for this call, as in LLM().
        tokenization_kwargs: as in encode(), and for pairs `max_tokens_per_query`
        and `max_tokens_per_doc`. Raises UnsupportedTask if the model does
        neither, InvalidRequest if one text cannot be served; none is then.
        """
        kind = check_scoring(self.card)
        first, second = ([data] if isinstance(data, str) else list(data) for data in (data_1, data_2))
        pairs = pair_up(first, second)
        if kind == "cross_encoder":
            asked = _Asked(
                "score",
                pooling_params,
                prompt_name,
                tokenization_kwargs,
                instruction=instruction,
                chat_template=chat_template,
            )
            answers = [(float(rows[0]), ids) for rows, ids in self._run(pairs, asked, use_tqdm)]
        else:
            task = "token_embed" if kind in ("max_sim", "mean_max_sim") else "embed"
            asked = _Asked(
                task,
                pooling_params,
                prompt_name,
                tokenization_kwargs,
                instruction=instruction,
                chat_template=chat_template,
            )
            if self.card.sides:
                queries = self._run(first, replace(asked, input_type="query"), use_tqdm)
                documents = self._run(second, replace(asked, input_type="document"), use_tqdm)
            else:
                read = self._run([*first, *second], asked, use_tqdm)
                queries, documents = read[: len(first)], read[len(first) :]
            queries = queries if len(first) == len(pairs) else [queries[0]] * len(pairs)
            answers = [
                (compare(kind, a, b), np.concatenate([a_ids, b_ids]))
                for (a, a_ids), (b, b_ids) in zip(queries, documents, strict=True)
            ]
        return [ScoringRequestOutput(self._id(), ScoringOutput(score), ids.tolist()) for score, ids in answers]

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

    def _quantiser(self, precision: str, params: PoolingParams | None) -> Quantiser:
        check_task("embed", self.card)
        return quantiser_for(precision, self.card, params or PoolingParams())

    def _id(self) -> str:
        return str(next(self._numbers))

    def _run(self, prompts: Prompts | Sequence[Prompt], asked: "_Asked", use_tqdm: bool) -> list[tuple[Rows, Ids]]:
        return list(self._stream(prompts, asked, use_tqdm))

    def _stream(
        self, prompts: Prompts | Sequence[Prompt], asked: "_Asked", use_tqdm: bool
    ) -> Iterator[tuple[Rows, Ids]]:
        """Tokenises chunk after chunk, a few ahead of the engine; (rows, ids) of each prompt in order."""
        if not self._thread.is_alive():
            raise EngineDead("this LLM was closed")
        inputs = _as_list(prompts)
        under_way: deque[tuple[PackedBatch, Future[PooledOutput]]] = deque()
        with tqdm(total=len(inputs), desc="Processed prompts", disable=not use_tqdm, dynamic_ncols=True) as bar:
            try:
                for batch in self._batches(inputs, asked):
                    under_way.append((batch, asyncio.run_coroutine_threadsafe(self._engine.pool(batch), self._loop)))
                    if len(under_way) > _CHUNKS_AHEAD:
                        yield from _collect(under_way, bar)
                while under_way:
                    yield from _collect(under_way, bar)
            finally:
                for _, future in under_way:
                    future.cancel()

    def _batches(self, inputs: list[Prompt], asked: "_Asked") -> Iterator[PackedBatch]:
        wide = asked.task is not None and asked.task == self.card.sparse_task == "embed"
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // (4 * self.card.dim))) if wide else _CHUNK
        for start in range(0, max(len(inputs), 1), chunk):
            yield self._intake.tokenize(asked.request(inputs[start : start + chunk]))


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a call asks of all its prompts."""

    task: str | None
    params: PoolingParams | None
    prompt_name: str | None
    tokenization: Mapping[str, Any] | None
    prompt: str | None = None
    input_type: InputType | None = None
    instruction: str | None = None
    chat_template: str | None = None

    def request(self, inputs: list[Prompt]) -> PoolingRequest:
        known = _TOKENIZATION if self.task != "score" else (*_TOKENIZATION, *_PER_TEXT)
        options = dict(self.tokenization or {})
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InvalidRequest(f"unknown tokenization_kwargs {unknown}; known are {', '.join(known)}")
        params = PoolingParams() if self.params is None else self.params
        if not isinstance(params, PoolingParams):
            raise InvalidRequest(f"pooling_params is {type(params).__name__}; allowed is a PoolingParams")
        return PoolingRequest(
            inputs,
            self.task,
            params,
            prompt_name=self.prompt_name,
            prompt=self.prompt,
            input_type=self.input_type,
            instruction=self.instruction,
            chat_template=self.chat_template,
            **options,
        )


def _as_list(prompts: Prompts | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt as a list of one; vLLM's dicts as what they hold."""
    if not isinstance(prompts, Sequence | Mapping | np.ndarray):
        raise InvalidRequest(
            f"prompts is {type(prompts).__name__}; allowed are a text, token ids, or a list of either", "prompts"
        )
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
