"""Evaluation: both terms of the ELBO for every point of a data set."""

import math
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vae_helpers import VAE, Elbo, evaluating

from .batches import Batches, Transform
from .checks import error_prefix, whole_number
from .devices import Precision, autocast, caller_settings_ignored, data_dtype, pick_device
from .processes import rank_and_size, share_buffers, sum_over_processes
from .seeds import seeded
from .settings import Settings

__all__ = ["elbo_of_all", "evaluate", "refuse_non_finite"]

# Large enough for full speed, small enough to stay in the caches of a CPU.
EVALUATION_BATCH = 1000


def evaluate(
    model: VAE,
    data: Tensor | Dataset[Any],
    *,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    batch_size: int = EVALUATION_BATCH,
    seed: int = 0,
) -> Elbo:
    """Both terms of the ELBO for every point of ``data``, ``(N,)``, as ``fit`` evaluates them.

    The model is moved to the device; ``batch_size`` points are in memory at a time. Errors as in
    ``fit``.
    """
    device, batch_size = pick_device(device), whole_number("batch_size", batch_size)
    Settings(epochs=1, precision=precision, seed=seed)  # refuses what makes no sense
    with caller_settings_ignored(device):
        source = Batches(data, "data", device, data_dtype(model), transform)
        return elbo_of_all(model.to(device), source, batch_size, precision, seed, "evaluation")


def elbo_of_all(
    model: VAE, source: Batches, batch_size: int, precision: Precision, seed: int, where: str
) -> Elbo:
    """Both terms for every point of the source, ``(N,)``; the seed gives the noise."""
    terms = torch.zeros(2, len(source), dtype=source.dtype, device=source.device)
    share_buffers(model)
    batches = source.load(source.indices(batch_size))
    noise = seeded(seed, 0, 1 + rank_and_size()[0])
    with evaluating(model), noise, error_prefix(where), closing(batches):
        for batch in batches:
            with autocast(precision, source.device):
                elbo: Elbo = model(batch.x)
            refuse_non_finite(model, batch.x, elbo, elbo.value.sum())
            terms[:, batch.rows] = torch.stack(elbo).to(source.dtype)
    return Elbo(*sum_over_processes(terms))


def refuse_non_finite(model: Any, x: Tensor, elbo: Elbo, loss: Tensor) -> None:
    """Raise ``FloatingPointError``, which names the term that is not finite, or its cause."""
    # One look at the sum of all: it is finite only if every term of every point is.
    if math.isfinite(elbo.value.detach().sum() + loss.detach().sum()):
        return
    for name, values in (("x", x), ("log_likelihood", elbo.log_likelihood), ("kl", elbo.kl)):
        if bad := int((~values.isfinite().reshape(len(x), -1).all(1)).sum()):
            with torch.no_grad():  # what a compiled model says with NaN, this says in words
                getattr(model, "module", model).elbo(x)
            raise FloatingPointError(f"{name} is not finite for {bad} of {len(x)} data points")
    raise FloatingPointError(f"the loss is {loss.item()}, while the ELBO is finite")
