import pytest

from deployments.admission import Admission
from pooling.errors import Overloaded


def test_requests_are_let_in_until_their_tokens_reach_the_limit() -> None:
    admission = Admission(100)
    with admission.hold(60), admission.hold(40):
        assert admission.tokens == 100
        with pytest.raises(Overloaded, match="100 tokens are queued, the limit is 100"), admission.hold(1):
            pass
        with pytest.raises(Overloaded):
            admission.check()
    assert admission.tokens == 0


def test_one_larger_than_the_limit_is_let_in_alone() -> None:
    admission = Admission(100)
    with admission.hold(1_000), pytest.raises(Overloaded), admission.hold(1):
        pass
    with admission.hold(1), pytest.raises(Overloaded), admission.hold(1_000):
        pass


def test_a_request_that_fails_gives_its_tokens_back() -> None:
    admission = Admission(100)
    with pytest.raises(KeyError), admission.hold(100):
        raise KeyError
    admission.check()
    assert admission.tokens == 0
