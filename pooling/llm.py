"""LLM: the offline API, shaped like vLLM's: encode, embed, classify, score, reward; outputs in input order."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch

from pooling.asked import Asked, Prompts, sides_of, texts_of
from pooling.config import HfOverrides, ModelSpec, PoolerConfig, Quantization, Task, parse_settings
from pooling.errors import InvalidRequest
from pooling.judge import check_params, check_task
from pooling.kept import apart, side_of
from pooling.loading.card import InputType
from pooling.media import Content
from pooling.offline import OfflineEngine
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
from pooling.request import Chunks, Ids, PoolingParams, Prompt, Rows
from pooling.scoring import check_scoring, compare, pair_up
from pooling.sparse import SparseView
from pooling.tasks import AND


class LLM:
    """A pooling model in this process.

    model: a directory, a hub id, or python:package/dir. task: what encode()
    does by default; `auto` takes the model's own first task. dtype: `auto` is
    bfloat16 where the hardware multiplies it fast, float32 elsewhere.
    override_pooler_config: a PoolerConfig or its fields as a dict; beats what the
    model's files say. max_model_len: tokens an input may have; None takes the
    model's own limit. hf_overrides, an HfOverrides or its
    fields as a dict, says which logits of a causal language model are its answer;
    chat_template, Jinja or a file of it, how a pair reads; instruction, what a
    template tells the model. tensor_parallel_size: over how many GPUs of this
    machine the model is split, each in a process that is started here.
    limit_mm_per_prompt: how many images an input may have, as {"image": 8}.
    enforce_eager: on a GPU, run small steps without CUDA graphs. quantization:
    linear layers of 8-bit numbers, `int8` on a CPU with VNNI, `fp8` on a GPU from
    Ada and Hopper on; the log says how close the answers stay.
    Raises StartupError of the fitting kind if the model cannot be served exactly.
    Usable as a context manager; close() ends its threads.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
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
        limit_mm_per_prompt: Mapping[str, int] | None = None,
        enforce_eager: bool = False,
        quantization: Quantization | None = None,
    ) -> None:
        override = override_pooler_config
        settings = {
            "source": os.fspath(model) if isinstance(model, os.PathLike) else model,
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
            "enforce_eager": enforce_eager,
            "quantization": quantization,
        }
        if limit_mm_per_prompt is not None:
            settings["limit_mm_per_prompt"] = dict(limit_mm_per_prompt)
        spec = parse_settings(ModelSpec, settings, "LLM")
        self._offline = OfflineEngine(spec)
        self.card = self._offline.card
        self._numbers = itertools.count()

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

        prompts: a text, a list of token ids, or a list of either; for a model that
        takes images also the nouns of pooling/media.py, and vLLM's dicts with
        `multi_modal_data`.
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
        asked = Asked(pooling_task, pooling_params, prompt_name, tokenization_kwargs, prompt, input_type)
        several = isinstance(pooling_task, str) and AND in pooling_task
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
        task = AND.join(self.card.poolers if tasks is None else texts_of(tasks, "tasks"))
        if not task:
            raise InvalidRequest(f"tasks is empty; allowed are some of {', '.join(self.card.poolers)}", "tasks")
        params, side = pooling_params or PoolingParams(), side_of(self.card, input_type)
        asked = Asked(task, params, prompt_name, tokenization_kwargs, input_type=input_type)
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
        if keys not in ("id", "token"):
            raise InvalidRequest(f"keys is {keys!r}; allowed are id and token", "keys")
        view, params = SparseView(self.card, self._offline.intake.tokenizer), PoolingParams()
        asked = Asked(view.task, params, prompt_name, tokenization_kwargs, input_type=input_type)
        answers = []
        for rows, ids in self._offline.stream(prompts, asked, use_tqdm):
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
        asked = Asked("embed", pooling_params, prompt_name, tokenization_kwargs, prompt, input_type)
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
        lists = isinstance(documents, Sequence) and not isinstance(documents, str)
        if not lists or not all(isinstance(document, Sequence) for document in documents):
            raise InvalidRequest("embed_late takes a list of documents, each a list of its chunks", "documents")
        if any(isinstance(document, str) for document in documents):
            raise InvalidRequest("embed_late takes documents, each a list of its chunks; a text is given", "documents")
        if not isinstance(separator, str):
            raise InvalidRequest(f"separator is {type(separator).__name__}; allowed is a text", "separator")
        asked = Asked("embed", pooling_params, prompt_name, tokenization_kwargs, prompt)
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
        asked = Asked("classify", pooling_params, None, tokenization_kwargs)
        read = self._run(prompts, asked, use_tqdm)  # refuses a model that has no labels
        labels = self.card.labels_of("classify")
        return [
            ClassificationRequestOutput(self._id(), ClassificationOutput(rows.tolist(), labels), ids.tolist())
            for rows, ids in read
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
        data_1: str | Content | Sequence[str | Content],
        data_2: str | Content | Sequence[str | Content],
        /,
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
        prompt_name: str | None = None,
        instruction: str | None = None,
        chat_template: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ScoringRequestOutput]:
        """How relevant each of data_2 is to data_1: 1:1, 1:N, or N:N one by one; texts, or Content with images.

        A cross-encoder reads each pair; an embedding model's vectors are
        compared as its files say, by cosine where they say nothing. prompt_name:
        the prompt before the query of a pair, or before every text of an embedding
        model. instruction and chat_template: for this call, as in LLM().
        tokenization_kwargs: as in encode(), and for pairs `max_tokens_per_query`
        and `max_tokens_per_doc`. Raises UnsupportedTask if the model does
        neither, InvalidRequest if one text cannot be served; none is then.
        """
        kind = check_scoring(self.card)
        first, second = sides_of(data_1, "data_1"), sides_of(data_2, "data_2")
        pairs = pair_up(first, second)
        if kind == "cross_encoder":
            asked = Asked(
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
            asked = Asked(
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
        self._offline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _quantiser(self, precision: str, params: PoolingParams | None) -> Quantiser:
        check_task("embed", self.card)
        asked = PoolingParams() if params is None else params
        check_params("embed", asked, self.card)
        return quantiser_for(precision, self.card, asked)

    def _id(self) -> str:
        return str(next(self._numbers))

    def _run(self, prompts: Prompts | Sequence[Prompt], asked: Asked, use_tqdm: bool) -> list[tuple[Rows, Ids]]:
        return list(self._offline.stream(prompts, asked, use_tqdm))
