"""Ring: memory that the ranks of one machine share, in which rank 0 leaves the inputs of a few steps in turn."""

import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pooling.vision.outline import COLUMNS

# Steps whose inputs may lie there: the one that runs, the next one, and room for a rank that is late.
SLOTS = 4
_HEADER = 7
_WORD = 4  # bytes of an int32


@dataclass(frozen=True, slots=True)
class StepMessage:
    """A step's inputs as Forward.prepare takes them, all int32. alone: one input, by transformers' own attention.

    images [images, columns]: of a model that reads images, where they are and how
    large (pooling/vision/outline.py); what they show is rank 0's to read.
    shares_prefixes: whether rank 0 computes once what the inputs begin with alike.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    second: NDArray[np.int32] | None = None
    attended: NDArray[np.int32] | None = None
    alone: bool = False
    images: NDArray[np.int32] | None = None
    shares_prefixes: bool = False


def slot_bytes(tokens: int) -> int:
    """Of a step of so many tokens, in the worst case inputs of one token each, with all that may be said of them."""
    return _WORD * (_HEADER + (4 + COLUMNS) * tokens)


class Ring:
    """memory: a file descriptor, which it takes over."""

    def __init__(self, memory: int, slots: int, slot_size: int) -> None:
        self._map = mmap.mmap(memory, slots * slot_size)
        os.close(memory)
        self._slots, self._slot_words = slots, slot_size // _WORD
        self._words = np.frombuffer(self._map, np.int32)

    @staticmethod
    def memory(slots: int, slot_size: int) -> int:
        """The file descriptor of new memory; it goes when the last process that holds it does."""
        memory = os.memfd_create("raypool-steps")
        try:
            os.ftruncate(memory, slots * slot_size)
        except BaseException:
            os.close(memory)
            raise
        return memory

    def write(self, number: int, message: StepMessage) -> None:
        """Raises RuntimeError for a step that does not fit."""
        images = None if message.images is None else message.images.ravel()
        given = [message.ids, message.lengths, message.second, message.attended, images]
        said = [array for array in given if array is not None]
        slot = self._slot(number)
        if _HEADER + sum(map(len, said)) > len(slot):
            raise RuntimeError(
                f"a step of {len(message.ids)} tokens does not fit into {len(slot)} words of shared memory"
            )
        given_too = (message.second is not None, message.attended is not None)
        flags = (*given_too, message.alone, message.shares_prefixes)
        slot[:_HEADER] = (len(message.ids), len(message.lengths), *flags, 0 if images is None else len(images))
        np.concatenate(said, out=slot[_HEADER : _HEADER + sum(map(len, said))], casting="same_kind")

    def read(self, number: int) -> StepMessage:
        """A copy: the slot may be written again."""
        slot = self._slot(number)
        tokens, inputs, has_second, has_attended, alone, shares_prefixes, of_images = slot[:_HEADER].tolist()
        sizes = np.cumsum([tokens, inputs, inputs * has_second, inputs * has_attended, of_images])
        ids, lengths, second, attended, images = np.split(slot[_HEADER : _HEADER + sizes[-1]].copy(), sizes[:-1])
        return StepMessage(
            ids,
            lengths,
            second if has_second else None,
            attended if has_attended else None,
            bool(alone),
            images.reshape(-1, COLUMNS) if of_images else None,
            bool(shares_prefixes),
        )

    def _slot(self, number: int) -> NDArray[np.int32]:
        start = number % self._slots * self._slot_words
        return self._words[start : start + self._slot_words]
