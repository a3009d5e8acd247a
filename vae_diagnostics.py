"""What a trained model tells about itself, in units that compare."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_helpers import VAE, looking_at, wide_dtype
from vae_support import refuse_not_finite

__all__ = ["LatentUnits", "bits_per_dim", "latent_units"]

Nats = TypeVar("Nats", float, np.ndarray, Tensor)


class LatentUnits(NamedTuple):
    """What each latent dimension carries, over a data set."""

    mean: Tensor
    """The posterior means, ``(N, D)``."""
    variance: Tensor
    """Variance of the posterior mean over the data, ``(D,)``."""
    kl: Tensor
    """Average KL from N(0, 1) in nats, ``(D,)``: what the encoder says through it."""

    @property
    def active(self) -> Tensor:
        """Which units vary with the data: variance > 0.01 (Burda et al. 2016), ``(D,)``."""
        return self.variance > 0.01

    def __repr__(self) -> str:
        said = f"{int(self.active.sum())} of {len(self.kl)} latent dimensions are active, KL "
        return f"{said}{self.kl.sum():.1f} nats in all; the largest has {self.kl.max():.1f}"


def latent_units(model: VAE, x: Tensor, batch_size: int = 1000) -> LatentUnits:
    """Means, activity and KL of the latent dimensions of a Gaussian encoder for x ``(N, ...)``.

    Warns where most units are dead (posterior collapse). Raises ``ValueError`` for fewer than two
    data points, and ``FloatingPointError`` for data or codes that are not finite.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} data points do not tell what varies: give at least two")
    own = next(model.parameters())
    x = x.to(own.device, wide_dtype(model))
    refuse_not_finite(x)
    with looking_at(model):
        parts = [model.encoder(part) for part in x.split(batch_size)]
    mean = torch.cat([q.mean for q in parts])
    variance = torch.cat([q.variance for q in parts])
    kl = (0.5 * (mean**2 + variance - variance.log() - 1)).mean(0)
    if not kl.isfinite().all():
        raise FloatingPointError("the encoder's output is not finite: its weights ran away")
    units = LatentUnits(mean, mean.var(0), kl)
    dead = int((~units.active).sum())
    if 2 * dead > mean.shape[1]:
        warnings.warn(
            f"posterior collapse: {dead} of {mean.shape[1]} latent units ignore the data; "
            "a smaller beta or fewer latents may help",
            stacklevel=2,
        )
    return units


def bits_per_dim(nats: Nats, dims: int, levels: int = 1) -> Nats:
    """Negative log-probability in nats, a number or ``(N,)`` → bits per dimension, likewise.

    For a density on [0, 1] of data dequantised from ``levels`` levels, a level is a bin of width
    1/levels: −log P = −log p + dims · log levels, which is bounded from above by Jensen's
    inequality (Theis et al. 2016).
    """
    return (nats / dims + math.log(levels)) / math.log(2)
