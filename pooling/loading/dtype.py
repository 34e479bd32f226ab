"""Which number format and device `auto` means on this machine."""

import torch

from pooling.errors import ConfigError

_NAMED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device if there is one. Raises ConfigError for cuda without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device is 'cuda', but this machine has no CUDA device; allowed here: auto, cpu")
    return torch.device("cuda" if available and name in ("auto", "cuda") else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it fast, float32 otherwise; never float16, which overflows."""
    if name == "float16" and device.type == "cpu":
        raise ConfigError("dtype is 'float16', which no CPU multiplies fast; allowed on CPU: auto, float32, bfloat16")
    if name != "auto":
        return _NAMED[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 has none
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
