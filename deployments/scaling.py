"""QueuedTokens: how many replicas a model should have, by the tokens that wait or run at those it has.

Serve's controller imports this file and calls the policy every second; it
applies the bounds and the delays of the autoscaling settings itself.
"""

from typing import Any

from ray.serve.config import AutoscalingContext

# What EngineReplica.record_autoscaling_stats tells of itself.
QUEUED_TOKENS = "queued_tokens"


class QueuedTokens:
    """Wants a replica for every `target` tokens.

    Tokens and not requests are the measure of work: a request may be one word
    or a thousand pages. Without a replica there are no tokens to count, so that
    any request which waits at a router asks for the first.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        counts = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        wanted = sum(counts.values()) / self._target
        if context.total_num_requests > 0:
            wanted = max(wanted, 1.0)  # however small: what is under way must be answered
        return wanted, {}
