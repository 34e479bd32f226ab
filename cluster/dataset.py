"""Embedder: the callable class for ray.data.Dataset.map_batches, texts in, vectors out."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from ray.data.block import BlockAccessor

from cluster.actor_process import settle_actor_process
from pooling.config import ModelSpec, parse_settings
from pooling.engine import Engine
from pooling.errors import ConfigError, InvalidRequest, NonFiniteResult
from pooling.intake import Intake
from pooling.request import PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Rows

Result = TypeVar("Result")


class Embedder:
    """Embeds a column of texts; one engine for each actor of the pool.

        dataset.map_batches(
            Embedder,
            fn_constructor_kwargs={"model": "org/name", "column": "text"},
            batch_format="pyarrow",
            batch_size=2048,
            compute=ray.data.ActorPoolStrategy(size=1),
        )

    model: a source, or a ModelSpec; with a source, further keywords are settings
    of ModelSpec (dtype, device, max_model_len, ...). dimensions, normalize,
    prompt_name: as in a request; None keeps the model's choice. truncate: cut
    over-long texts to what the model takes instead of refusing them. threads:
    of an engine on CPUs; None: as many as its actor has CPUs.

    Takes a batch as a pyarrow.Table or as a dict of columns, and returns a
    pyarrow.Table: the columns and rows it got, in order, then `output_column`,
    fixed-size lists of float32, and `error_column`, strings. A row that cannot
    be embedded (null, no text, too long) has a null vector and the reason in
    `error_column`, which is null for all others. Large batches are best: the
    engine sorts them by length. Safe to call from several threads.
    Raises StartupError of the fitting kind if the model cannot run as asked.
    """

    def __init__(
        self,
        model: str | ModelSpec,
        *,
        column: str = "text",
        output_column: str = "embedding",
        error_column: str = "error",
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        spec = _spec(model, settings)
        self._column, self._output_column, self._error_column = column, output_column, error_column
        self._intake = Intake.load(spec)
        self._request = row_request(self._intake, dimensions, normalize, prompt_name, truncate)
        settle_actor_process(threads)
        self._engine = Engine.load(spec)
        pooler = self._engine.card.poolers["embed"]
        self._dim = dimensions or pooler.dimensions or pooler.width
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raypool-embedder", daemon=True)
        self._thread.start()

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        table = batch if isinstance(batch, pa.Table) else BlockAccessor.batch_to_arrow_block(dict(batch))
        refuse_columns(table.column_names, self._column, self._output_column, self._error_column)
        vectors, reasons = self._embed(table.column(self._column).to_pylist())
        bad = np.zeros(len(vectors), dtype=bool)
        bad[list(reasons)] = True
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._dim, mask=pa.array(bad))
        errors = pa.array([reasons.get(row) for row in range(len(vectors))], pa.string())
        return table.append_column(self._output_column, lists).append_column(self._error_column, errors)

    def close(self) -> None:
        """Ends the engine and its threads, for a caller that is no actor: those end with their process."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._engine.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _embed(self, values: list[Any]) -> tuple[Rows, dict[int, str]]:
        """Vectors [rows, dim] float32, zeros where `reasons` says why there is none."""
        vectors = np.zeros((len(values), self._dim), np.float32)
        reasons = {row: _no_text(value) for row, value in enumerate(values) if not isinstance(value, str)}
        rows = np.array([row for row in range(len(values)) if row not in reasons], np.int64)
        batches = _divide(lambda start, stop: self._tokenize([values[row] for row in rows[start:stop]]), rows, reasons)
        if batches:
            rows = np.concatenate([part for part, _ in batches])
            whole = PackedBatch.join([batch for _, batch in batches])
            for part, output in _divide(lambda start, stop: self._pool(whole.slice(start, stop)), rows, reasons):
                vectors[part] = output.data
        return vectors, reasons

    def _tokenize(self, texts: list[str]) -> PackedBatch:
        return self._intake.tokenize(replace(self._request, inputs=texts))

    def _pool(self, batch: PackedBatch) -> PooledOutput:
        return asyncio.run_coroutine_threadsafe(self._engine.pool(batch), self._loop).result()


def row_request(
    intake: Intake, dimensions: int | None, normalize: bool | None, prompt_name: str | None, truncate: bool
) -> PoolingRequest:
    """What is asked for every row, as a request without inputs.

    Raises ConfigError if the model does not do it: better once than in every row.
    """
    params = PoolingParams(use_activation=normalize, dimensions=dimensions)
    request = PoolingRequest([], "embed", params, -1 if truncate else None, prompt_name=prompt_name)
    try:
        intake.tokenize(replace(request, inputs=["a"]))
    except InvalidRequest as error:
        raise ConfigError(error.detail) from None
    return request


def refuse_columns(names: list[str], column: str, *new: str) -> None:
    """Raises ConfigError if the column of texts is missing or a column to be written is there already."""
    if column not in names:
        raise ConfigError(f"there is no column {column!r}; the columns are {', '.join(names)}")
    taken = [name for name in new if name in names]
    if taken:
        raise ConfigError(f"the input has a column {taken[0]!r} already; choose another name for the new one")


def _spec(model: str | ModelSpec, settings: dict[str, Any]) -> ModelSpec:
    if isinstance(model, str):
        return parse_settings(ModelSpec, {"source": model, **settings}, "Embedder")
    if settings:
        raise ConfigError(f"Embedder: {', '.join(settings)} given beside a ModelSpec; set it in the ModelSpec")
    return model


def _no_text(value: Any) -> str:
    return "the row is null" if value is None else f"the row holds {type(value).__name__}, not text"


def _divide(
    work: Callable[[int, int], Result], rows: Any, reasons: dict[int, str], start: int = 0, stop: int | None = None
) -> list[tuple[Any, Result]]:
    """Does the work on all rows at once; where one spoils it, on each half, down to the rows at fault.

    Returns the results with the rows each is for. A few bad rows among
    thousands cost a few more calls; no row costs another one its answer.
    """
    stop = len(rows) if stop is None else stop
    if start == stop:
        return []
    try:
        return [(rows[start:stop], work(start, stop))]
    except (InvalidRequest, NonFiniteResult) as error:
        if stop - start == 1:
            reasons[int(rows[start])] = error.detail
            return []
    middle = (start + stop) // 2
    return _divide(work, rows, reasons, start, middle) + _divide(work, rows, reasons, middle, stop)
