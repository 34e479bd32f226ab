"""match(): which tensors of a checkpoint fill which of a model, every one of both accounted for."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform
from transformers.initialization import no_init_weights

from pooling.errors import CheckpointError
from pooling.loading.checkpoint import Checkpoint

# Buffers that older releases of transformers saved and newer ones rebuild.
_REBUILT = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
_HEADED = ("AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tensors that the checkpoint keeps in other pieces than the model: q, k and v in one, or an expert in each.

    converter is transformers' rule for them; sources has the checkpoint's names
    by the rule's pattern, in order; targets are the model's names.
    """

    converter: WeightConverter
    sources: dict[str, list[str]]
    targets: tuple[str, ...]

    def read(self, model: Any, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The model's tensors by name; raises CheckpointError if the pieces do not make their shapes."""
        converter: Any = deepcopy(self.converter)
        wanted = model.state_dict()
        for pattern, names in self.sources.items():
            for name in names:
                converter.add_tensor(self.targets[0], name, pattern, checkpoint.read(name, dtype, device))
        first = next(iter(self.sources.values()))[0]
        try:
            made: dict[str, Any] = converter.convert(self.targets[0], model=model, config=model.config)
        except RuntimeError as error:  # torch's, of shapes that do not go together
            raise CheckpointError(f"{first!r} and its like do not make {self.targets[0]!r}: {error}") from None
        tensors = {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}
        for name, tensor in tensors.items():
            if tensor.shape != wanted[name].shape:
                raise _misshapen(f"{first!r} and its like make {name!r}, which", tensor.shape, wanted[name].shape)
        return tensors


@dataclass(frozen=True, slots=True)
class Match:
    """source_of: the checkpoint's name of a model's tensor. twins: tensors of the model that share another's memory."""

    source_of: dict[str, str]
    pieces: tuple[Pieces, ...]
    twins: dict[str, str]


def match(model: Any, checkpoint: Checkpoint, config: PreTrainedConfig) -> Match:
    """Raises CheckpointError unless every tensor of the model is filled once and every other one is known."""
    names = _Names(model)
    source_of, pieces, unused = _sort(checkpoint.names, names)
    filled = {*source_of, *(target for item in pieces for target in item.targets)}
    twins = _twins(model, filled)
    hint = "; it may be laid out for code of its own, which is never run" if getattr(config, "auto_map", None) else ""
    missing = [name for name in names.wanted if name not in {*filled, *twins} and not _REBUILT.search(name)]
    _refuse("lacks", missing, hint)
    _refuse("has unknown", _unknown(unused, names, config) if unused else [], hint)
    for own, name in source_of.items():
        if checkpoint.shape(name) != names.wanted[own]:
            raise _misshapen(f"tensor {name!r}", checkpoint.shape(name), names.wanted[own])
    return Match({own: name for own, name in source_of.items() if own not in twins}, pieces, twins)


def _sort(stored: list[str], names: "_Names") -> tuple[dict[str, str], tuple[Pieces, ...], list[str]]:
    """The stored tensors that fill one of the model whole, those that are pieces of some, and the rest."""
    source_of: dict[str, str] = {}
    sources: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    unused: list[str] = []
    for name in sorted(stored, key=_natural):
        own, pattern = names.own(name)
        if own is None:
            unused.append(name)
        elif pattern is not None:
            sources[own][pattern].append(name)
        elif own not in source_of:
            source_of[own] = name
        elif not _REBUILT.search(name):  # ESM's layers each saved the frequencies that they now share
            raise _twice(source_of[own], name, own)
    pieces = tuple(names.pieces(own, dict(by_pattern)) for own, by_pattern in sources.items())
    for item in pieces:
        for target in item.targets:
            if target in source_of:
                raise _twice(source_of[target], next(iter(item.sources.values()))[0], target)
    return source_of, pieces, unused


class _Names:
    """The names a checkpoint's tensor may have in a model: with the prefix of its backbone or without."""

    def __init__(self, model: Any) -> None:
        self.wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.prefix = model.base_model_prefix
        ruled = model if isinstance(model, PreTrainedModel) else getattr(model, self.prefix)
        rules: list[WeightTransform] = get_model_conversion_mapping(ruled)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]

    def own(self, name: str) -> tuple[str | None, str | None]:
        """The tensor of the model that it fills, and the pattern of its rule if it is a piece only; None: none."""
        return next((alias for alias in self.aliases(name) if alias[0] in self.wanted), (None, None))

    def aliases(self, name: str) -> Iterator[tuple[str, str | None]]:
        yield name, None
        yield name.removeprefix(f"{self.prefix}."), None
        yield f"{self.prefix}.{name}", None
        renamed, pattern = name, None
        for renaming in self._renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        for converter in self._converters:
            if pattern is None:
                renamed, pattern = converter.rename_source_key(renamed)
        yield renamed, pattern
        yield renamed.removeprefix(f"{self.prefix}."), pattern
        yield f"{self.prefix}.{renamed}", pattern

    def pieces(self, own: str, sources: dict[str, list[str]]) -> Pieces:
        pattern = next(iter(sources))
        converter = next(rule for rule in self._converters if pattern in rule.source_patterns)
        first = converter.target_patterns[0]
        return Pieces(converter, sources, tuple(own.replace(first, target) for target in converter.target_patterns))


def _natural(name: str) -> list[tuple[int, str]]:
    """Expert 10 after expert 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _twins(model: Any, filled: set[str]) -> dict[str, str]:
    """Of tensors that the model ties, the one that takes the other's memory."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {
        (twin if name in filled else name): (name if name in filled else twin)
        for twin, name in tied.items()
        if twin in filled or name in filled
    }


def _unknown(unused: list[str], names: _Names, config: PreTrainedConfig) -> list[str]:
    """Of the tensors the model without heads does not take, those that no head of its family takes either."""
    unknown = [name for name in unused if not _REBUILT.search(name)]
    for kind in _architectures(config):
        if not unknown:
            break
        headed = _Names(_outline(kind, config))
        ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or []
        unknown = [
            name
            for name in unknown
            if not headed.own(name)[0] and not any(re.search(pattern, name) for pattern in ignored)
        ]
    return unknown


def _architectures(config: PreTrainedConfig) -> Iterable[Any]:
    for name in config.architectures or []:
        if hasattr(transformers, name):
            yield getattr(transformers, name)
    for auto in ("AutoModel", *_HEADED):
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            kind = mapping[type(config)]
            yield from kind if isinstance(kind, (list, tuple)) else (kind,)


def _outline(kind: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of names and shapes only."""
    # Some classes advise whoever would generate text with them; nobody does.
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with torch.device("meta"), no_init_weights():
            return cast(PreTrainedModel, kind(deepcopy(config)))
    finally:
        transformers.logging.set_verbosity(before)


def _refuse(verb: str, names: list[str], hint: str) -> None:
    if names:
        shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise CheckpointError(f"the checkpoint {verb} tensor{'s' if len(names) > 1 else ''} {shown}{hint}")


def _misshapen(what: str, shape: Iterable[int], wanted: Iterable[int]) -> CheckpointError:
    return CheckpointError(f"{what} has shape {list(shape)}; the configuration asks for {list(wanted)}")


def _twice(first: str, second: str, own: str) -> CheckpointError:
    return CheckpointError(f"tensors {first!r} and {second!r} both fill {own!r}; one is allowed")
