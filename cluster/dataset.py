"""Embedder, Classifier, Scorer, Rewarder: callable classes for ray.data.Dataset.map_batches, rows in, answers out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockAccessor

from cluster.answer_columns import numbers, vectors, vectors_of_tokens
from cluster.image_rows import ImageRows
from cluster.job_input import refuse_columns
from cluster.row_engine import Places, Reasons, RowEngine
from cluster.row_task import RowTask, RowTaskName, row_task
from pooling.config import ModelSpec, parse_settings
from pooling.errors import ConfigError
from pooling.intake import Intake
from pooling.request import PooledOutput
from pooling.scoring import compare_all


class Pooler(ABC):
    """What the four have in common; one engine for each actor of the pool.

        dataset.map_batches(
            Embedder,
            fn_constructor_kwargs={"model": "org/name", "column": "text"},
            batch_format="pyarrow",
            batch_size=2048,
            compute=ray.data.ActorPoolStrategy(size=1),
        )

    model: a source, or a ModelSpec; with a source, further keywords are settings
    of ModelSpec (dtype, device, max_model_len, ...). truncate: cut over-long
    texts to what the model takes instead of refusing them. threads: of an engine
    on CPUs; None: as many as its actor has CPUs.

    Takes a batch as a pyarrow.Table or as a dict of columns, and returns a
    pyarrow.Table: the columns and rows it got, in order, then those of the answer
    and `error_column`, strings. A row without an answer (null, no text, too long)
    has null ones and the reason in `error_column`, which is null for all others.
    Large batches are best: the engine sorts them by length. Safe to call from
    several threads. Raises StartupError of the fitting kind if the model cannot
    run as asked.
    """

    task: RowTaskName

    def __init__(
        self,
        model: str | ModelSpec,
        settings: dict[str, Any],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        error_column: str,
        threads: int | None,
        images: bool = False,
        **asked: Any,
    ) -> None:
        self._inputs, self._outputs, self._error_column = inputs, outputs, error_column
        spec = _spec(model, settings, type(self).__name__)
        intake = Intake.load(spec)
        self.card = intake.card
        self._task: RowTask = row_task(intake, self.task, images=images, **asked)
        self._images = ImageRows() if images else None
        self._engine = RowEngine(intake, spec, threads)

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        table = batch if isinstance(batch, pa.Table) else BlockAccessor.batch_to_arrow_block(dict(batch))
        return self.answer(table)

    def answer(self, table: pa.Table, faults: Mapping[int, str] | None = None) -> pa.Table:
        """As a call; faults: rows that are known to be bad, with the reason."""
        refuse_columns(table.column_names, self._inputs, (*self._outputs, self._error_column))
        columns = [table.column(name).to_pylist() for name in self._inputs]
        reasons = {**({} if self._images else _no_texts(self._inputs, columns)), **(faults or {})}
        answers = self._answer(columns, reasons)
        for name, answer in zip(self._outputs, answers, strict=True):
            table = table.append_column(name, answer)
        errors = pa.array([reasons.get(row) for row in range(len(table))], pa.string())
        return table.append_column(self._error_column, errors)

    def close(self) -> None:
        """Ends the engine and its threads, for a caller that is no actor: those end with their process."""
        self._engine.close()
        if self._images is not None:
            self._images.close()

    @abstractmethod
    def _answer(self, columns: list[list[Any]], reasons: Reasons) -> Sequence[pa.Array]:
        """The columns of the answer; adds to `reasons` the rows that have none."""

    def _rows(self, inputs: Sequence[Any], reasons: Reasons) -> tuple[Places, PooledOutput | None]:
        request = self._task.requests[0]
        if self._images is None:
            return self._engine.answer(request, inputs, reasons)
        rows: list[Places] = []
        outputs: list[PooledOutput] = []
        for start, images in self._images.pieces(inputs, reasons):
            bad = {row: "" for row, image in enumerate(images) if image is None}
            known = set(bad)
            places, output = self._engine.answer(request, images, bad)
            reasons.update({start + row: reason for row, reason in bad.items() if row not in known})
            if output is not None:
                rows.append(places + start)
                outputs.append(output)
        return (np.concatenate(rows), PooledOutput.merge(outputs)) if outputs else (np.empty(0, np.int64), None)

    @property
    def _width(self) -> int:
        """Numbers of a row of the answer."""
        asked, pooler = self._task.requests[0].params, self.card.poolers[self.task]
        columns = pooler.returned_token_ids
        return asked.dimensions or pooler.dimensions or (pooler.width if columns is None else len(columns))


class Embedder(Pooler):
    """Embeds a column of texts into `output_column`, fixed-size lists of float32; used as Pooler shows.

    image_column: embeds the pictures of that column instead, for a model that
    takes images; what a row may hold is in image_of(). dimensions, normalize,
    prompt_name: as in a request; None keeps the model's choice.
    """

    task = "embed"

    def __init__(
        self,
        model: str | ModelSpec,
        *,
        column: str = "text",
        image_column: str | None = None,
        output_column: str = "embedding",
        error_column: str = "error",
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        inputs, outputs = (image_column or column,), (output_column,)
        asked: dict[str, Any] = {"dimensions": dimensions, "use_activation": normalize, "prompt_name": prompt_name}
        asked |= {"truncate": truncate, "images": image_column is not None}
        super().__init__(model, settings, inputs, outputs, error_column, threads, **asked)

    def _answer(self, columns: list[list[Any]], reasons: Reasons) -> Sequence[pa.Array]:
        return [vectors(len(columns[0]), self._width, *self._rows(columns[0], reasons))]


class Classifier(Pooler):
    """Classifies a column of texts, or the pictures of `image_column`; used as Pooler shows.

    `output_column` has a probability for each label, fixed-size lists of float32,
    or logits with use_activation=False; `label_column` the name of the likeliest.
    """

    task = "classify"

    def __init__(
        self,
        model: str | ModelSpec,
        *,
        column: str = "text",
        image_column: str | None = None,
        output_column: str = "probs",
        label_column: str = "label",
        error_column: str = "error",
        use_activation: bool | None = None,
        truncate: bool = False,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        inputs, outputs = (image_column or column,), (output_column, label_column)
        asked: dict[str, Any] = {
            "use_activation": use_activation,
            "truncate": truncate,
            "images": image_column is not None,
        }
        super().__init__(model, settings, inputs, outputs, error_column, threads, **asked)

    def _answer(self, columns: list[list[Any]], reasons: Reasons) -> Sequence[pa.Array]:
        rows, output = self._rows(columns[0], reasons)
        labels: list[str | None] = [None] * len(columns[0])
        names = self.card.labels_of("classify")
        if output is not None and names:
            for row, best in zip(rows, output.data.argmax(axis=1), strict=True):
                labels[row] = names[best]
        return [vectors(len(labels), self._width, rows, output), pa.array(labels, pa.string())]


class Scorer(Pooler):
    """Scores a column of documents against a column of queries, row by row, into `output_column`, float32.

    Used as Pooler shows. A cross-encoder reads each pair, an embedding model's
    vectors are compared as its files say. prompt_name: as in LLM.score().
    """

    task = "score"

    def __init__(
        self,
        model: str | ModelSpec,
        *,
        query_column: str = "query",
        document_column: str = "document",
        output_column: str = "score",
        error_column: str = "error",
        use_activation: bool | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        inputs = (query_column, document_column)
        asked: dict[str, Any] = {"use_activation": use_activation, "prompt_name": prompt_name, "truncate": truncate}
        super().__init__(model, settings, inputs, (output_column,), error_column, threads, **asked)

    def _answer(self, columns: list[list[Any]], reasons: Reasons) -> Sequence[pa.Array]:
        queries, documents = columns
        if self._task.reads_pairs:
            rows, output = self._rows(list(zip(queries, documents, strict=True)), reasons)
            return [numbers(len(queries), rows, None if output is None else output.data[:, 0])]
        return [numbers(len(queries), *self._compared(queries, documents, reasons))]

    def _compared(self, queries: list[Any], documents: list[Any], reasons: Reasons) -> tuple[Places, Any]:
        of_queries, of_documents = self._task.requests
        rows, first = self._engine.answer(of_queries, queries, reasons)
        good, second = self._engine.answer(of_documents, documents, reasons)
        if first is None or second is None or self._task.scoring is None:
            return good[:0], None
        answers = first.rows()
        kept = [answers[place] for place in np.searchsorted(rows, good)]
        lengths = None if first.lengths is None else np.array([len(answer) for answer in kept], np.int32)
        data = np.stack(kept) if lengths is None else np.concatenate(kept)
        return good, compare_all(self._task.scoring, PooledOutput(data, lengths), second)


class Rewarder(Pooler):
    """What a reward model says of every token, or step, of a column of texts; used as Pooler shows.

    `output_column` has a list for each text, of one fixed-size list of float32 for each token.
    """

    task = "reward"

    def __init__(
        self,
        model: str | ModelSpec,
        *,
        column: str = "text",
        output_column: str = "reward",
        error_column: str = "error",
        use_activation: bool | None = None,
        truncate: bool = False,
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        asked: dict[str, Any] = {"use_activation": use_activation, "truncate": truncate}
        super().__init__(model, settings, (column,), (output_column,), error_column, threads, **asked)

    def _answer(self, columns: list[list[Any]], reasons: Reasons) -> Sequence[pa.Array]:
        return [vectors_of_tokens(len(columns[0]), self._width, *self._rows(columns[0], reasons))]


POOLERS: dict[RowTaskName, type[Pooler]] = {kind.task: kind for kind in (Embedder, Classifier, Scorer, Rewarder)}


def _spec(model: str | ModelSpec, settings: dict[str, Any], where: str) -> ModelSpec:
    if isinstance(model, str):
        return parse_settings(ModelSpec, {"source": model, **settings}, where)
    if settings:
        raise ConfigError(f"{where}: {', '.join(settings)} given beside a ModelSpec; set it in the ModelSpec")
    return model


def _no_texts(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Reasons:
    """Why rows cannot be read at all; where there is more than one column, the reason names it."""
    reasons: Reasons = {}
    for name, values in zip(names, columns, strict=True):
        whose = "the row" if len(names) == 1 else f"{name!r} of the row"
        for row, value in enumerate(values):
            if value is None:
                reasons.setdefault(row, f"{whose} is null")
            elif not isinstance(value, str):
                reasons.setdefault(row, f"{whose} holds {type(value).__name__}, not text")
    return reasons
