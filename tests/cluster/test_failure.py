"""Finding our own error in what Ray reports."""

from cluster.failure import last_line, refusal
from pooling.errors import CheckpointError, ConfigError

REPORT = """The deployment failed to start 2 times in a row. Error:
ray::ServeReplica:raypool:engine-x.initialize() (pid=1, ip=127.0.0.1)
  File "replica.py", line 80, in _load
pooling.errors.ConfigError: an earlier reason
RuntimeError: Traceback (most recent call last):
  File "model.py", line 76, in _match
pooling.errors.CheckpointError: tensor 'a.b' has shape [1, 2]; the configuration asks for [2, 2]
"""


def test_the_last_of_our_errors_is_rebuilt_with_its_kind() -> None:
    found = refusal(REPORT)
    assert type(found) is CheckpointError
    assert found.detail == "tensor 'a.b' has shape [1, 2]; the configuration asks for [2, 2]"


def test_a_report_without_one_of_ours_is_not_made_into_one() -> None:
    assert refusal("RuntimeError: out of memory") is None
    assert refusal("pooling.errors.Nonsense: made up") is None
    assert refusal("pooling.errors.re: not an error class") is None


def test_every_refusal_survives_the_way_ray_prints_it() -> None:
    error = ConfigError("dtype: allowed are a, b")
    kind = type(error)
    found = refusal(f"{kind.__module__}.{kind.__name__}: {error}")
    assert type(found) is ConfigError
    assert found.detail == error.detail


def test_the_last_line_of_a_traceback_is_its_exception() -> None:
    assert last_line("Traceback:\n  File x\nRuntimeError: no room\n\n") == "RuntimeError: no room"
    assert last_line("Traceback:\nRuntimeError: no room\n\nTo change retries, see the docs.") == "RuntimeError: no room"
    assert last_line("the node is gone\nsee its log") == "see its log"
    assert last_line("\n") == "Ray gave no reason"
