"""What training needs around the model: seeds, devices, processes, a progress bar.

Nothing here knows what a VAE is.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = [
    "Precision",
    "agreed",
    "distributed",
    "gathered",
    "network_dtype",
    "pick_device",
    "process",
    "progress_bar",
    "seed_from",
    "seeded",
    "share_buffers",
    "whole_number",
]

Precision = Literal["auto", "float32", "bfloat16"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int. Raises ``ValueError`` unless it is a whole number ≥ ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


# --------------------------------------------------------------------------- seeds, devices


def seed_from(*key: int) -> int:
    """One seed from several numbers: independent streams for neighbouring keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within it every generator that data or a model may draw from is seeded by ``key``.

    Afterwards each has its old state again.
    """
    generators = _generators()
    before = [read() for read, _ in generators]
    try:
        seed = seed_from(*key)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # on CPU, CUDA and MPS
        if xla := sys.modules.get(_XLA):
            xla.set_rng_state(seed)
        yield
    finally:
        for (_, write), state in zip(generators, before, strict=True):
            write(state)


_XLA = "torch_xla.core.xla_model"  # a device outside PyTorch, there once somebody imported it


def _generators() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to read and to set the state of each generator of a device that is there."""
    found: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_available():  # to count devices where there are none leaves garbage behind
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if torch.backends.mps.is_available():
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    if xla := sys.modules.get(_XLA):
        found.append((xla.get_rng_state, xla.set_rng_state))
    return found


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device itself, or for None the fastest there is: CUDA, then MPS, then the CPU."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{torch.cuda.current_device()}"
    return torch.device(device)


def network_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype in which networks compute under autocast; None is no autocast."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f'precision must be "auto", "float32" or "bfloat16", got {precision!r}')
    fast = precision == "bfloat16"
    if precision == "auto" and device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    if precision == "auto" and device.type == "cpu":
        # Older versions of PyTorch cannot tell: there, float32 it is. Intel's AVX-512 has bfloat16,
        # but without AMX its products take twice the time of float32; on AMD a third.
        cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        vectors = cpu.get("avx512_bf16") and "Intel" not in cpu.get("cpu_name", "")
        fast = bool(cpu.get("amx_bf16") or vectors)
    return torch.bfloat16 if fast else None


# -------------------------------------------------------------------------------- processes


def process() -> tuple[int, int]:
    """(rank, number of processes) of ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(values: Tensor) -> Tensor:
    """The sum over processes, on the CPU: each wrote into its own places of a tensor of zeros."""
    if process()[1] > 1:
        dist.all_reduce(values)
    return values.cpu()


def distributed(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over processes; with one process, the module itself."""
    if process()[1] == 1:
        return module
    # Where unused parameters are looked for, gradients are not packed anew after the first step:
    # that would change the order of their sums, and a continued run's last bits.
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


def share_buffers(module: nn.Module) -> None:
    """Give each process the buffers of the first, such as running averages of its batches."""
    if process()[1] > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def agreed(answer: bool) -> bool:
    """The answer of the first process, in all of them."""
    answers = [answer]
    if process()[1] > 1:
        dist.broadcast_object_list(answers)
    return answers[0]


def progress_bar(shown: bool, total: int, done: int) -> Any:
    """A bar of ``total`` steps, ``done`` of them before, in the first of several processes."""
    # The notebook's kind of bar does not follow TQDM_DISABLE by itself.
    hidden = not shown or process()[0] > 0 or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, initial=done, unit="step", leave=False, disable=hidden)
