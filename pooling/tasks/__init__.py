"""What each task asks of pooler and head."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Task:
    """rows: one for an input, or one for each of its tokens. params: what a request may set.

    kind: `vector` answers are normalised and may be cut, `label` answers have
    one column for each label.
    """

    name: str
    rows: Literal["input", "token"]
    kind: Literal["vector", "label"]
    params: tuple[str, ...]


# What joins the names of tasks that one forward pass is to answer together, as vLLM's embed&token_classify.
AND = "&"

_VECTOR, _LABEL = ("dimensions", "use_activation"), ("use_activation",)
_STEP = (*_LABEL, "step_tag_id", "returned_token_ids")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("embed", "input", "vector", _VECTOR),
        Task("token_embed", "token", "vector", _VECTOR),
        Task("classify", "input", "label", _LABEL),
        Task("score", "input", "label", _LABEL),
        Task("token_classify", "token", "label", _STEP),
        Task("reward", "token", "label", _STEP),
    )
}


def parts_of(name: str) -> tuple[str, ...]:
    """The tasks that a name asks for: `embed&token_classify` is both, of one forward pass."""
    return tuple(name.split(AND))
