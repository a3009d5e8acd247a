"""Every random stream from one seed, each with a key of its own.

order of an epoch       (seed, epoch)
noise of an epoch       (seed, epoch, 1 + rank), and of evaluations (seed, 0, 1 + rank)
items of a batch        (the pass's own seed, number of the batch)
a first look            (seed,)

A trailing 0 would not tell keys apart: hence 1 + rank.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["seed_from", "seeded"]


def seed_from(*key: int) -> int:
    """One seed from several numbers: independent streams for neighbouring keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within it every global generator that data or a model may draw from is seeded by ``key``.

    Afterwards each has its old state again.
    """
    generators: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_available():
        generators.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if torch.backends.mps.is_available():
        generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    before = [read() for read, _ in generators]
    try:
        seed = seed_from(*key)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # on CPU, CUDA and MPS
        yield
    finally:
        for (_, write), state in zip(generators, before, strict=True):
            write(state)
