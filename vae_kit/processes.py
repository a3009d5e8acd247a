"""Several processes under torchrun: ``torch.distributed`` in one place."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ["broadcast_from_first", "data_parallel", "process_group", "progress_bar"]
__all__ += ["rank_and_size", "share_buffers", "sum_over_processes"]


def rank_and_size() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up tensors of zeros in which each process filled its own places; on the CPU."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(values)
    return values.cpu()


def data_parallel(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over processes; with one process, the module itself."""
    if rank_and_size()[1] == 1:
        return module
    # Where unused parameters are looked for, gradients are not packed anew after the first step:
    # that would change the order of their sums, and a continued run's last bits.
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


def share_buffers(module: nn.Module) -> None:
    """Give each process the buffers of the first, such as running averages of its batches."""
    if rank_and_size()[1] > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def broadcast_from_first(thing: Any) -> Any:
    """What the first process has, in all of them."""
    things = [thing]
    if rank_and_size()[1] > 1:
        dist.broadcast_object_list(things)
    return things[0]


@contextlib.contextmanager
def process_group(device: str | None) -> Iterator[str | None]:
    """Join the processes of torchrun, if it started this one; the device of this process.

    Only the first process prints. Raises ``ValueError`` for a device that is not there.
    """
    several, cuda = dist.is_torchelastic_launched(), torch.cuda.is_available()
    usable = {"cuda": cuda, "mps": torch.backends.mps.is_available() and not several}
    if device and not usable.get(device, True):
        raise ValueError(f"the device {device} is not there, or not for several processes")
    if not several:
        yield device
        return
    device = device or ("cuda" if cuda else "cpu")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        with contextlib.redirect_stdout(io.StringIO() if dist.get_rank() else sys.stdout):
            yield device
    finally:
        dist.destroy_process_group()


def progress_bar(shown: bool, unit: str, total: int, done: int = 0) -> Any:
    """A bar of ``total`` units, ``done`` of them before, in the first of several processes."""
    # The notebook's kind of bar does not follow TQDM_DISABLE by itself.
    hidden = not shown or rank_and_size()[0] > 0 or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, initial=done, unit=unit, leave=False, disable=hidden)
