"""Raypool's engine: packed pooling inference, without Ray and without HTTP.

Public names are imported on first use, so that a process that only tokenises
does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pooling.config import ModelSpec, PoolerConfig
    from pooling.engine import Engine
    from pooling.errors import PoolingError
    from pooling.intake import Intake
    from pooling.llm import LLM
    from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
    from pooling.request import PackedBatch, PooledOutput, PoolingParams, PoolingRequest

__version__ = "0.1.0"
_HOMES = {
    "LLM": "pooling.llm",
    "Engine": "pooling.engine",
    "Intake": "pooling.intake",
    "ModelSpec": "pooling.config",
    "PoolerConfig": "pooling.config",
    "Content": "pooling.media",
    "Conversation": "pooling.media",
    "Image": "pooling.media",
    "ImageEmbeds": "pooling.media",
    "ImagePrompt": "pooling.media",
    "PackedBatch": "pooling.request",
    "PooledOutput": "pooling.request",
    "PoolingParams": "pooling.request",
    "PoolingRequest": "pooling.request",
    "PoolingError": "pooling.errors",
}
__all__ = [
    "LLM",
    "Content",
    "Conversation",
    "Engine",
    "Image",
    "ImageEmbeds",
    "ImagePrompt",
    "Intake",
    "ModelSpec",
    "PackedBatch",
    "PooledOutput",
    "PoolerConfig",
    "PoolingError",
    "PoolingParams",
    "PoolingRequest",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pooling' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
