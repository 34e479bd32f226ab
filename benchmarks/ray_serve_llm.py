"""Serves a model with Ray Serve LLM over vLLM on the CPU, as its documentation says: run by the peer's own Python.

python ray_serve_llm.py MODEL NAME PORT THREADS DTYPE
"""

import signal
import sys

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    model, name, port, threads, dtype = sys.argv[1:]
    # More CPUs than there are, in name only: the replica and its ingress each reserve some.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": model},
        engine_kwargs={
            "runner": "pooling",
            "dtype": dtype,
            "enforce_eager": True,
            "distributed_executor_backend": "mp",
        },
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 512},
        runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
