"""read_json(): a small file of a checkpoint, or the reason why it cannot be read."""

import json
from pathlib import Path
from typing import Any

from pooling.errors import CheckpointError


def read_json(file: Path) -> Any:
    """The content of a JSON file; raises CheckpointError naming the file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"the model has no {file.name}, which it needs") from None
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{file.name} cannot be read as JSON: {error}") from None
