"""Sharding: a model split by its family's plan: what this rank reads of each tensor, and what its layers become."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pooling.errors import CheckpointError
from pooling.parallel.layers import AddedUp, ParallelNorm, RowParallel, VocabParallel
from pooling.parallel.plans import Rule, plan_of
from pooling.parallel.shard import Part, Shard

_WHOLE = Rule("whole")
# A pooler belongs to the head; what reads images is rank 0's.
_APART = ("pooler.", "visual.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# What attention modules remember of how many heads there are, by the names that families give it.
_COUNTS = (
    *("num_attention_heads", "num_heads", "n_heads", "num_key_value_heads"),
    *("all_head_size", "inner_dim", "split_size"),
)


class Sharding:
    """parts: by the name of a tensor of the backbone, what this rank reads of it; one without a part is read whole.

    Made of a backbone without memory; `narrow()` gives it this rank's shapes
    before the tensors are filled in, `finish()` its layers afterwards. Raises
    CheckpointError for a tensor that the plan has no rule for, or that does not divide.
    """

    def __init__(self, backbone: PreTrainedModel, shard: Shard) -> None:
        self._backbone, self._shard, self._config = backbone, shard, backbone.config
        self._plan = plan_of(backbone.config)
        self._modules: dict[str, nn.Module] = dict(backbone.named_modules())
        self._rules: dict[str, Rule] = {}  # of the modules that are not whole
        self.parts: dict[str, Part] = {}
        for name, tensor in backbone.named_parameters(remove_duplicate=False):
            part = None if name.startswith(_APART) else self._part(name, tensor)
            if part is not None:
                self.parts[name] = part
        self._rules |= {name: rule for name in self._modules if (rule := self._rule(name)).style == "experts"}

    def narrow(self) -> None:
        """Gives the backbone's tensors this rank's shapes; they stay without memory."""
        for name, part in self.parts.items():
            place, _, leaf = name.rpartition(".")
            module: Any = self._modules[place]
            shape = part.shape_of(getattr(module, leaf).shape)
            setattr(module, leaf, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
            if isinstance(module, Conv1D):
                module.nf = module.weight.shape[1]
            elif isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
            elif isinstance(module, nn.Embedding):
                module.num_embeddings, module.embedding_dim = module.weight.shape
                module.padding_idx = None  # only gradients ask for it, and it may lie on another rank

    def finish(self) -> None:
        """Puts in the layers that add up over the ranks, and tells attention how many heads it has left."""
        add_up = self._shard.add_up
        for name in self._of("column"):
            self._divide_counts(name)
        for name in self._of("row"):
            self._replace(name, RowParallel(self._modules[name], add_up))  # type: ignore[arg-type]  # _part judged it
        for name in self._of("vocab"):
            (start, _), *_ = self.parts[f"{name}.weight"].ranges
            self._replace(name, VocabParallel(self._modules[name], start, add_up))  # type: ignore[arg-type]
        for name in self._of("norm"):
            self._replace(name, ParallelNorm(self._modules[name], self._shard.size, add_up))
        for name in self._of("experts"):
            self._replace(name, AddedUp(self._modules[name], add_up))

    def _of(self, style: str) -> list[str]:
        return [name for name, rule in self._rules.items() if rule.style == style]

    def _rule(self, name: str) -> Rule:
        return self._plan.get(_NUMBER.sub("*", name), _WHOLE)

    def _part(self, name: str, tensor: Tensor) -> Part | None:
        """What this rank has of a tensor; None: all of it."""
        place, _, leaf = name.rpartition(".")
        module = self._modules[place]
        bare = _NUMBER.sub("*", name)
        rule = self._plan.get(bare) or self._plan.get(_NUMBER.sub("*", place))
        if rule is None and not _is_outer_norm(module, self._siblings(place)):
            raise CheckpointError(
                f"tensor {name!r} has no rule in the tensor-parallel plan of {self._config.model_type}; a model is "
                "split whole or not at all"
            )
        if rule is None or rule.style == "whole":
            return None
        if bare not in self._plan:
            self._rules[place] = rule
        if rule.style == "vocab":
            return self._shard.rows(tensor.shape[0])
        if leaf == "bias":
            return None if rule.style == "row" else self._even(name, tensor, 0, rule)
        return self._even(name, tensor, _dimension(module, tensor, rule), rule)

    def _siblings(self, place: str) -> list[Rule]:
        parent = place.rpartition(".")[0]
        return [self._rule(f"{parent}.{name}".lstrip(".")) for name, _ in self._modules[parent].named_children()]

    def _even(self, name: str, tensor: Tensor, dim: int, rule: Rule) -> Part:
        size = tensor.shape[dim]
        blocks = _qkv(size, self._config) if rule.blocks == "qkv" else [size // rule.blocks] * rule.blocks
        if any(block % self._shard.size for block in blocks):
            raise CheckpointError(
                f"tensor {name!r} of shape {list(tensor.shape)} cannot be split evenly over {self._shard.size} ranks"
            )
        return self._shard.even(dim, blocks)

    def _divide_counts(self, name: str) -> None:
        """Of the module that a column-parallel layer is part of, once however many of those it has."""
        module: Any = self._modules[name.rpartition(".")[0]]
        if "raypool_divided" in vars(module):
            return
        module.raypool_divided = True
        for count in _COUNTS:
            if isinstance(getattr(module, count, None), int):
                setattr(module, count, getattr(module, count) // self._shard.size)
        if self._rules[name].blocks == "qkv":  # Phi-3 finds the end of its queries by the config
            module.config = copy.copy(module.config)
            module.config.num_attention_heads //= self._shard.size

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self._modules[parent], leaf, module)


def take(tensor: Tensor, part: Part | None) -> Tensor:
    """A part of a tensor, in memory of its own."""
    if part is None:
        return tensor
    return torch.cat([tensor.narrow(part.dim, start, stop - start) for start, stop in part.ranges], part.dim)


def _is_outer_norm(module: nn.Module, siblings: list[Rule]) -> bool:
    """A norm of the hidden vectors, which every rank has whole; one beside a column-parallel layer needs a rule."""
    return type(module).__name__.endswith("Norm") and not any(rule.style == "column" for rule in siblings)


def _dimension(module: nn.Module, tensor: Tensor, rule: Rule) -> int:
    """Along which dimension a weight is split: a linear layer's is [.., out, in], GPT-2's and a table's the reverse."""
    if rule.style == "norm":
        return 0
    out, into = (1, 0) if isinstance(module, Conv1D | nn.Embedding) else (tensor.ndim - 2, tensor.ndim - 1)
    return out if rule.style == "column" else into


def _qkv(size: int, config: PreTrainedConfig) -> list[int]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = size // (heads + 2 * kv_heads)
    return [heads * dim, kv_heads * dim, kv_heads * dim]
