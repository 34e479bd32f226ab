"""scorer_of(): a causal language model that answers with the logits of a few of its tokens, and how it reads a pair."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig

from pooling.config import HfOverrides, ModelSpec
from pooling.errors import ConfigError
from pooling.loading.score_templates import (
    CONCATENATED,
    PRESETS,
    QWEN3_RERANKER,
    QWEN3_VL_RERANKER,
    ChatTemplate,
    Preset,
    Template,
)
from pooling.loading.sentence_transformers import SentenceTransformersFiles

_NO_OVERRIDES = HfOverrides()


@dataclass(frozen=True, slots=True)
class Scorer:
    """tokens: those whose logits are read, as text or by id. difference: the answer is the second's less the first's,
    whose sigmoid is the softmax of the two; otherwise it has one column for each.

    steps: the columns judge the steps of a solution, not a pair.
    """

    tokens: tuple[str | int, ...]
    difference: bool = False
    steps: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(str(token) for token in (self.tokens[1:] if self.difference else self.tokens))


def scorer_of(
    spec: ModelSpec, config: PreTrainedConfig, files: SentenceTransformersFiles
) -> tuple[Scorer | None, Template | None]:
    """What a causal language model answers with, None if it is an embedder or no such model; how a pair reads, None
    for the two texts as the tokenizer joins them.

    Raises ConfigError for settings that contradict the checkpoint or another.
    """
    scorer, template = _choose(spec, config, files)
    if spec.chat_template is not None:
        template = ChatTemplate(_jinja(spec.chat_template), special=True)
    elif files.messages is not None:
        template = files.messages
    if spec.instruction is not None:
        if template is None:
            raise ConfigError(
                f"{spec.served_name}: instruction is set, but the model reads pairs without a template; "
                "set chat_template"
            )
        template = replace(template, instruction=spec.instruction)
    return scorer, template


def _choose(
    spec: ModelSpec, config: PreTrainedConfig, files: SentenceTransformersFiles
) -> tuple[Scorer | None, Template | None]:
    overrides, architecture = spec.hf_overrides or _NO_OVERRIDES, (config.architectures or ["(none named)"])[0]
    implied = QWEN3_RERANKER.tokens if overrides.is_original_qwen3_reranker else None
    tokens = overrides.classifier_from_token or implied
    if not architecture.endswith(("ForCausalLM", "VLForConditionalGeneration")):
        if tokens is not None or files.logit_score is not None:
            raise ConfigError(
                f"{spec.served_name}: the logits of tokens are asked for, but {architecture} has none; they need an "
                "architecture that ends in ForCausalLM or VLForConditionalGeneration"
            )
        return None, None
    if tokens is not None:
        difference = (overrides.method or _METHODS.get(len(tokens))) == "from_2_way_softmax"
        if difference and len(tokens) != 2:
            raise ConfigError(f"{spec.served_name}: from_2_way_softmax needs two tokens, given {list(tokens)}")
        preset = PRESETS.get(config.model_type)
        if overrides.is_original_qwen3_reranker and preset is not QWEN3_VL_RERANKER:
            preset = QWEN3_RERANKER
        known = preset is not None and preset.tokens == tokens
        return Scorer(tokens, difference), preset.template if preset is not None and known else CONCATENATED
    if files.logit_score is not None:
        return Scorer(files.logit_score, len(files.logit_score) == 2), None
    pooler = spec.override_pooler_config
    if pooler is not None and pooler.returned_token_ids is not None:
        return _steps(spec, config, pooler.returned_token_ids), None
    if spec.task in ("score", "classify") and files.pooling_type is None:
        preset = _preset(spec, config)
        return Scorer(preset.tokens, len(preset.tokens) == 2), preset.template
    return None, None


_METHODS = {2: "from_2_way_softmax"}


def _steps(spec: ModelSpec, config: PreTrainedConfig, tokens: tuple[int, ...]) -> Scorer:
    vocabulary = int(config.get_text_config().vocab_size)
    if not (tokens and all(0 <= token < vocabulary for token in tokens)):
        raise ConfigError(
            f"{spec.served_name}: returned_token_ids is {list(tokens)}, but the model's vocabulary has the ids 0 to "
            f"{vocabulary - 1}"
        )
    return Scorer(tokens, steps=True)


def _preset(spec: ModelSpec, config: PreTrainedConfig) -> Preset:
    preset = PRESETS.get(config.model_type)
    if preset is None:
        raise ConfigError(
            f"{spec.served_name}: task {spec.task} of a causal language model needs to know whose logits are the "
            f"answer; known for {', '.join(PRESETS)}, not for {config.model_type}: name the tokens in "
            "hf_overrides.classifier_from_token, or take task embed to compare vectors"
        )
    return preset


def _jinja(given: str) -> str:
    """The template itself: a text with braces is one, any other names a file."""
    if "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"chat_template is {given!r}, which is neither a Jinja template nor a file that can be read"
        ) from None
