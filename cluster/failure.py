"""refusal(): our own error inside what Ray reports when a task or an actor failed."""

import re

from pooling import errors

# Ray hands on an actor's exception as the text of a traceback, in which ours reads `pooling.errors.Kind: detail`.
_RAISED = re.compile(r"pooling\.errors\.(\w+): (.+)")
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Warning)\b: ")


def refusal(report: str) -> errors.PoolingError | None:
    """The error that was raised where the fact was known, rebuilt from Ray's report; None if it holds none of ours."""
    for name, detail in reversed(_RAISED.findall(report)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.PoolingError):
            return kind(detail.strip())
    return None


def last_line(report: str) -> str:
    """The last exception of a report; of one without any, the sentence that it ends with."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    return (raised or lines or ["Ray gave no reason"])[-1]
