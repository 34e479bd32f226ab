"""build(): a ServiceConfig -> the Serve application. All wiring is here.

Annotations must be real types, not strings: Serve validates `args` by them.
"""

from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster.placement import bundles
from deployments.config import ONGOING_REQUESTS, ModelConfig, ServiceConfig
from deployments.nodes import refuse_unequal_nodes
from deployments.replica import EngineReplica
from deployments.resources import Resources, running_cluster, settled_cluster, share_out
from deployments.router import Router

ROUTER = "router"

# Tokens bound the work, in the router and in the engine's steps; Serve's count of requests must not.
_ENGINE_ONGOING = 512
_HEALTH_PERIOD_S = 2.0
_HEALTH_TIMEOUT_S = 10.0
# A start that failed is tried once more: weights on a network disk may be late, damaged ones stay damaged.
_START_ATTEMPTS = 2
_QUIET = LoggingConfig(enable_access_log=False)


def build(args: ServiceConfig) -> Application:
    """The application: a router deployment in front of one engine deployment for each model."""
    if ray.is_initialized():
        cluster = settled_cluster(args)
        refuse_unequal_nodes(args)
    else:  # `serve build` only writes down what it would deploy
        cluster = running_cluster()
    resources = share_out(args.models, cluster, args.router.reserved_cpus)
    models = [
        model.model_copy(update={"device": resource.device})
        for model, resource in zip(args.models, resources, strict=True)
    ]
    # Serve places replicas in the order of what is bound: nodes are still empty for those that need whole ones.
    by_ranks = sorted(zip(models, resources, strict=True), key=lambda pair: -pair[1].ranks)
    engines = {model.deployment_name: _engine(model, resource) for model, resource in by_ranks}
    router = serve.deployment(
        name=ROUTER,
        num_replicas=args.router.replicas,
        ray_actor_options={"num_cpus": args.router.num_cpus},
        max_ongoing_requests=ONGOING_REQUESTS,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        max_constructor_retry_count=_START_ATTEMPTS,
        logging_config=_QUIET,
    )
    return router(serve.ingress()(Router)).bind(args.model_copy(update={"models": models}), engines)


def _engine(model: ModelConfig, resources: Resources) -> Application:
    count: dict[str, Any] = (
        {"autoscaling_config": _autoscaling(model)} if model.autoscaling else {"num_replicas": model.replicas}
    )
    deployment = serve.deployment(
        name=model.deployment_name,
        ray_actor_options={"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        max_ongoing_requests=_ENGINE_ONGOING,
        request_router_config=RequestRouterConfig(
            request_router_class="deployments.token_router:TokenRouter",  # type: ignore[arg-type]  # Serve takes both
            request_router_kwargs={"small_tokens": model.max_batch_tokens or model.step_tokens},
        ),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        max_constructor_retry_count=_START_ATTEMPTS,
        logging_config=_QUIET,
        **count,
        **_placement(resources),
    )
    return deployment(EngineReplica).bind(model.spec, resources.threads)


def _placement(resources: Resources) -> dict[str, Any]:
    """Room for every rank of a replica on one node; the replica itself is rank 0, in the first bundle."""
    if resources.ranks == 1:
        return {}
    reserved = bundles(resources.ranks, resources.num_cpus, resources.num_gpus)
    return {"placement_group_bundles": reserved, "placement_group_strategy": "STRICT_PACK"}


def _autoscaling(model: ModelConfig) -> AutoscalingConfig:
    wanted = model.autoscaling
    assert wanted is not None
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]  # Serve's is untyped
        policy_function="deployments.scaling:QueuedTokens", policy_kwargs={"target": model.target_queued_tokens}
    )
    return AutoscalingConfig(
        min_replicas=wanted.min,
        max_replicas=wanted.max,
        policy=policy,
        look_back_period_s=wanted.look_back_s,
        upscale_delay_s=wanted.upscale_delay_s,
        downscale_delay_s=wanted.downscale_delay_s,
    )
