"""resolve(): how a model answers each task; override_pooler_config beats Sentence Transformers' files, they beat the
model, it beats the task's default."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from pooling.config import ModelSpec, PoolerConfig, PoolingType
from pooling.errors import CheckpointError, ConfigError
from pooling.loading.anatomy import Anatomy
from pooling.loading.bge_m3 import TokenLayers, edges
from pooling.loading.card import ResolvedPooler, Scoring, SpladePooling
from pooling.loading.families import Family
from pooling.loading.sentence_transformers import SentenceTransformersFiles
from pooling.tasks import TASKS

_NO_OVERRIDE = PoolerConfig()
_TRUSTED = "torch.nn.modules."
# Which settings of PoolerConfig mean something to which kind of answer.
_VECTOR_ONLY = ("normalize", "dimensions")
_LABEL_ONLY = ("softmax", "step_tag_id", "returned_token_ids", "logit_mean", "logit_sigma")
# Fields of config.json in which classifiers say how they pool, and their words for it.
_CLASSIFIER_POOLING: dict[str, PoolingType] = {"cls": "CLS", "bos": "CLS", "mean": "MEAN", "late": "MEAN"}
# The `pooling` of NVIDIA's bidirectional Llamas.
_STATED: dict[str, PoolingType] = {"avg": "MEAN", "mean": "MEAN", "cls": "CLS", "last": "LAST"}


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the small files say, as far as it decides how tasks are answered. dim: components of a vector."""

    spec: ModelSpec
    config: PreTrainedConfig
    anatomy: Anatomy
    family: Family
    files: SentenceTransformersFiles
    dim: int
    token_layers: TokenLayers | None = None

    @property
    def override(self) -> PoolerConfig:
        return self.spec.override_pooler_config or _NO_OVERRIDE


def resolve(facts: Facts) -> tuple[dict[str, ResolvedPooler], Scoring | None]:
    """How each task is answered, the default first, and how two texts are compared.

    Raises ConfigError for a task that the model cannot do, or a setting that
    means nothing to it; CheckpointError for a model that asks for what we lack.
    """
    _refuse_impossible_pooling(facts)
    poolers = _labels(facts) if facts.anatomy.labels else _vectors(facts)
    override = facts.override
    if override.token_type is not None and override.seq_pooling_type is None:
        poolers = {task: pooler for task, pooler in poolers.items() if TASKS[task].rows == "token"}
    scoring = _scoring(facts, poolers)
    _refuse_idle_settings(facts, poolers)
    task = facts.spec.task
    if task in poolers:
        poolers = {task: poolers[task], **poolers}
    elif task != "auto" and not (task == "score" and scoring is not None):
        able = ", ".join([*poolers, *(["score"] if scoring and "score" not in poolers else [])])
        reason = f" while pooling_type is {override.token_type}" if override.token_type is not None else ""
        raise ConfigError(
            f"{facts.spec.served_name}: task {task} is impossible for {facts.anatomy.architecture}{reason}; "
            f"it does {able}"
        )
    return poolers, scoring


def _vectors(facts: Facts) -> dict[str, ResolvedPooler]:
    """An embedding model's tasks."""
    override, files = facts.override, facts.files
    activate, by = _first(
        ("override_pooler_config", override.activation), ("sentence_transformers", files.normalize), ("default", True)
    )
    sources = {"activation": by}
    if override.dimensions is not None:
        if override.dimensions > facts.dim:
            raise ConfigError(
                f"{facts.spec.served_name}: dimensions is {override.dimensions}, but the model's vectors have "
                f"{facts.dim}"
            )
        sources["dimensions"] = "override_pooler_config"
    head = "projection" if files.layers or facts.anatomy.kind in ("colbert", "retriever") else None
    plain = ResolvedPooler(
        "ALL", facts.dim, activate=activate, head=head, dimensions=override.dimensions, sources=sources
    )
    if files.splade is not None:
        kind: SpladePooling = "SPLADE_MAX" if files.splade.strategy == "max" else "SPLADE_SUM"
        sources = {"pooling_type": "sentence_transformers", **sources}
        return {"embed": replace(plain, pooling_type=kind, head="masked_lm", sources=sources)}
    if facts.family.pooling_type == "MODEL":
        if files.pooling_type is not None:
            raise CheckpointError(
                f"modules.json pools the tokens of {facts.anatomy.architecture}, which is not supported: that makes "
                "one vector of an input by itself"
            )
        return {"embed": _pooled(facts, plain)}
    by_token = _by_token(facts, plain)
    if files.multi_vector is not None or facts.anatomy.kind == "retriever":
        return {"token_embed": by_token}
    pooled = _pooled(facts, plain)
    if facts.token_layers is None:
        return {"embed": pooled, "token_embed": by_token}
    first, last = edges(facts.config)
    weights = replace(
        by_token,
        width=1,
        head="sparse",
        activation="relu",
        activate=True,
        dimensions=None,
        edge_ids=(first, last),
        sources={**by_token.sources, "activation": "model"},
    )
    vectors = replace(by_token, head="colbert", edge_ids=(first, None))
    return {"embed": pooled, "token_embed": vectors, "token_classify": weights}


