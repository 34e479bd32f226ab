"""Every error crosses a process boundary whole, and every class has its place in the tree."""

import pickle
from collections.abc import Iterator

import pytest

from deployments.http import errors as http_errors
from pooling import errors


def tree(kind: type[errors.PoolingError]) -> Iterator[type[errors.PoolingError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


OURS = [kind for kind in tree(errors.PoolingError) if kind.__module__ in (errors.__name__, http_errors.__name__)]


@pytest.mark.parametrize("kind", OURS)
def test_an_error_survives_pickling(kind: type[errors.PoolingError]) -> None:
    error = kind("what happened", "input")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.detail, again.param) == ("what happened", "what happened", "input")


def test_the_tree_in_the_module_names_every_class() -> None:
    assert errors.__doc__ is not None
    here = [kind.__name__ for kind in OURS if kind.__module__ == errors.__name__]
    assert [name for name in here if name not in errors.__doc__] == []
