"""RowTask: what is asked for every row of a dataset, proved once against the model."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pooling.errors import ConfigError, InvalidRequest
from pooling.intake import Intake
from pooling.loading.card import ModelCard, Scoring
from pooling.media import Image
from pooling.request import PoolingParams, PoolingRequest, Prompt
from pooling.scoring import MAX_SIM, check_scoring

# Large enough for every processor: some refuse a picture that is smaller than a patch.
_PICTURE = Image.of(np.zeros((64, 64, 3), np.uint8))
RowTaskName = Literal["embed", "classify", "score", "reward"]
ROW_TASKS: tuple[RowTaskName, ...] = get_args(RowTaskName)


@dataclass(frozen=True, slots=True)
class RowTask:
    """requests: without inputs; one, or where vectors of two texts are compared that of queries and that of documents.

    scoring: how two texts are compared; None for a task of one text.
    """

    name: RowTaskName
    requests: tuple[PoolingRequest, ...]
    scoring: Scoring | None = None

    @property
    def reads_pairs(self) -> bool:
        """Whether one forward pass reads both texts."""
        return self.scoring == "cross_encoder"


def row_task(
    intake: Intake,
    name: RowTaskName,
    dimensions: int | None = None,
    use_activation: bool | None = None,
    prompt_name: str | None = None,
    truncate: bool = False,
    images: bool = False,
) -> RowTask:
    """images: every row is a picture. Raises ConfigError if the model does not do it: better once than in every row."""
    params = PoolingParams(use_activation=use_activation, dimensions=dimensions)
    request = PoolingRequest([], name, params, -1 if truncate else None, prompt_name=prompt_name)
    try:
        task = _scoring(intake.card, request) if name == "score" else RowTask(name, (request,))
        probe: Prompt = _PICTURE if images else ("a", "a") if task.reads_pairs else "a"
        for each in task.requests:
            intake.tokenize(replace(each, inputs=[probe]))
    except InvalidRequest as error:
        raise ConfigError(error.detail) from None
    return task


def _scoring(card: ModelCard, request: PoolingRequest) -> RowTask:
    kind = check_scoring(card)
    if kind == "cross_encoder":
        return RowTask("score", (request,), kind)
    each = replace(request, task="token_embed" if kind in MAX_SIM else "embed")
    if not card.sides:
        return RowTask("score", (each, each), kind)
    return RowTask("score", (replace(each, input_type="query"), replace(each, input_type="document")), kind)
