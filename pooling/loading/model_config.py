"""read_config(): config.json -> transformers' config; what transformers would read wrongly is refused or put right."""

import logging
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from pooling.errors import CheckpointError
from pooling.loading.families import FAMILIES, TWINS, family_of
from pooling.loading.files import read_json
from pooling.loading.vision import refuse_other_vision, stack_of

log = logging.getLogger("raypool")

# Of NomicBERT's own config.json and what transformers calls the same: it does not read the former, its defaults apply.
_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
}
# Variants that transformers' NomicBERT has not.
_NOMIC_ONLY = {
    "prenorm": False,
    "use_rms_norm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "num_experts": 0,
}


def read_config(backbone: Path) -> PreTrainedConfig:
    """The config of a model directory.

    Raises CheckpointError if there is none, if the model needs code of its own,
    or if transformers would run another model than the file describes.
    """
    if not (backbone / "config.json").exists():
        raise CheckpointError("the model has no config.json, so its architecture is unknown")
    raw = read_json(backbone / "config.json")
    config = _read(backbone, raw)
    if getattr(config, "is_encoder_decoder", False) and config.model_type not in FAMILIES:
        raise CheckpointError(f"{config.model_type} is an encoder-decoder model, which is not supported")
    refuse_other_vision(config)
    family = family_of(config.model_type)
    stack = stack_of(config, family)
    sizes = ("hidden_size", "num_hidden_layers", *(() if family.vision == "images" else ("vocab_size",)))
    if any(getattr(stack, name, None) is None for name in sizes):
        raise CheckpointError(f"{config.model_type} is not a text model of one stack of layers, which is supported")
    _look_both_ways(stack)
    if config.model_type == "nomic_bert":
        _refuse_other_nomic(raw, config)
    return config


def refuse_own_code(architecture: str, config: PreTrainedConfig) -> None:
    """A class that transformers does not have may differ from its family in anything, e.g. see tokens that follow."""
    if getattr(config, "auto_map", None):
        if architecture not in dir(transformers):
            raise _needs_own_code(f"architecture {architecture}")
        log.warning("the model's own code is not run; transformers' %s is, which should be the same", architecture)


def _read(backbone: Path, raw: dict[str, Any]) -> PreTrainedConfig:
    kind = raw.get("model_type")
    try:
        if kind in TWINS:
            name, values = TWINS[kind]
            own = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map")}
            return AutoConfig.for_model(name, **own | values)
        config: PreTrainedConfig = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    except Exception as error:  # any failure of transformers to make sense of the file has one meaning for the user
        if "auto_map" in raw:
            raise _needs_own_code(f"model type {kind}") from None
        raise CheckpointError(f"config.json is not one that transformers knows: {str(error).splitlines()[0]}") from None
    return config


def _needs_own_code(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} needs Python code that comes with the model (auto_map in config.json), which is never run; "
        f"supported are architectures that are part of transformers {transformers.__version__}"
    )


def _look_both_ways(config: PreTrainedConfig) -> None:
    """`use_bidirectional_attention` means the same in every family.

    Gemma 3 reads it. The first Gemma reads it in its layers but not in its
    mask, the other decoders not at all: all of them read `is_causal`.
    """
    if getattr(config, "use_bidirectional_attention", None) and config.model_type != "gemma3_text":
        config.is_causal = False


def _refuse_other_nomic(raw: dict[str, Any], config: PreTrainedConfig) -> None:
    stated = {name: (raw[name], getattr(config, own)) for name, own in _NOMIC_NAMES.items() if name in raw}
    stated |= {name: (raw[name], only) for name, only in _NOMIC_ONLY.items() if name in raw}
    if "rotary_emb_base" in raw:
        theta = (config.rope_parameters or {}).get("rope_theta")
        stated["rotary_emb_base"] = (raw["rotary_emb_base"], theta)
    wrong = [f"{name} is {value}, read as {read}" for name, (value, read) in stated.items() if value != read]
    if wrong:
        raise CheckpointError(
            f"config.json is in NomicBERT's own form, which transformers does not read: {'; '.join(wrong)}; "
            "write it again with transformers' names"
        )
