"""How many replicas the policy wants, by the tokens that wait at those there are."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.config import ModelConfig
from deployments.scaling import QUEUED_TOKENS, QueuedTokens


def context(*tokens: float, requests: float = 1.0) -> Any:
    counts = {str(index): count for index, count in enumerate(tokens)}
    return SimpleNamespace(aggregated_metrics={QUEUED_TOKENS: counts}, total_num_requests=requests)


@pytest.mark.parametrize(
    ("tokens", "requests", "wanted"),
    [
        ((8_000.0, 0.0), 1.0, 8.0),  # one request of many tokens
        ((500.0, 500.0), 90.0, 1.0),  # many requests of few
        ((10.0,), 1.0, 1.0),  # little work is still work
        ((0.0, 0.0), 0.0, 0.0),
        ((), 3.0, 1.0),  # no replica yet: requests wait at the routers
    ],
)
def test_replicas_follow_tokens_and_not_requests(tokens: tuple[float, ...], requests: float, wanted: float) -> None:
    assert QueuedTokens(target=1_000)(context(*tokens, requests=requests)) == (wanted, {})


def test_replicas_that_have_not_reported_yet_count_as_nothing() -> None:
    assert QueuedTokens(target=1_000)(SimpleNamespace(aggregated_metrics={}, total_num_requests=0.0)) == (0.0, {})


def test_the_target_is_eight_steps_unless_it_is_given() -> None:
    scaled = {"source": "a", "autoscaling": {"max": 2}}
    assert ModelConfig.model_validate(scaled).target_queued_tokens == 8 * 1_024
    assert ModelConfig.model_validate({**scaled, "device": "cuda"}).target_queued_tokens == 8 * 16_384
    assert ModelConfig.model_validate({**scaled, "max_batch_tokens": 100}).target_queued_tokens == 800
    scaled["autoscaling"] = {"max": 2, "target_queued_tokens": 5}
    assert ModelConfig.model_validate(scaled).target_queued_tokens == 5
