"""One library with one model, run by that library's own Python: python offline_worker.py

Nothing of ours is imported but by the worker that runs ours. One JSON object a
line comes in, one goes out for each:

    {"do": "load", "library", "model", "task", "dtype", "threads", "sets": FILE}
    {"do": "run", "set"}             one pass over the set
    {"do": "one", "input", "times"}  one text, or query with its document, so often

The answers have "seconds" (of "one": a list), and of a run "sample": the first
answers, by which the libraries are compared. What fails is answered as
{"error": one line}.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

_SAMPLE = 8
# A query and the documents that are scored with it.
Groups = list[tuple[str, list[str]]]


class Raypool:
    quantization: Any = None

    def __init__(self, model: str, task: Any, dtype: Any) -> None:
        from pooling import LLM

        asked = "embed" if task == "images" else task
        self._llm = LLM(model, task=asked, dtype=dtype, quantization=self.quantization)

    def embed(self, texts: list[str]) -> Any:
        return [output.outputs.embedding for output in self._llm.embed(texts, use_tqdm=False)]

    def images(self, files: list[str]) -> Any:
        from pooling import Image

        return self.embed([Image.of(picture) for picture in _opened(files)])

    def score(self, groups: Groups) -> Any:
        outputs = self._llm.score(*_pairs(groups), use_tqdm=False)
        return [output.outputs.score for output in outputs]


class RaypoolInt8(Raypool):
    quantization = "int8"


class SentenceTransformers:
    """Batches of 32, its default."""

    def __init__(self, model: str, task: Any, dtype: Any) -> None:
        import sentence_transformers
        import torch

        kind = "CrossEncoder" if task == "score" else "SentenceTransformer"
        options = {"device": "cpu", "model_kwargs": {"dtype": getattr(torch, dtype)}}
        self._model = getattr(sentence_transformers, kind)(model, **options)

    def embed(self, texts: list[str]) -> Any:
        return self._model.encode(texts, show_progress_bar=False)

    def images(self, files: list[str]) -> Any:
        return self._model.encode(_opened(files), show_progress_bar=False)

    def score(self, groups: Groups) -> Any:
        return self._model.predict(list(zip(*_pairs(groups), strict=True)), show_progress_bar=False)


class Infinity:
    """A query and its documents are one call of rerank; all calls are made at once."""

    def __init__(self, model: str, task: Any, dtype: Any) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        options = {"engine": "torch", "device": "cpu", "dtype": dtype, "bettertransformer": False, "compile": False}
        arguments = EngineArgs(model_name_or_path=model, batch_size=32, model_warmup=False, **options)
        self._engine = AsyncEmbeddingEngine.from_args(arguments)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._engine.astart())

    def embed(self, texts: list[str]) -> Any:
        return self._loop.run_until_complete(self._engine.embed(sentences=texts))[0]

    def images(self, files: list[str]) -> Any:
        return self._loop.run_until_complete(self._engine.image_embed(images=_opened(files)))[0]

    def score(self, groups: Groups) -> Any:
        async def all_of_them() -> list[Any]:
            calls = (self._engine.rerank(query=query, docs=documents) for query, documents in groups)
            return await asyncio.gather(*calls)

        answers = [ranked for ranked, *_ in self._loop.run_until_complete(all_of_them())]
        return [found.relevance_score for ranked in answers for found in sorted(ranked, key=lambda found: found.index)]


class Vllm:
    """Eager: its default, compiled, is several times slower on a CPU. Its cache of prefixes, of decoders, is emptied
    before every call, for all rounds ask for the same texts."""

    def __init__(self, model: str, task: Any, dtype: Any) -> None:
        from vllm import LLM

        options = {"runner": "pooling", "dtype": dtype, "enforce_eager": True}
        self._llm = LLM(model=model, **options)

    def embed(self, texts: list[str]) -> Any:
        self._llm.reset_prefix_cache()
        return [output.outputs.embedding for output in self._llm.embed(texts, use_tqdm=False)]

    def score(self, groups: Groups) -> Any:
        self._llm.reset_prefix_cache()
        outputs = self._llm.score(*_pairs(groups), use_tqdm=False)
        return [output.outputs.score for output in outputs]


LIBRARIES: dict[str, Any] = {
    "raypool": Raypool,
    "raypool-int8": RaypoolInt8,
    "sentence-transformers": SentenceTransformers,
    "infinity": Infinity,
    "vllm": Vllm,
}


class Worker:
    def __init__(self) -> None:
        self._library: Any = None
        self._call: Callable[[Any], Any]
        self._sets: dict[str, Any] = {}

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self, f"_{message.pop('do')}")(**message)
        return answer

    def _load(self, library: str, model: str, task: str, dtype: str, threads: int, sets: str) -> dict[str, Any]:
        start = time.perf_counter()
        with open(sets, encoding="utf-8") as file:
            self._sets = json.load(file)
        if library != "vllm":  # which binds threads of its own by its environment
            import torch

            torch.set_num_threads(threads)
        self._library = LIBRARIES[library](model, task, dtype)
        self._call = getattr(self._library, task)
        return {"seconds": time.perf_counter() - start}

    def _run(self, set: str) -> dict[str, Any]:
        inputs = self._sets[set]
        start = time.perf_counter()
        answers = self._call(inputs)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "answers": len(answers), "sample": [_plain(one) for one in answers[:_SAMPLE]]}

    def _one(self, input: Any, times: int) -> dict[str, Any]:
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            self._call([input])
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


def _opened(files: list[str]) -> Any:
    """Decoded, as every library is given them."""
    from PIL import Image

    pictures = [Image.open(file) for file in files]
    for picture in pictures:
        picture.load()
    return pictures


def _pairs(groups: Groups) -> tuple[list[str], list[str]]:
    """Groups of a query and its documents as two lists of equal length."""
    queries = [query for query, documents in groups for _ in documents]
    return queries, [document for _, documents in groups for document in documents]


def _plain(answer: Any) -> list[float] | float:
    """Numbers of Python's own: a vector as a list, a score as a float."""
    listed = answer.tolist() if hasattr(answer, "tolist") else answer
    return [float(number) for number in listed] if isinstance(listed, list) else float(listed)


def main() -> None:
    # What libraries print goes to the log: the answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {reason}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if os.getsid(0) == os.getpid():  # whoever asked is gone: nothing that a library started shall stay
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
