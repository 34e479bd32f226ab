"""check_vector_settings(): settings of vectors beyond how they are pooled, refused where they would mean nothing."""

from pooling.errors import CheckpointError, ConfigError
from pooling.loading.card import ResolvedPooler
from pooling.loading.resolve import Facts

_SETTINGS = ("enable_chunked_processing", "max_embed_len", "int8_range")


def check_vector_settings(facts: Facts, poolers: dict[str, ResolvedPooler], max_model_len: int) -> None:
    """Raises ConfigError for a setting of `embed` that the model cannot heed, CheckpointError for a pooling we lack."""
    name, override = facts.spec.served_name, facts.override
    given = [setting for setting in _SETTINGS if getattr(override, setting)]
    if given and "embed" not in poolers:
        raise ConfigError(
            f"{name}: override_pooler_config sets {given[0]}, which is for embed; the model's tasks are "
            f"{', '.join(poolers)}"
        )
    if not facts.files.include_prompt and "embed" in poolers and poolers["embed"].pooling_type == "WEIGHTEDMEAN":
        raise CheckpointError(
            "the Pooling module leaves prompts out (include_prompt: false), which is supported for CLS, LAST, MEAN, "
            "MAX and MEAN_SQRT_LEN, not for WEIGHTEDMEAN"
        )
    if (override.max_embed_len or 0) > max_model_len and not override.enable_chunked_processing:
        raise ConfigError(
            f"{name}: max_embed_len is {override.max_embed_len}, but the model takes at most {max_model_len} tokens at "
            "once; set enable_chunked_processing to embed longer texts in chunks"
        )
    if (override.chunk_overlap or 0) > max_model_len // 2:
        raise ConfigError(
            f"{name}: chunk_overlap is {override.chunk_overlap}; allowed is at most half of the {max_model_len} tokens "
            "of a chunk"
        )
