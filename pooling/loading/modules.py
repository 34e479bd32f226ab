"""The modules of Sentence Transformers behind a model's layers: which, in which order, with what settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pooling.config import SequencePooling
from pooling.errors import CheckpointError
from pooling.loading.files import read_json

# The name of the flag in older Pooling configs, and of the mode in newer ones, without the prefix.
_MODES: dict[str, SequencePooling] = {
    "cls_token": "CLS",
    "cls": "CLS",
    "mean_tokens": "MEAN",
    "mean": "MEAN",
    "max_tokens": "MAX",
    "max": "MAX",
    "lasttoken": "LAST",
    "weightedmean_tokens": "WEIGHTEDMEAN",
    "weightedmean": "WEIGHTEDMEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
}
_SUPPORTED = "Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout, SpladePooling, LogitScore and MultiVectorMask"
_TRUSTED = "torch.nn."
# What Sentence Transformers takes where the file of a Dense module names none.
_DENSE_ACTIVATION = "torch.nn.modules.activation.Tanh"


@dataclass(frozen=True, slots=True)
class Dense:
    """place: the directory of its weights. residual: the rows, or what a second layer makes of them, are added."""

    place: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """place: the directory of its weights."""

    place: Path
    dimension: int


@dataclass(frozen=True, slots=True)
class Normalize:
    """One that does not come last: the last one is the task's activation, which a request may turn off."""


Layer = Dense | LayerNorm | Normalize


@dataclass(frozen=True, slots=True)
class Splade:
    """strategy: how the tokens of an input are reduced. logarithms: 1 for log(1 + relu), 2 for that twice."""

    strategy: Literal["max", "sum"]
    logarithms: Literal[1, 2]


@dataclass(frozen=True, slots=True)
class Mask:
    """Which tokens of a multi-vector model keep their vectors; keep_only_token_ids () means all."""

    skiplist_words: tuple[str, ...] = ()
    skiplist_tasks: tuple[str, ...] = ("document",)
    keep_only_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Modules:
    """backbone: the directory of the model. layers: what reads the pooled rows, in order, before the last Normalize.

    include_prompt: whether the tokens of a prompt are pooled too. logit_score: of
    a causal language model, the token whose logit is a score, or the two whose
    difference is, false and true.
    """

    backbone: Path
    pooling_type: SequencePooling | None
    layers: tuple[Layer, ...]
    normalize: bool
    splade: Splade | None
    mask: Mask | None
    include_prompt: bool
    logit_score: tuple[int, ...] | None = None


def read_modules(directory: Path, multi_vector: bool) -> Modules:
    """What modules.json lists.

    Raises CheckpointError for a module, an order or a setting that would change
    the answer and that we do not apply: a wrong vector is worse than none.
    """
    listed = read_json(directory / "modules.json")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in listed]
    multi_vector = multi_vector or "MultiVectorMask" in kinds
    backbone = directory
    pooling_type: SequencePooling | None = None
    include_prompt = True
    logit_score: tuple[int, ...] | None = None
    layers: list[Layer] = []
    splade: Splade | None = None
    mask: Mask | None = None
    masked_lm = False
    for kind, module in zip(kinds, listed, strict=True):
        place = directory / str(module.get("path", ""))
        if kind in ("Transformer", "MLMTransformer", "CLIPModel"):
            backbone, masked_lm = place, kind == "MLMTransformer" or _transformer_task(place) == "fill-mask"
        elif kind == "Pooling" and not multi_vector:
            _refuse_before_pooling(layers, pooling_type is not None or splade is not None)
            pooling_type, include_prompt = _pooling(place / "config.json")
        elif kind == "SpladePooling":
            _refuse_before_pooling(layers, pooling_type is not None or splade is not None)
            splade = _splade(place / "config.json")
        elif kind == "LogitScore":
            logit_score = _logit_score(place / "config.json")
        elif kind == "MultiVectorMask":
            mask = _mask(place / "config.json")
        elif kind in ("Dense", "LayerNorm", "Normalize"):
            layers.append(_layer(kind, place, "token_embeddings" if multi_vector else "sentence_embedding"))
        elif kind != "Dropout":  # Dropout does nothing outside training
            raise CheckpointError(
                f"modules.json lists a {kind} module, which is not supported"
                f"{' in a multi-vector model' if multi_vector else ''}; supported are {_SUPPORTED}"
            )
    if masked_lm != (splade is not None):
        raise CheckpointError(
            f"the Transformer module {'has' if masked_lm else 'lacks'} a fill-mask head, but modules.json "
            f"{'lacks' if masked_lm else 'has'} a SpladePooling; both or neither are supported"
        )
    if splade is not None and any(not isinstance(layer, Normalize) for layer in layers):
        raise CheckpointError("modules.json lists a layer behind SpladePooling; only Normalize is supported there")
    normalize = bool(layers) and isinstance(layers[-1], Normalize)
    while layers and isinstance(layers[-1], Normalize):
        layers.pop()
    return Modules(backbone, pooling_type, tuple(layers), normalize, splade, mask, include_prompt, logit_score)


