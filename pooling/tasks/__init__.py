"""What each task asks of pooler and head."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Task:
    """rows: one vector for an input, or one for each of its tokens. params: what a request may set."""

    name: str
    rows: Literal["input", "token"]
    params: tuple[str, ...]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("embed", "input", ("dimensions", "use_activation")),
        Task("token_embed", "token", ("dimensions", "use_activation")),
    )
}