def _labels(facts: Facts) -> dict[str, ResolvedPooler]:
    """The tasks of a model with a head of one column for each label."""
    anatomy, override = facts.anatomy, facts.override
    activation, by = _label_activation(facts.config, facts.files.activation, len(anatomy.labels))
    rewards = anatomy.kind == "reward"
    # A reward is a number without bounds; the probabilities of a process reward model are its answer.
    own = False if rewards and anatomy.step_tag_id is None else None
    activate, decided = _first(("override_pooler_config", override.activation), ("model", own), ("default", True))
    # Of a scorer's whole vocabulary, the head has the asked columns alone.
    columns = override.returned_token_ids if anatomy.scorer is None else None
    if columns is not None and not all(0 <= column < len(anatomy.labels) for column in columns):
        raise ConfigError(
            f"{facts.spec.served_name}: returned_token_ids is {list(columns)}, but the model's head has the columns "
            f"0 to {len(anatomy.labels) - 1}"
        )
    plain = ResolvedPooler(
        "ALL",
        len(anatomy.labels) if columns is None else len(columns),
        activation=activation,
        activate=activate,
        head="reward" if rewards else "scorer" if anatomy.scorer is not None else "classifier",
        returned_token_ids=columns,
        logit_mean=override.logit_mean,
        logit_sigma=override.logit_sigma,
        sources={"activation": decided if decided != "default" else by},
    )
    if anatomy.scorer is not None and not anatomy.scorer.steps:
        pooled = _pooled(facts, plain)
        return {"classify": pooled} if len(anatomy.labels) > 1 else {"score": pooled, "classify": pooled}
    if anatomy.kind == "image_classifier":
        return {"classify": _pooled(facts, plain)}
    by_token = _by_token(facts, plain)
    if rewards or anatomy.scorer is not None:
        return {"reward": by_token, "token_classify": by_token}
    if anatomy.kind == "token_classifier":
        return {"token_classify": by_token}
    pooled = _pooled(facts, plain)
    if len(anatomy.labels) > 1:
        return {"classify": pooled, "token_classify": by_token}
    # One label: a relevance score for a pair, or a reward for every token.
    reward = by_token if override.activation is not None else _as_reward(by_token)
    return {"classify": pooled, "score": pooled, "token_classify": by_token, "reward": reward}


def _pooled(facts: Facts, plain: ResolvedPooler) -> ResolvedPooler:
    labels = bool(facts.anatomy.labels)
    stated = str(getattr(facts.config, "classifier_pooling", None)) if labels else ""
    family = facts.family.pooling_type
    kind, by = _first(
        ("override_pooler_config", facts.override.sequence_type),
        # A head was trained on its own class's pooling, whatever else the files have the layers do.
        ("sentence_transformers", None if labels else facts.files.pooling_type),
        ("model", _CLASSIFIER_POOLING.get(stated)),
        ("model", _stated_pooling(facts.config)),
        ("model" if family != "LAST" else "default", family),
    )
    # transformers' classes read the last token that is no padding, and take any last token with that id for padding.
    like_theirs = plain.head == "classifier" and kind == "LAST" and by != "override_pooler_config"
    skipped = facts.config.pad_token_id if like_theirs else None
    late = stated == "late" and by == "model"
    sources = {"pooling_type": by, **plain.sources}
    return replace(plain, pooling_type=kind, skipped_id=skipped, head_first=late, sources=sources)


def _stated_pooling(config: PreTrainedConfig) -> PoolingType | None:
    stated = getattr(config, "pooling", None)
    if stated is not None and stated not in _STATED:
        raise CheckpointError(f"config.json asks for pooling {stated!r}; supported is one of {', '.join(_STATED)}")
    return _STATED[stated] if stated is not None else None


