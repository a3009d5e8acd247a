"""Batches for training and evaluation, from whatever data a user has.

N counts the points of a data set, B those of a batch.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .arrays import as_floats, as_tensor, refuse_what_is_no_dataset
from .checkpoint import digest
from .checks import error_prefix, warn
from .processes import rank_and_size
from .seeds import seed_from, seeded

__all__ = ["Batch", "Batches", "Transform"]

Transform = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """The part of a batch that falls to this process."""

    rows: Tensor
    """Where its points stand in the data set, ``(B,)``."""
    x: Tensor
    """The points in the model's space, ``(B, ...)``."""
    share: float
    """The size of this part divided by the mean size of all parts: 1 for one process."""


class Batches:
    """A data set, served in batches in the model's space on a device.

    ``data`` is what ``as_tensor`` takes or any map-style dataset; of its items ``(x, y)`` only x is
    used. ``transform`` takes a raw batch into the model's space. Raises ``TypeError`` or
    ``ValueError``, which name the split, for anything else.
    """

    def __init__(
        self,
        data: Any,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        transform: Transform | None = None,
        workers: int = 0,
    ) -> None:
        if getattr(type(data), "__getitem__", None) is TensorDataset.__getitem__:
            data = data.tensors[0]  # unless a subclass makes other items of its tensors
        with error_prefix(name):
            # Read by rows where a tensor cannot share the memory: on the disk, or backwards.
            backwards = type(data) is np.ndarray and min(data.strides, default=0) < 0
            if not (backwards or isinstance(data, np.memmap)):
                data = as_tensor(data)
            if not isinstance(data, Tensor):
                refuse_what_is_no_dataset(data)
            # zarr's arrays have a shape, and no len().
            self.length = len(data) if hasattr(data, "__len__") else data.shape[0]
            if self.length < 1:
                raise ValueError("it holds no data points")
        self.loader: DataLoader[Any] | None = None
        self.index_lists: list[list[int]] = []  # of the pass under way: one at a time
        if not isinstance(data, Tensor):
            self.loader = DataLoader(  # one for all passes, so that its workers start once
                _Items(data),  # type: ignore[arg-type]
                batch_sampler=self.index_lists,
                collate_fn=nn.Identity(),  # the items are a batch already
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                generator=torch.Generator("cpu"),  # else it would draw from that of the noise
            )
        elif device.type != "cuda" or 2 * data.nbytes < torch.cuda.mem_get_info(device)[0]:
            data = data.to(device)  # resident, so that a step moves nothing but indices
        self.name, self.data, self.device, self.dtype = name, data, device, dtype
        self.transform = transform

    def __len__(self) -> int:
        return self.length

    def close(self) -> None:
        """Let the workers end."""
        self.loader = None

    def fingerprint(self) -> str:
        """What tells this data set from others: a digest of it, or of 16 items of a dataset.

        Warns where items differ from one look to the next although all generators are seeded.
        """
        if isinstance(self.data, Tensor):
            return f"{self.length} points {digest(self.data)}"
        places = torch.linspace(0, len(self) - 1, 16, dtype=torch.float64, device="cpu")
        index = sorted(set(places.long().tolist()))
        found = set()
        for _ in range(2):
            with seeded(0), error_prefix(self.name):
                found.add(digest(_Items(self.data).fetch(index)))
        if len(found) == 2:
            warn(
                f"the items of {self.name} differ from one look to the next, though all global "
                "generators are seeded: no run on them can be reproduced or continued exactly"
            )
        same = f" {found.pop()}" if len(found) == 1 else ""
        return f"{self.length} points of {type(self.data).__qualname__}{same}"

    def indices(self, batch_size: int, seed: Sequence[int] | None = None) -> list[Tensor]:
        """The indices of every batch, ``(B,)`` each: in order, or for training shuffled by a seed.

        A last batch for training that holds one point, or fewer than there are processes, joins
        the one before: BatchNorm fails on a single point. Raises ``ValueError`` where even so a
        process would go without.
        """
        order, world, least = torch.arange(len(self), device="cpu"), rank_and_size()[1], 1
        if seed is not None:
            generator = torch.Generator("cpu").manual_seed(seed_from(*seed))
            order = torch.randperm(len(self), generator=generator, device="cpu")
            least = max(2, world)
        batches = list(torch.split(order.to(self.device), batch_size))
        if len(batches[-1]) < least and len(batches) > 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        if seed is not None and len(batches[0]) < world:
            raise ValueError(f"{world} processes cannot share batches of {len(batches[0])}")
        return batches

    def load(self, batches: Sequence[Tensor]) -> Generator[Batch, None, None]:
        """This process's part of every batch, in the model's space."""
        rank, world = rank_and_size()
        parts = [(batch[rank::world], len(batch)) for batch in batches if len(batch) > rank]
        for (index, size), raw in zip(parts, self._raw([i for i, _ in parts]), strict=True):
            # DistributedDataParallel averages over processes, whose parts may differ in size.
            yield Batch(index, self._in_model_space(raw), world * len(index) / size)

    def first(self, points: int, seed: int) -> Tensor:
        """Some points at random, in the model's space, the same in every process."""
        with seeded(seed):
            (raw,) = self._raw(self.indices(points, (seed,))[:1])
            return self._in_model_space(raw)

    def _in_model_space(self, raw: Tensor) -> Tensor:
        raw = raw.to(self.device, non_blocking=True)
        with error_prefix(self.name):
            if self.transform is None:
                return as_floats(raw, self.dtype, self.device)
            given = raw.to(self.dtype) if raw.is_floating_point() else raw
            x = as_floats(self.transform(given), self.dtype, self.device)
            if len(x) != len(raw):
                raise ValueError(f"the transform made {len(x)} of {len(raw)} points")
            return x

    def _raw(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        if self.loader is None:
            for part in parts:  # whole rows: copied far faster than by a general index
                yield self.data.index_select(0, part.to(self.data.device))
            return
        seed = torch.initial_seed()  # of this pass; to read it draws nothing
        self.index_lists[:] = [[seed_from(seed, i), *part.tolist()] for i, part in enumerate(parts)]
        with error_prefix(self.name):
            yield from self.loader


class _Items:
    """A dataset that fetches whole index lists, each preceded by a seed of its own.

    So what the dataset draws at random depends neither on the number of workers nor on which of
    them fetches, and a continued run draws the same.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitems__(self, seed_and_index: list[int]) -> Tensor:
        seed, *index = seed_and_index
        with seeded(seed):
            return self.fetch(index)

    def fetch(self, index: list[int]) -> Tensor:
        """The items as one tensor, ``(B, ...)``."""
        if hasattr(self.data, "dtype") and not isinstance(self.data, Dataset):
            # Of a file on the disk, such as one of NumPy or HDF5, rows are read at once, in order.
            order = np.argsort(index)
            rows = _tensor(self.data[np.asarray(index)[order].tolist()])
            return rows[torch.from_numpy(np.argsort(order))]
        at_once = getattr(self.data, "__getitems__", None)
        items = at_once(index) if at_once else [self.data[i] for i in index]
        if isinstance(items, (tuple, Tensor, np.ndarray)):  # a batch, collated already
            return _tensor(items[0] if isinstance(items, tuple) else items)
        points = [_tensor(_first_entry(item)) for item in items]
        for place, point in zip(index, points, strict=True):
            if point.shape != points[0].shape:
                raise ValueError(
                    f"item {place} has shape {tuple(point.shape)}, item {index[0]} "
                    f"{tuple(points[0].shape)}: all data points must have one shape"
                )
        return torch.stack(points)


def _first_entry(item: Any) -> Any:
    """x of an item ``(x, y)``, or the item itself; a list of plain numbers is one data point."""
    if isinstance(item, Mapping):
        raise TypeError(
            f"items are dicts of {', '.join(map(repr, item))}: give the data points alone"
        )
    if not isinstance(item, (tuple, list)):
        return item
    numbers = all(isinstance(entry, (int, float)) for entry in item)
    if numbers and isinstance(item, list):
        return np.asarray(item)
    if numbers and len(item) > 2:
        raise TypeError("items are tuples of numbers: make one array of them, numpy.array(data)")
    return item[0]


def _tensor(point: Any) -> Tensor:
    if isinstance(point, (int, float)):
        point = np.asarray(point)
    found = as_tensor(point)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"items give a {type(found).__name__}: each must be a tensor, an array or a number, or "
            "a tuple that begins with one"
        )
    return found
