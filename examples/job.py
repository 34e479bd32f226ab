"""A Ray job that asks the running service by its Serve handle: arrays in, arrays out.

On a node of the cluster:            python examples/job.py
From anywhere that reaches it:       ray job submit --address http://HEAD:8265 --working-dir . -- python examples/job.py
"""

import asyncio
import os
from typing import Any

# A job inherits the environment of the cluster. If that has RAY_SERVE_THROUGHPUT_OPTIMIZED, as `raypool serve` sets it,
# a handle wants an event loop of the caller's; with one of its own it has .result() too. Serve reads it on import.
os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")

import ray
from ray import serve

QUERY = "Which tool spreads work over several machines?"
TEXTS = ["A Ray cluster schedules tasks over many machines.", "Prune apple trees in spring.", "Whisk the egg whites."]


def ask(raypool: Any) -> None:
    """One call after another; a model of None is the first that does the task."""
    vectors = raypool.embed.remote(TEXTS).result(timeout_s=60)
    print("embed   ", vectors.shape, vectors.dtype)
    batch = raypool.tokenize.remote(TEXTS).result(timeout_s=60)
    ids = [batch.ids[start:stop] for start, stop in zip(batch.offsets(), batch.offsets()[1:], strict=False)]
    same = raypool.embed.remote(ids).result(timeout_s=60)
    print("from ids", same.shape, f"{abs(vectors - same).max():.0e} apart")
    scores = raypool.score.remote(QUERY, TEXTS).result(timeout_s=60)
    print("score   ", scores.shape, scores.dtype, TEXTS[scores.argmax()])
    for task in ("classify", "reward"):
        try:
            answer = getattr(raypool, task).remote(TEXTS).result(timeout_s=60)
        except Exception as error:  # of the service, as it is: no model of it does the task
            print(f"{task:<8} {error}")
            continue
        print(f"{task:<8}", answer.shape if task == "classify" else [rows.shape for rows in answer])


async def ask_at_once(raypool: Any) -> None:
    """Many calls under way together: the service fills its forward passes with them."""
    answers = await asyncio.gather(*(raypool.embed.remote([text] * 50) for text in TEXTS))
    print("at once ", [vectors.shape for vectors in answers])


ray.init("auto", log_to_driver=False)
raypool = serve.get_app_handle("raypool")
ask(raypool)
asyncio.run(ask_at_once(raypool))