def width_after(layers: tuple[Layer, ...], dim: int) -> int:
    """Components of a row of `dim` behind the layers. Raises CheckpointError for a layer of another size."""
    for layer in layers:
        if isinstance(layer, Normalize):
            continue
        wanted = layer.in_features if isinstance(layer, Dense) else layer.dimension
        if wanted != dim:
            raise CheckpointError(
                f"the module {layer.place.name} takes rows of {wanted}, but it is given rows of {dim}"
            )
        dim = layer.out_features if isinstance(layer, Dense) else dim
    return dim


def _refuse_before_pooling(layers: list[Layer], pooled: bool) -> None:
    if layers or pooled:
        raise CheckpointError(
            "modules.json lists a pooling module behind another one or behind a layer; supported is one, and layers "
            "behind it"
        )


def _layer(kind: str, place: Path, reads: str) -> Layer:
    file = place / "config.json"
    config = read_json(file) if file.exists() or kind != "Normalize" else {}
    for key in ("module_input_name", "module_output_name"):
        given = config.get(key) or reads
        if given != reads:
            raise CheckpointError(f"the module {place.name} has {key} {given!r}; supported here is {reads!r}")
    if kind == "Normalize":
        return Normalize()
    if kind == "LayerNorm":
        return LayerNorm(place, _count(config, "dimension", place))
    activation = str(config.get("activation_function") or _DENSE_ACTIVATION)
    if not activation.startswith(_TRUSTED):
        raise CheckpointError(
            f"the module {place.name} asks for the activation {activation!r}; allowed are the classes of "
            f"{_TRUSTED[:-1]}, since a checkpoint's name for a class is code to be run"
        )
    return Dense(
        place,
        _count(config, "in_features", place),
        _count(config, "out_features", place),
        bool(config.get("bias", True)),
        activation,
        bool(config.get("use_residual", False)),
    )


def _count(config: Any, key: str, place: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"the module {place.name} has {key} {value!r}; a positive number is needed")
    return value


def _pooling(file: Path) -> tuple[SequencePooling, bool]:
    """How the module pools, and whether the tokens of a prompt count."""
    config = read_json(file)
    modes = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and "mode" in key]
    named = config.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _MODES:
        allowed = ", ".join(dict.fromkeys(_MODES.values()))
        raise CheckpointError(f"the Pooling module asks for {modes or 'no mode'}; supported is one of {allowed}")
    return _MODES[modes[0]], config.get("include_prompt") is not False


def _logit_score(file: Path) -> tuple[int, ...]:
    config = read_json(file)
    true, false = config.get("true_token_id"), config.get("false_token_id")
    if true is None or config.get("module_input_name", "causal_logits") != "causal_logits":
        raise CheckpointError(f"the LogitScore module says {config}; it needs true_token_id and reads causal_logits")
    return (int(true),) if false is None else (int(false), int(true))


def _splade(file: Path) -> Splade:
    config = read_json(file)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise CheckpointError(
            f"the SpladePooling module asks for {strategy!r} of {activation!r}; supported are max and sum of relu and "
            "log1p_relu"
        )
    return Splade(strategy, 1 if activation == "relu" else 2)


def _mask(file: Path) -> Mask:
    config = read_json(file)
    tasks = config.get("skiplist_tasks") or ["document"]
    return Mask(
        tuple(config.get("skiplist_words") or ()),
        (tasks,) if isinstance(tasks, str) else tuple(tasks),
        tuple(config.get("keep_only_token_ids") or ()),
    )


def _transformer_task(backbone: Path) -> str | None:
    file = backbone / "sentence_bert_config.json"
    return read_json(file).get("transformer_task") if file.exists() else None
