"""Devices, the precision of networks on them, and shelter from the caller's settings."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from vae_helpers import full_precision

__all__ = ["Precision", "autocast", "caller_settings_ignored", "data_dtype", "pick_device"]

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device itself, or for None the fastest there is: CUDA, then MPS, then the CPU."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{torch.cuda.current_device()}"
    return torch.device(device)


def data_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of data and log-probabilities: the weights', or float32 where that is narrower."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.promote_types(own, torch.float32)


def autocast(precision: Precision, device: torch.device) -> Any:
    """A context in which networks compute in ``precision``, whatever autocast is around it.

    "auto" is bfloat16 where the device is fast at it, else float32.
    """
    if precision == "float32" or (precision == "auto" and not _fast_at_bfloat16(device)):
        return full_precision(device)
    # Copies of weights that an autocast around this one kept would outlive the training step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _fast_at_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Older versions of PyTorch cannot tell: there, float32 it is. Intel's AVX-512 has bfloat16,
    # but without AMX its products take twice the time of float32; on AMD a third.
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    vectors = cpu.get("avx512_bf16") and "Intel" not in cpu.get("cpu_name", "")
    return device.type == "cpu" and bool(cpu.get("amx_bf16") or vectors)


@contextlib.contextmanager
def caller_settings_ignored(device: torch.device) -> Iterator[None]:
    """Ignore an autocast, ``no_grad``, inference mode or default device that the caller has set."""
    usual = torch.empty(0).device.type == "cpu"  # whatever sets the default
    default = contextlib.nullcontext() if usual else torch.device("cpu")
    with full_precision(device), torch.inference_mode(False), torch.enable_grad(), default:
        yield
