"""ServiceConfig: what one Raypool service runs, given as `args` of a Serve config file."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from deployments.media import MediaConfig
from pooling.config import ModelSpec, Settings, check_gpus
from pooling.errors import ConfigError

# What Serve lets into one router at a time; far above what tokens allow.
ONGOING_REQUESTS = 2_048
# Tokens of a step of the engine's own choice.
_STEP_TOKENS = {"cpu": 1_024, "cuda": 16_384}
# 512 steps may queue: a minute of work on a CPU, ten seconds on a GPU.
_QUEUED_STEPS = 512
# Two steps are under way in a busy engine. Eight are as much again three times over: whoever comes now waits for
# a third of a second on a CPU, a tenth on a GPU, and not only for a moment.
_TARGET_STEPS = 8


class Autoscaling(Settings):
    """How many replicas a model may have; Serve adds and removes them by the tokens that wait or run.

    min 0 lets a cold model go; its next request waits for a replica. One is
    added when the replicas have had more than target_queued_tokens each, on
    average of look_back_s, for upscale_delay_s.
    """

    min: int = Field(1, ge=0)
    max: int = Field(gt=0)
    target_queued_tokens: int | None = Field(
        None, gt=0, description="tokens that wait or run, for each replica; None: 8 steps of its device"
    )
    look_back_s: float = Field(30.0, gt=10, description="replicas report their tokens every ten seconds")
    upscale_delay_s: float = Field(30.0, ge=0)
    downscale_delay_s: float = Field(600.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, which is more than max, {self.max}")
        return self


class ModelConfig(ModelSpec):
    """One model of the service: what it is, and how many replicas with what resources run it."""

    replicas: int = Field(1, gt=0)
    autoscaling: Autoscaling | None = None
    num_cpus: float | None = Field(
        None, gt=0, description="for each replica; None: 1 beside each GPU, else the cluster's CPUs shared out"
    )
    num_gpus: float | None = Field(None, ge=0, description="for each replica; None: 1 for each rank on cuda, 0 on cpu")

    @model_validator(mode="after")
    def _one_way_to_count(self) -> Self:
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise ValueError("give replicas or autoscaling, not both")
        check_gpus(self, self.num_gpus)
        return self

    @property
    def spec(self) -> ModelSpec:
        """The engine's part of these settings."""
        return ModelSpec(**{name: getattr(self, name) for name in ModelSpec.model_fields})

    @property
    def most_replicas(self) -> int:
        return self.autoscaling.max if self.autoscaling else self.replicas

    @property
    def fewest_replicas(self) -> int:
        return self.autoscaling.min if self.autoscaling else self.replicas

    @property
    def step_tokens(self) -> int:
        """Tokens of a step of the engine's own choice, on the device that is known here; auto counts as a CPU."""
        return _STEP_TOKENS["cuda" if self.device == "cuda" else "cpu"]

    @property
    def target_queued_tokens(self) -> int:
        """Tokens that wait or run for each replica beyond which autoscaling adds one."""
        asked = self.autoscaling.target_queued_tokens if self.autoscaling else None
        return asked or _TARGET_STEPS * (self.max_batch_tokens or self.step_tokens)

    @property
    def may_sleep(self) -> bool:
        """Whether no replica at all is a state in order."""
        return self.autoscaling is not None and self.autoscaling.min == 0

    @property
    def deployment_name(self) -> str:
        """The Serve deployment of this model, by which `deployments:` in the config file overrides its options."""
        return "engine-" + re.sub(r"[^A-Za-z0-9._-]+", "-", self.served_name).strip("-")


class RouterConfig(Settings):
    """The tier that speaks HTTP and tokenises.

    num_cpus is what a router reserves: 0 lets the smallest machine place one;
    on a cluster give it a core, so that Ray counts what it uses.
    """

    replicas: int = Field(1, gt=0)
    num_cpus: float = Field(0.0, ge=0)

    @property
    def reserved_cpus(self) -> float:
        return self.replicas * self.num_cpus


class Limits(Settings):
    """What the service takes; beyond it a request is refused with the limit's name and value."""

    max_body_bytes: int = Field(33_554_432, gt=0)
    max_upload_bytes: int = Field(268_435_456, gt=0, description="of all bodies that one router is reading")
    max_inputs: int = Field(2_048, gt=0, description="inputs in one request")
    # No model here reads as much of one text; what is cut off a longer one must still be tokenised.
    max_input_chars: int = Field(1_000_000, gt=0, description="characters of one input, or ids of a list of them")
    max_queued_tokens: int | None = Field(
        None, gt=0, description="tokens of a model that may wait or run; None: 512 steps of each replica's device"
    )
    # The answer of a token task is as large as its tokens times a vector, and is held several times over.
    max_answer_bytes: int = Field(268_435_456, gt=0, description="float32 numbers that one request may ask for")
    # A request without an end would hold its tokens for ever; ten minutes is a full queue on a slow CPU.
    request_timeout_s: float = Field(600.0, gt=0)


class ServiceConfig(Settings):
    """All models behind one address, and what guards them. The first model is the default."""

    models: list[ModelConfig]
    router: RouterConfig = RouterConfig()
    api_keys: list[str] = Field([], description="any of them opens every route; none: no key is asked for")
    api_keys_file: str | None = Field(None, min_length=1, description="more keys, one a line, on each router's node")
    cors_allow_origins: list[str] = Field([], description="web pages that may call the service; '*' is all of them")
    # A cluster that runs has all its nodes; Kubernetes, which starts them with the service, takes minutes. Serve
    # tries four times to build an application before it reports why it cannot: all of it should take under 30 s.
    wait_for_nodes_s: float = Field(
        2.0, ge=0, description="how long a node that the models need may take to join before they are refused"
    )
    access_log: bool = Field(False, description="one line of JSON for each HTTP request, with its id, on stderr")
    limits: Limits = Limits()
    media: MediaConfig = MediaConfig()

    def all_api_keys(self) -> list[str]:
        """Those of the configuration and those of the file. Raises ConfigError if the file has none."""
        if self.api_keys_file is None:
            return self.api_keys
        try:
            lines = Path(self.api_keys_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"api_keys_file {self.api_keys_file!r} cannot be read: {reason}") from None
        keys = [line.strip() for line in lines if line.strip()]
        if not keys:
            raise ConfigError(f"api_keys_file {self.api_keys_file!r} holds no key; it needs at least one line with one")
        return [*self.api_keys, *keys]

    def queued_tokens(self, model: ModelConfig) -> int:
        """How many tokens of a model may wait or run, in all routers together."""
        return self.limits.max_queued_tokens or _QUEUED_STEPS * model.step_tokens * model.most_replicas

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if not self.models:
            raise ValueError("models is empty; name at least one model, e.g. models: [{source: org/model}]")
        if not all(self.api_keys):
            raise ValueError("api_keys holds an empty key, which anyone could send")
        for kind in ("served_name", "deployment_name"):
            names = [getattr(model, kind) for model in self.models]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two models have the {kind.replace('_', ' ')} {twice[0]!r}; give each its own name")
        return self
