"""Batches for training and evaluation, from whatever data a user has.

N counts the points of a data set, B those of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from vae_checkpoint import digest
from vae_runtime import process, seed_from, seeded

__all__ = ["Batch", "Batches", "Transform", "as_numbers"]

Transform = Callable[[Tensor], Tensor]


def as_numbers(data: Any) -> Any:
    """A NumPy array or a DataFrame of numbers as a tensor; anything else unchanged.

    Raises ``TypeError`` where an array or a DataFrame holds something else than numbers. A tensor
    shares the memory of an array where PyTorch can.
    """
    if hasattr(data, "to_numpy"):  # pandas, and what follows it
        numbers = data.select_dtypes("number") if hasattr(data, "select_dtypes") else data
        if numbers.shape != data.shape:
            others = ", ".join(str(c) for c in data.columns if c not in set(numbers.columns))
            raise TypeError(
                f"the columns {others} hold no numbers: encode them, or leave them out "
                "(frame.select_dtypes('number'))"
            )
        data = data.to_numpy(dtype=float)
    if not isinstance(data, (np.ndarray, np.generic)):
        return data
    if data.dtype.kind not in "fiub":
        raise TypeError(
            f"an array of {data.dtype} holds no real numbers: encode it as such, for instance by "
            "array.astype('float32') where its entries are numbers"
        )
    array = np.asarray(data)
    if not (array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0):
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


class Batch(NamedTuple):
    """The part of a batch that falls to this process."""

    rows: Tensor
    """Where its points stand in the data set, ``(B,)``."""
    x: Tensor
    """The points in the model's space, ``(B, ...)``."""
    share: float
    """The size of this part by the mean size of all parts of the batch: 1 for one process."""


class Batches:
    """A data set, served in batches in the model's space on a device.

    ``data`` is a tensor, an array, a DataFrame of numbers or any map-style dataset, of whose items
    ``(x, y)`` only x is used. ``transform`` takes a raw batch into the model's space. Floats of
    any other width are converted to ``dtype``. Raises ``TypeError`` or ``ValueError``, which name
    the split, for anything else.
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
        _refuse_what_is_no_dataset(data, name)
        self.name = name
        if not isinstance(data, np.memmap):  # whose rows stay on the disk until they are asked for
            with self._naming():
                data = as_numbers(data)
        self.length = len(data)
        if self.length < 1:
            raise ValueError(f"{name} holds no data points")
        if isinstance(data, Tensor) and _fits_on(device, data):
            data = data.to(device)  # resident, so that a step moves nothing but indices
        self.data, self.device, self.dtype = data, device, dtype
        self.transform = transform
        self.loader = None if isinstance(data, Tensor) else _loader(data, device, workers)

    def __len__(self) -> int:
        return self.length

    def close(self) -> None:
        """Let the workers end."""
        self.loader = None

    def fingerprint(self) -> str:
        """What tells this data set from others: a digest of it, or of 16 items of a dataset."""
        if isinstance(self.data, Tensor):
            return f"{self.length} points {digest(self.data)}"
        places = torch.linspace(0, len(self) - 1, 16, dtype=torch.float64)
        index = sorted(set(places.long().tolist()))
        found = set()
        for _ in range(2):  # items that differ from one look to the next identify nothing
            with seeded(0), self._naming():
                found.add(digest(_first_entries(_Items(self.data).fetch(index))))
        same = f" {found.pop()}" if len(found) == 1 else ""
        return f"{self.length} points of {type(self.data).__qualname__}{same}"

    def indices(self, batch_size: int, seed: Sequence[int] | None = None) -> list[Tensor]:
        """The indices of every batch, ``(B,)`` each: in order, or for training shuffled by a seed.

        A last batch for training that holds one point, or fewer than there are processes, joins
        the one before: BatchNorm fails on a single point. Raises ``ValueError`` where even so a
        process would go without.
        """
        order, world, least = torch.arange(len(self)), process()[1], 1
        if seed is not None:
            generator = torch.Generator().manual_seed(seed_from(*seed))
            order, least = torch.randperm(len(self), generator=generator), max(2, world)
        batches = list(order.to(self.device).split(batch_size))
        if len(batches[-1]) < least and len(batches) > 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        if seed is not None and len(batches[0]) < world:
            raise ValueError(f"{world} processes cannot share batches of {len(batches[0])}")
        return batches

    def load(self, batches: Sequence[Tensor]) -> Generator[Batch, None, None]:
        """This process's part of every batch, in the model's space."""
        rank, world = process()
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
        x = self._as_floats(raw.to(self.device, non_blocking=True))
        if self.transform is None:
            return x
        x = self._as_floats(as_numbers(self.transform(x)))
        if len(x) != len(raw):
            raise ValueError(f"{self.name}: the transform made {len(x)} of {len(raw)} points")
        return x

    def _as_floats(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.name}: the transform must return a tensor, got {type(x)}")
        return x.to(self.dtype) if x.is_floating_point() else x

    def _raw(self, parts: Sequence[Tensor]) -> Iterable[Tensor]:
        if isinstance(self.data, Tensor):
            # Whole rows: copied far faster than by a general index.
            return (self.data.index_select(0, part.to(self.data.device)) for part in parts)
        assert self.loader is not None
        sampler: Any = self.loader.batch_sampler
        sampler.batches = [part.tolist() for part in parts]
        return self._loaded(self.loader)

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[Tensor]:
        with self._naming():
            yield from loader

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from error


def _refuse_what_is_no_dataset(data: Any, name: str) -> None:
    kind = type(data).__name__
    if isinstance(data, DataLoader):
        raise TypeError(
            f"{name} is a DataLoader: give the dataset it loads (loader.dataset), which is batched "
            "and shuffled here"
        )
    if isinstance(data, Mapping):
        raise TypeError(
            f"{name} is a {kind}: give one of its values, such as {name}[{next(iter(data), 'x')!r}]"
        )
    if isinstance(data, tuple):
        raise TypeError(f"{name} is a tuple of {len(data)}: give its data points, {name}[0]")
    if hasattr(data, "toarray"):
        raise TypeError(f"{name} is a sparse {kind}: give {name}.toarray()")
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise TypeError(
            f"{name} is a {kind}: what is needed is a tensor, an array, or a dataset with "
            f"__getitem__ and __len__; of what can only be iterated, give list({name})"
        )


class _Items:
    """A dataset that fetches whole index lists, each list with a seed of its own.

    So what the dataset draws at random depends neither on the number of workers nor on which of
    them fetches, and a continued run draws the same.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitems__(self, seed_and_index: list[int]) -> Any:
        seed, *index = seed_and_index
        with seeded(seed):
            return self.fetch(index)

    def fetch(self, index: list[int]) -> Any:
        if isinstance(self.data, np.ndarray):
            return np.array(self.data[index])
        at_once = getattr(self.data, "__getitems__", None)
        return at_once(index) if at_once else [self.data[i] for i in index]


