"""GroupForward: a packed forward pass of which every rank of a group runs its share; this process is rank 0."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pooling.choose import load_packed, obstacle, prove_shared
from pooling.config import ModelSpec
from pooling.errors import CheckpointError, ConfigError
from pooling.forward import PackedForward, StepInput
from pooling.heads import Head
from pooling.loading.describe import Description
from pooling.media import Media
from pooling.parallel.collective import Collective
from pooling.parallel.group import Group, StartRanks
from pooling.parallel.links import Order, Stage
from pooling.parallel.ring import SLOTS, StepMessage, slot_bytes
from pooling.parallel.shard import Shard
from pooling.self_check import check
from pooling.shared_prefixes import MOST_SPREAD
from pooling.vision.decoder import load_decoder
from pooling.vision.outline import outline

# The inputs of the start-up check may be longer than a step that a small model was given.
_LEAST_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class GroupStep(StepInput):
    """A step as this rank reads it, and what the others are told of it."""

    message: StepMessage | None = None
    own: StepInput | None = None


class GroupForward:
    """Sends every step to the other ranks and runs it beside them; hidden comes out whole on each."""

    path = "packed"

    def __init__(self, own: PackedForward, group: Group, threads: int) -> None:
        """threads: what torch computed with before the ranks shared it, and does again after close()."""
        self._own, self._group = own, group
        self._threads: int | None = threads

    @property
    def shares_prefixes(self) -> bool:
        return self._own.shares_prefixes

    def to_device(self, array: NDArray[Any]) -> Tensor:
        return self._own.to_device(array)

    def prepare(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        second: NDArray[np.int32] | None = None,
        attended: NDArray[np.int32] | None = None,
        media: Media | None = None,
    ) -> GroupStep:
        step = self._own.prepare(ids, lengths, second, attended, media)
        own = {field.name: getattr(step, field.name) for field in fields(StepInput)}
        images = outline(media) if media is not None and any(media) else None
        shares = step.spread is not None
        message = StepMessage(ids, lengths, second, attended, images=images, shares_prefixes=shares)
        return GroupStep(**own, message=message, own=step)

    def __call__(self, step: StepInput) -> Tensor:
        """-> hidden [tokens, dim] in the model's dtype. Raises EngineFailure if the group is over."""
        assert isinstance(step, GroupStep)
        assert step.message is not None
        assert step.own is not None
        self._group.send(step.message)
        return self._own(step.own)

    def alone(self, ids: NDArray[np.int32]) -> Tensor:
        self._group.send(StepMessage(ids, np.array([len(ids)], np.int32), alone=True))
        return self._own.alone(ids)

    def confirm(self) -> None:
        """Raises EngineFailure if the group is over. Asked when a step has ended, before its answers are handed on."""
        self._group.confirm()

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        self._group.watch(listener)

    def close(self) -> None:
        self._group.stop()
        threads, self._threads = self._threads, None
        if threads is not None:  # once: what was set since then is somebody else's
            torch.set_num_threads(threads)


def load_share(
    description: Description, dtype: torch.dtype, device: torch.device, max_batch_tokens: int, shard: Shard
) -> tuple[PackedForward, dict[str, Head]]:
    """This rank's share of a model, and of rank 0 its heads."""
    load = load_packed if description.card.vision is None else load_decoder
    return load(description, dtype, device, max_batch_tokens, shard=shard)


def load_group(
    spec: ModelSpec,
    description: Description,
    dtype: torch.dtype,
    device: torch.device,
    max_batch_tokens: int,
    start: StartRanks,
) -> tuple[GroupForward, dict[str, Head]]:
    """A model split over spec.tensor_parallel_size ranks, all loaded and proven; beside it its heads, by name.

    Raises ConfigError where the device has no packed attention for the model,
    CheckpointError if the ranks together do not give the answers of each input
    alone, and what a rank failed with.
    """
    size, name = spec.tensor_parallel_size, description.card.name
    reason = obstacle(description, dtype, device)
    if reason is not None:
        raise ConfigError(f"{name}: tensor_parallel_size is {size}, but only packed models are split: {reason}")
    tokens = max(max_batch_tokens, description.card.max_model_len, _LEAST_TOKENS)
    before = threads = torch.get_num_threads()
    if device.type == "cpu":  # the ranks share what this process may use
        threads = max(1, threads // size)
        torch.set_num_threads(threads)
    order = Order(
        spec=spec.model_dump_json(),
        size=size,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        max_batch_tokens=max_batch_tokens,
        threads=threads,
        slots=SLOTS,
        slot_bytes=slot_bytes(tokens * MOST_SPREAD),
        timeout_s=spec.limits.step_timeout_s,
    )
    group: Group | None = None
    try:
        group = Group(order, start)
        group.meet()  # not before: a rank that has failed would be waited for in vain
        collective = Collective(group.meeting_file, 0, size, device, order.timeout_s)
        group.watch(lambda *_: collective.abort())
        own, heads = load_share(description, dtype, device, max_batch_tokens, Shard(0, size, collective.add_up))
        group.wait_for(Stage.LOADED)
        forward = GroupForward(own, group, before)
        reason = check(forward, description, dtype)
        if reason is None:
            prove_shared(forward, own, description, dtype)
        group.wait_for(Stage.LOADED)  # if one has ended meanwhile, that is the reason
        if reason is not None:
            raise CheckpointError(f"{name} cannot be served over {size} ranks: {reason}")
    except BaseException:
        if group is not None:
            group.stop()
        torch.set_num_threads(before)
        raise
    return forward, heads
