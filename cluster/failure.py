"""refusal(): our own error inside what Ray reports when a task or an actor failed."""

import re

from pooling import errors

# Ray hands on an actor's exception as the text of a traceback, in which ours reads `pooling.errors.Kind: detail`.
_RAISED = re.compile(r"pooling\.errors\.(\w+): (.+)")


def refusal(report: str) -> errors.PoolingError | None:
    """The error that was raised where the fact was known, rebuilt from Ray's report; None if it holds none of ours."""
    for name, detail in reversed(_RAISED.findall(report)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.PoolingError):
            return kind(detail.strip())
    return None


def last_line(report: str) -> str:
    """The sentence that a report ends with: of a traceback, the exception."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    return lines[-1] if lines else "Ray gave no reason"