class _GivenBatches:
    """A batch sampler whose index lists are set before every pass; a seed precedes each list."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        seed = torch.initial_seed()  # of this pass; to read it draws nothing
        return iter([seed_from(seed, number), *b] for number, b in enumerate(self.batches))

    def __len__(self) -> int:
        return len(self.batches)


def _loader(data: Any, device: torch.device, workers: int) -> DataLoader[Any]:
    """A loader for all passes, so that its workers start once."""
    return DataLoader(
        _Items(data),  # type: ignore[arg-type]
        batch_sampler=_GivenBatches(),
        collate_fn=_first_entries,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else a loader would draw from the generator of the noise
    )


def _first_entries(batch: Any) -> Tensor:
    """x of a batch that a dataset gave item by item (a list) or, from ``__getitems__``, at once."""
    if isinstance(batch, list):
        items = [b[0] if isinstance(b, (tuple, list)) else b for b in batch]
        if isinstance(items[0], Mapping):
            key = next((k for k, v in items[0].items() if isinstance(v, (Tensor, np.ndarray))), "x")
            raise TypeError(
                f"items are dicts with the keys {', '.join(map(repr, items[0]))}: give their data "
                f"points alone, for instance [item[{key!r}] for item in dataset]"
            )
        batch = default_collate(items)
    batch = as_numbers(batch[0] if isinstance(batch, tuple) else batch)
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"items give a {type(batch).__name__}: each must be a tensor, an array or a number, or "
            "a tuple that begins with one"
        )
    return batch


def _fits_on(device: torch.device, data: Tensor) -> bool:
    if device.type != "cuda":
        return True
    free: int = torch.cuda.mem_get_info(device)[0]
    return 2 * data.nbytes < free
