"""Settings of the engine: whole, typed, frozen; unknown keys are refused by name."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pooling.errors import ConfigError

Task = Literal["embed", "classify", "score", "reward", "token_embed", "token_classify"]
SequencePooling = Literal["CLS", "LAST", "MEAN", "MAX", "WEIGHTEDMEAN", "MEAN_SQRT_LEN"]
TokenPooling = Literal["ALL", "STEP"]
Quantization = Literal["int8", "fp8"]
PoolingType = Literal[SequencePooling, TokenPooling]


# A step takes milliseconds to seconds, on a busy CPU a minute; without an end after so long it hangs.
# A request that meets it at three replicas in a row still hears of it within the service's ten minutes.
STEP_TIMEOUT_S = 180.0
_ACTIVATIONS = ("use_activation", "normalize", "softmax")


class Settings(BaseModel):
    """Base of every configuration: frozen, and an unknown key is refused with the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"unknown setting {', '.join(map(repr, unknown))}; known settings are: {known}")
        return data


class PoolerConfig(Settings):
    """How token vectors become the answer; every field left out keeps the model's own choice.

    pooling_type is that of sequence tasks (CLS, LAST, MEAN, MAX, WEIGHTEDMEAN,
    MEAN_SQRT_LEN) or of token tasks (ALL, STEP); the two longer names say which
    they mean. use_activation is today's name of `normalize`, for vectors, and of
    `softmax`, for probabilities. logit_mean and logit_sigma calibrate logits
    before the activation: (logit - mean) / sigma.

    enable_chunked_processing embeds a text that is longer than the model takes
    in chunks and averages their vectors, up to max_embed_len tokens, without
    which any length is taken. chunk_overlap None cuts the list of tokens as vLLM
    does; a number gives every chunk the special tokens and the prompt of the
    text, and so many tokens of the chunk before.
    """

    pooling_type: PoolingType | None = None
    seq_pooling_type: SequencePooling | None = None
    tok_pooling_type: TokenPooling | None = None
    normalize: bool | None = None
    softmax: bool | None = None
    use_activation: bool | None = None
    dimensions: int | None = Field(None, gt=0, description="Matryoshka size of every answer that names none")
    step_tag_id: int | None = Field(None, ge=0, description="STEP keeps the rows of this token")
    returned_token_ids: tuple[int, ...] | None = Field(None, description="the columns of the answer that are kept")
    logit_mean: float | None = None
    logit_sigma: float | None = None
    enable_chunked_processing: bool = False
    max_embed_len: int | None = Field(None, gt=0, description="tokens that an input of embed may have")
    chunk_overlap: int | None = Field(None, ge=0, description="tokens that neighbouring chunks share")
    int8_range: float | None = Field(None, gt=0, description="int8 and uint8 vectors cover -int8_range..int8_range")

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        given = [name for name in _ACTIVATIONS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give {' or '.join(given)}, not both: they are names of one setting")
        specific = [name for name in ("seq_pooling_type", "tok_pooling_type") if getattr(self, name) is not None]
        if self.pooling_type is not None and specific:
            raise ValueError(f"Cannot set both `pooling_type` and `{specific[0]}`")
        if self.logit_sigma == 0:
            raise ValueError("logit_sigma cannot be 0 (division by zero)")
        if self.chunk_overlap is not None and not self.enable_chunked_processing:
            raise ValueError("chunk_overlap is for chunks of long texts; set enable_chunked_processing too")
        return self

    @property
    def activation(self) -> bool | None:
        return next((value for name in _ACTIVATIONS if (value := getattr(self, name)) is not None), None)

    @property
    def sequence_type(self) -> SequencePooling | None:
        whole = self.pooling_type
        return self.seq_pooling_type or (None if whole is None or whole == "ALL" or whole == "STEP" else whole)

    @property
    def token_type(self) -> TokenPooling | None:
        whole = self.pooling_type
        return self.tok_pooling_type or (whole if whole == "ALL" or whole == "STEP" else None)


class HfOverrides(Settings):
    """vLLM's settings of the same name: what a causal language model's answer is, where its files do not say.

    classifier_from_token: the tokens whose logits are the answer. method:
    from_2_way_softmax, the default for two tokens, answers the probability of the
    second beside the first; no_post_processing, the default for any other number,
    has one label for each token. is_original_qwen3_reranker: the tokens and the
    template of Qwen3-Reranker. architectures replaces that of config.json.
    """

    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    classifier_from_token: tuple[str, ...] | None = Field(None, min_length=1)
    method: Literal["from_2_way_softmax", "no_post_processing"] | None = None
    is_original_qwen3_reranker: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tokens = self.classifier_from_token
        if self.method is not None and not self.reads_tokens:
            raise ValueError(f"method {self.method} needs classifier_from_token, the tokens whose logits it reads")
        if self.method == "from_2_way_softmax" and tokens is not None and len(tokens) != 2:
            raise ValueError(
                f"from_2_way_softmax needs two tokens, false then true; classifier_from_token has {len(tokens)}"
            )
        named = (self.architectures or ("",))[0]
        if self.reads_tokens and named and not named.endswith("ForSequenceClassification"):
            raise ValueError(
                f"architectures is {named}, but classifier_from_token makes a classifier: leave it out, or name one "
                "that ends in ForSequenceClassification"
            )
        return self

    @property
    def reads_tokens(self) -> bool:
        """Whether the answer is made of the logits of tokens."""
        return self.classifier_from_token is not None or self.is_original_qwen3_reranker


class ParallelSpec(Settings):
    """Over how many devices one replica of the model is split."""

    tensor_parallel_size: int = Field(1, gt=0)


class BatchLimits(Settings):
    """What one forward pass may hold, and how long it may take."""

    max_batch_tokens: int | None = Field(None, gt=0, description="None: chosen for the device")
    step_timeout_s: float = Field(STEP_TIMEOUT_S, gt=0)


class ModelSpec(Settings):
    """One model to run: where it comes from and how."""

    source: str = Field(min_length=1, description="a directory, a hub id or python:package/dir")
    name: str | None = Field(None, min_length=1, description="what clients send as `model`; None: the source")
    task: Task | Literal["auto"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: int = Field(1, gt=0)
    override_pooler_config: PoolerConfig | None = None
    hf_overrides: HfOverrides | None = None
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="how a pair reads: Jinja over messages of the roles query and document, or a file",
    )
    instruction: str | None = Field(None, description="what a template tells the model where a request does not")
    max_model_len: int | None = Field(None, gt=0, description="tokens an input may have; None: what the model takes")
    max_batch_tokens: int | None = Field(
        None, gt=0, description="tokens of a forward pass, or of those of all cores together; None: chosen"
    )
    limit_mm_per_prompt: dict[Literal["image"], Annotated[int, Field(ge=0)]] = Field(
        {"image": 8}, min_length=1, description="how many images an input may have"
    )
    enforce_eager: bool = Field(False, description="on a GPU, run small steps without CUDA graphs; a CPU has none")
    quantization: Quantization | None = Field(
        None, description="linear layers of 8-bit numbers: int8 on CPUs, fp8 on GPUs; the start says what it changes"
    )
    step_timeout_s: float = Field(
        STEP_TIMEOUT_S, gt=0, description="a forward pass that takes longer hangs: its replica ends and is replaced"
    )

    @model_validator(mode="after")
    def _one_device(self) -> Self:
        if self.quantization is not None and self.tensor_parallel_size > 1:
            raise ValueError(
                f"quantization {self.quantization} is beside tensor_parallel_size {self.tensor_parallel_size}, but "
                "there is no quantization for models that are split; leave one of them out"
            )
        return self

    @property
    def served_name(self) -> str:
        return self.name or self.source

    @property
    def limits(self) -> BatchLimits:
        return BatchLimits(max_batch_tokens=self.max_batch_tokens, step_timeout_s=self.step_timeout_s)


def check_gpus(spec: ModelSpec, num_gpus: float | None) -> None:
    """Raises ValueError, for validators, where the GPUs that a whole engine is to have cannot be right."""
    if spec.device == "cpu" and num_gpus:
        raise ValueError(f"device is cpu, but num_gpus is {num_gpus:g}; leave num_gpus out")
    size = spec.tensor_parallel_size
    if size > 1 and num_gpus not in (None, 0, size):
        raise ValueError(
            f"num_gpus is {num_gpus:g}, but tensor_parallel_size is {size} and each rank has a GPU to itself; "
            "leave num_gpus out"
        )


SettingsType = TypeVar("SettingsType", bound=Settings)


def parse_settings(kind: type[SettingsType], data: Any, where: str) -> SettingsType:
    """Builds settings from plain data, e.g. a YAML mapping.

    Raises ConfigError with one sentence that names each wrong key, as
    `where: key: what is wrong`.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """The errors of pydantic as one line: `models.0.dtype: Input should be ... (given 'int9')`."""
    return "; ".join(_one(dict(item)) for item in error.errors(include_url=False))


def _one(item: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"])
    text = str(item["msg"]).removeprefix("Value error, ")
    given = "" if item["type"] in ("missing", "value_error") else f" (given {item['input']!r})"
    return f"{place}: {text}{given}" if place else f"{text}{given}"
