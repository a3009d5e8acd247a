"""What a trained model tells about itself, in units that compare."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_helpers import VAE, evaluating, full_precision, log_prob

from .arrays import as_floats
from .devices import data_dtype

__all__ = ["LatentUnits", "bits_per_dim", "latent_units", "log_marginal"]


class LatentUnits(NamedTuple):
    """What each latent dimension carries, over a data set."""

    mean: Tensor
    """The posterior means, ``(N, D)``."""
    variance: Tensor
    """Variance of the posterior mean over the data, ``(D,)``: of an active unit > 0.01."""
    kl: Tensor
    """Average KL from N(0, 1) in nats, ``(D,)``: what the encoder says through it."""

    def __repr__(self) -> str:
        active = int((self.variance > 0.01).sum())  # the limit of Burda et al. 2016
        said = f"{active} of {len(self.kl)} latent dimensions are active, KL "
        return f"{said}{self.kl.sum():.1f} nats in all; the largest has {self.kl.max():.1f}"


def latent_units(model: VAE, x: Any, batch_size: int = 1000) -> LatentUnits:
    """Means, activity and KL of the latent dimensions of a Gaussian encoder for x ``(N, ...)``.

    x is in the model's space. Where most units are not active (posterior collapse), a smaller beta
    or fewer latents may help. Raises ``TypeError`` for raw bytes, and ``FloatingPointError`` where
    something is not finite, such as the variance of a single point.
    """
    x = _on_its_device(model, x)
    with evaluating(model):
        parts = [model.encoder(part) for part in torch.split(x, batch_size)]
    mean = torch.cat([q.mean for q in parts])
    variance = torch.cat([q.variance for q in parts])
    kl = (0.5 * (mean**2 + variance - variance.log() - 1)).mean(0)
    units = LatentUnits(mean, mean.var(0), kl)
    if not (units.variance + kl).isfinite().all():
        raise FloatingPointError(f"codes of {len(x)} points, or their variance, are not finite")
    return units


def log_marginal(model: VAE, x: Any, n_samples: int, chunk: int = 2048) -> Tensor:
    """Importance-weighted estimate of log p(x) in nats, ``(B,)`` (Burda et al. 2016, eq. 8).

    log 1/K Σ p(x|zₖ) p(zₖ) / q(zₖ|x) over K = ``n_samples`` draws from q: in expectation a lower
    bound that rises with K, from the ELBO at K = 1. No more than ``chunk`` latent points are
    decoded at once, so memory does not depend on K. Errors as in ``VAE.elbo``, and
    ``FloatingPointError`` where the estimate is no number.
    """
    x = _on_its_device(model, x)
    with evaluating(model):
        parts = [_log_marginal(model, part, n_samples, chunk) for part in torch.split(x, chunk)]
    log_p = torch.cat(parts)
    bad = log_p.isnan()
    if not x.is_meta and bad.any():
        raise FloatingPointError(
            f"log p(x) is no number for {int(bad.sum())} of {len(x)} points: "
            "look at the data and at the weights"
        )
    return log_p


def _log_marginal(model: VAE, x: Tensor, n_samples: int, chunk: int) -> Tensor:
    q: Distribution = model.encoder(x)
    prior: Distribution = model.prior()
    wanted = (x.shape[:1], torch.Size(), q.event_shape)
    if (q.batch_shape, prior.batch_shape, prior.event_shape) != wanted:
        raise ValueError(f"encoder and prior do not fit {len(x)} points: they gave {q}, {prior}")
    total = x.new_full((len(x),), -math.inf)
    step = min(n_samples, max(1, chunk // len(x)))
    repeated = x.expand(step, *x.shape).flatten(0, 1)
    for start in range(0, n_samples, step):
        z = q.rsample(torch.Size((min(step, n_samples - start),)))  # (S, B, D)
        p = model.decoder(z.flatten(0, 1))
        with full_precision(x.device):
            log_likelihood = log_prob(p, repeated[: len(z) * len(x)]).view(z.shape[:2])
            log_weight = log_likelihood + prior.log_prob(z) - q.log_prob(z)
        total = torch.logaddexp(total, log_weight.logsumexp(0))
    return total - math.log(n_samples)


def _on_its_device(model: VAE, x: Any) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return as_floats(x, data_dtype(model), device)


def bits_per_dim(nats: Any, dims: int, levels: int = 1) -> Any:
    """Negative log-probability in nats, a number or ``(N,)`` → bits per dimension, likewise.

    For a density on [0, 1] of data dequantised from ``levels`` levels, a level is a bin of width
    1/levels: −log P = −log p + dims · log levels, which is bounded from above by Jensen's
    inequality (Theis et al. 2016).
    """
    return (nats / dims + math.log(levels)) / math.log(2)