def _by_token(facts: Facts, plain: ResolvedPooler) -> ResolvedPooler:
    override, tag = facts.override, facts.anatomy.step_tag_id
    kind, by = _first(
        ("override_pooler_config", override.token_type),
        ("model", "STEP" if tag is not None else None),
        ("default", "ALL"),
    )
    tag = override.step_tag_id if override.step_tag_id is not None else tag
    if kind == "STEP" and tag is None:
        raise ConfigError(f"{facts.spec.served_name}: pooling_type STEP needs step_tag_id, the token it looks for")
    if kind == "STEP" and tag is not None and tag >= facts.config.vocab_size:
        raise ConfigError(
            f"{facts.spec.served_name}: step_tag_id is {tag}, but the model's vocabulary has {facts.config.vocab_size} "
            "tokens; set it in override_pooler_config"
        )
    sources = {"pooling_type": by, **plain.sources}
    return replace(plain, pooling_type=kind, step_tag_id=tag if kind == "STEP" else None, sources=sources)


def _as_reward(pooler: ResolvedPooler) -> ResolvedPooler:
    return replace(pooler, activate=False, sources={**pooler.sources, "activation": "default"})


def _label_activation(config: PreTrainedConfig, own: str | None, labels: int) -> tuple[str, str]:
    """What makes probabilities of logits, and who says so.

    A class that the files name is what CrossEncoder applies, so it is taken at
    its word; without one `problem_type` decides, as in vLLM.
    own: what config_sentence_transformers.json names, where CrossEncoder keeps it today.
    """
    if own is not None:
        return _by_class(own, "sigmoid", "softmax"), "sentence_transformers"
    automatic = "sigmoid" if labels < 2 else "softmax"
    settings = getattr(config, "sentence_transformers", None) or {}
    named = settings.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    if named is not None:
        return _by_class(str(named), "sigmoid", automatic), "model"  # softmax of one number says nothing
    by_problem = {
        "regression": "identity",
        "single_label_classification": automatic,
        "multi_label_classification": "sigmoid",
    }
    problem = getattr(config, "problem_type", None)
    if problem is None:
        return automatic, "default"
    if problem not in by_problem:
        raise CheckpointError(f"problem_type is {problem!r}; known are {', '.join(by_problem)}")
    return by_problem[problem], "model"


def _by_class(named: str, sigmoid: str, softmax: str) -> str:
    """The activation for a class by its dotted name, and our own for the usual ones."""
    if not named.startswith(_TRUSTED):
        raise CheckpointError(
            f"the model asks for the activation {named!r}; allowed are the classes of {_TRUSTED[:-1]}, since a "
            "checkpoint's name for a class is code to be run"
        )
    return {"Identity": "identity", "Sigmoid": sigmoid, "Softmax": softmax}.get(named.rsplit(".", 1)[-1], named)


def _scoring(facts: Facts, poolers: dict[str, ResolvedPooler]) -> Scoring | None:
    if "score" in poolers:
        return "cross_encoder"
    if facts.files.multi_vector is not None or facts.anatomy.kind in ("colbert", "retriever"):
        return facts.files.similarity or "max_sim"
    if "embed" not in poolers:
        return None
    return facts.files.similarity or ("dot" if facts.files.splade is not None else "cosine")


def _refuse_impossible_pooling(facts: Facts) -> None:
    """SPLADE and models of images have one way to pool, and a multi-vector model never pools an input into one row."""
    override = facts.override
    multi_vector = facts.files.multi_vector is not None or facts.anatomy.kind == "retriever"
    asked = override.sequence_type or (None if multi_vector else override.token_type)
    own = facts.family.pooling_type == "MODEL"
    if asked is not None and (multi_vector or own or facts.files.splade is not None):
        kind = "a multi-vector" if multi_vector else "an image" if own else "a SPLADE"
        raise ConfigError(
            f"{facts.spec.served_name}: pooling_type is {asked}, but {facts.anatomy.architecture} is {kind} model, "
            f"which takes no pooling_type but its own"
        )


def _refuse_idle_settings(facts: Facts, poolers: dict[str, ResolvedPooler]) -> None:
    """A setting that no answer of the model could show is a mistake, and not to be passed over."""
    kinds = {TASKS[task].kind for task in poolers}
    idle = _LABEL_ONLY if "label" not in kinds else _VECTOR_ONLY if "vector" not in kinds else ()
    given = [name for name in idle if getattr(facts.override, name) is not None]
    if facts.override.step_tag_id is not None and all(pooler.pooling_type != "STEP" for pooler in poolers.values()):
        given.append("step_tag_id")
    if given:
        raise ConfigError(
            f"{facts.spec.served_name}: override_pooler_config sets {given[0]}, which means nothing to "
            f"{', '.join(poolers)}, the tasks of {facts.anatomy.architecture} with this pooling"
        )


def _first(*candidates: tuple[str, Any]) -> tuple[Any, str]:
    """The first value that is given, and who gave it."""
    return next((value, source) for source, value in candidates if value is not None)
