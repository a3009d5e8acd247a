"""What does not fit together: data and distributions, and what to do about it.

B counts the data points of a batch, D the dimensions of z.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

__all__ = [
    "checked_log_prob",
    "checked_posterior",
    "checked_prior",
    "fixed_scale",
    "refuse_not_finite",
    "remedy",
]


def fixed_scale(scale: Any) -> Tensor | None:
    """The scale of a Gaussian decoder as a tensor ``()``, or None where it is learned."""
    if scale is None or scale == "net":
        return None
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < float(scale) < math.inf:
        raise ValueError(f'scale must be None, "net" or a positive number, got {scale!r}')
    return torch.tensor(float(scale))


def checked_posterior(q: Any, points: int) -> Distribution:
    """The encoder's output q for a batch of so many points, if it is what a VAE can use.

    Raises ``TypeError`` unless it is a distribution that gradients can pass, and ``ValueError``
    unless it has one distribution per data point, batch shape ``(B,)``.
    """
    if not isinstance(q, Distribution):
        raise TypeError(
            f"the encoder gave a {type(q).__name__}, not a torch.distributions.Distribution: wrap "
            "its network in EncoderGaussian(net)"
        )
    if not q.has_rsample:
        raise TypeError(
            f"the encoder gave a {type(q).__name__}, which has no rsample(), so that no gradient "
            "could reach it: choose one that has, such as Independent(Normal, 1)"
        )
    if q.batch_shape != (points,):
        raise ValueError(
            f"the encoder must return one distribution per data point, batch ({points},); got "
            f"batch {tuple(q.batch_shape)}, event {tuple(q.event_shape)}"
        )
    return q


def checked_prior(p: Any, q: Distribution) -> Distribution:
    """The prior's output p, if it is a distribution over the same z as q; errors as above."""
    if not isinstance(p, Distribution):
        raise TypeError(
            f"the prior gave a {type(p).__name__}, not a torch.distributions.Distribution: take "
            "one of the priors, such as PriorGaussian(dim)"
        )
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"the prior's event {tuple(p.event_shape)} is not the encoder's "
            f"{tuple(q.event_shape)}: give both the same number of latent dimensions"
        )
    return p


def checked_log_prob(p: Any, value: Tensor) -> Tensor:
    """log p(value) in nats, ``(B,)``, once the data fit p.

    Raises ``TypeError`` where p is no distribution, ``ValueError`` for another shape and for data
    outside p's support or, if that is bounded, ``FloatingPointError`` for NaN or infinity.
    """
    if not isinstance(p, Distribution):
        raise TypeError(
            f"the decoder gave a {type(p).__name__}, not a torch.distributions.Distribution: wrap "
            "its network in one of the decoders, such as DecoderGaussian(net)"
        )
    if p.batch_shape + p.event_shape != value.shape or len(p.batch_shape) != 1:
        raise ValueError(
            f"the data have shape {tuple(value.shape)}, but the distribution describes batch "
            f"{tuple(p.batch_shape)} of events {tuple(p.event_shape)}: let the network give, for "
            f"each data point, the shape {tuple(value.shape[1:])}"
        )
    support = _elementwise(p.support)
    if support is constraints.boolean and torch.compiler.is_compiling():
        # A branch on data would split the compiled graph. NaN marks the fault here, and fit then
        # asks the uncompiled model for the error in words.
        value = torch.where(support.check(value), value, math.nan)
    # On the meta device there are no numbers to check.
    elif not value.is_meta and not _lies_in(support, value):
        refuse_not_finite(value)
        text = type(support).__name__ if len(str(support)) > 80 else str(support)
        text = text.strip("_").removesuffix("()")
        raise ValueError(f"data outside the decoder's support, {text}: {remedy(value, support)}")
    return p.log_prob(value)


def refuse_not_finite(x: Tensor) -> None:
    """Raise ``FloatingPointError`` where data ``(B, ...)`` hold NaN or infinity."""
    if x.is_meta:  # there are no numbers
        return
    finite = x.isfinite()
    if not finite.all():
        points = int((~finite.reshape(len(x), -1).all(1)).sum())
        raise FloatingPointError(
            f"x holds {int((~finite).sum())} values that are NaN or infinite, in {points} of "
            f"{len(x)} data points: there is no model of missing values, so fill them in "
            "(x.nan_to_num()) or leave those points out "
            "(x[x.isfinite().reshape(len(x), -1).all(1)])"
        )


def remedy(x: Tensor, support: Any) -> str:
    """What makes data x, which a decoder of this support refuses, acceptable to it or another."""
    support = _elementwise(support)
    kind = type(support).__name__.strip("_")
    numbers = x.float()
    low, high = numbers.min(), numbers.max()
    if x.dtype == torch.uint8 and high > 1:
        raw = {"Boolean": "binarize", "Interval": "scale", "Levels": "scale", "Real": "dequantize"}
        if kind in raw:
            return f"raw 8-bit images pass through transform={raw[kind]}"
    if not x.is_floating_point():
        first = "make them floating-point numbers, x.float() of a tensor or x.astype('float32')"
        if support is constraints.real or support.check(numbers).all():
            return first
        return f"{first}, under a decoder that takes them, such as DecoderGaussian"
    within = bool(low >= 0 and high <= 1)
    if kind == "Boolean" and within:
        return (
            "draw binary values from them (transform=torch.bernoulli), or choose a decoder for "
            "grey values (DecoderContinuousBernoulli)"
        )
    if kind == "Levels" and within:
        return "round them to levels, (x * 255).round() / 255"
    if kind == "Interval" and high > low:
        return "bring them into [0, 1], (x - x.min()) / (x.max() - x.min())"
    return "choose a decoder that takes them, such as DecoderGaussian for all real numbers"


def _elementwise(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _lies_in(support: Any, value: Tensor) -> bool:
    """Whether all of value lies in the support; on the real line there is nothing to check."""
    if support is constraints.real:
        return True
    if support is constraints.boolean:  # checked in every training step, so in few passes:
        # x − x² is 0 at 0 and 1 only; NaN is not 0.
        return not torch.addcmul(value, value, value, value=-1).abs_().sum()
    return bool(support.check(value).all())
