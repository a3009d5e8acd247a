"""Distributions of pixels: bits, grey levels, and shades between 0 and 1.

Log-probabilities are in nats: of ``bernoulli`` summed over the event, else one number per value. B
counts the data points of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, constraints

from vae_distributions import widened

__all__ = ["MAX_LOGIT", "ContinuousBernoulli", "SharedHistograms", "bernoulli"]

# For large |l| a continuous Bernoulli of logit l is an exponential distribution, of mean 1/|l| from
# one of its ends, whose density has no bound. This bound makes that mean as small as the least
# scale of a normal distribution.
MAX_LOGIT = 1e3

# Below this |l| a continuous Bernoulli is computed from its series, whose rest is less than 1e-8:
# the formula would lose digits in differences of nearly equal numbers.
_SERIES = 0.2


def bernoulli(logits: Tensor) -> Distribution:
    """Independent Bernoulli variables, by logits ``(B, *event)``."""
    base = Bernoulli(logits=logits, validate_args=False)
    return _IndependentBernoulli(base, logits.ndim - 1, validate_args=False)


class _IndependentBernoulli(Independent):  # type: ignore[type-arg]  # not generic in PyTorch 2.4
    """``Independent`` of a ``Bernoulli``, whose log-probability takes few logarithms."""

    def log_prob(self, value: Tensor) -> Tensor:
        event = self.reinterpreted_batch_ndims
        pair = torch.broadcast_tensors(self.base_dist.logits, value)
        flat = (t.flatten(-event) if event else t.unsqueeze(-1) for t in pair)
        return _BernoulliLogProb.apply(*flat)


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x l − log(1 + eˡ) over the last dimension, for logits l and x in {0, 1}.

    log(1 + eˡ) = max(l, 0) − log σ(|l|), and σ(|l|) lies in [½, 1]: so the product of up to 64 of
    them cannot underflow, and one logarithm, a slow function on a CPU, serves all of them. How
    many go together depends on the divisors of the event's size: 56 of 784, 64 of 1,024.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        size = logits.shape[-1]
        together = next(n for n in range(64, 0, -1) if size % n == 0)
        factors = logits.abs().sigmoid_().unflatten(-1, (size // together, together))
        wide = torch.promote_types(logits.dtype, torch.float32)  # float16 ends at 2⁻²⁴
        terms = logits.relu().addcmul_(value, logits, value=-1)
        return factors.prod(-1, dtype=wide).log().sum(-1) - terms.sum(-1, dtype=wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, value = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        by_value = grad * logits if ctx.needs_input_grad[1] else None
        return (value - logits.sigmoid()).mul_(grad), by_value


class ContinuousBernoulli(Distribution):
    """p(x) = eˡˣ l / (eˡ − 1) on [0, 1], elementwise by logits l (Loaiza-Ganem & Cunningham 2019).

    PyTorch's own clamps its probabilities: beyond |l| = 15.9 its density does not integrate to one.
    Here all of it is computed from |l| by ``expm1``, or near 0 by a series. Beyond ``MAX_LOGIT``
    the density is that at the bound, where the gradient still points the way back.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape, validate_args=False)
        self.logits = logits + (logits.clamp(-MAX_LOGIT, MAX_LOGIT) - logits).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each value in nats, in the shape of ``value``."""
        logits, a = self.logits, self.logits.abs().clamp_min(_SERIES)
        # With x measured from the likelier end, log p = −|l| x − log((1 − e^−|l|) / |l|).
        distance = torch.where(logits > 0, 1 - value, value)
        exact = -a * distance - torch.log(-torch.expm1(-a) / a)
        near_zero = logits * (value - 0.5) - logits**2 / 24 + logits**4 / 2880
        return torch.where(logits.abs() < _SERIES, near_zero, exact)

    @property
    def mean(self) -> Tensor:
        """E[x], in the shape of the logits."""
        logits, a = self.logits, self.logits.abs().clamp_min(_SERIES)
        from_its_end = 1 / a + torch.exp(-a) / torch.expm1(-a)
        exact = torch.where(logits > 0, 1 - from_its_end, from_its_end)
        near_zero = 0.5 + logits / 12 - logits**3 / 720 + logits**5 / 30240
        return torch.where(logits.abs() < _SERIES, near_zero, exact)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by the inverse of the distribution function, ``(*sample_shape, *shape)``."""
        shape = torch.Size(sample_shape) + self.logits.shape
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        a = self.logits.abs().clamp_min(1e-6)  # away from 0/0
        from_its_end = (-torch.log1p(u * torch.expm1(-a)) / a).clamp(0, 1)
        return torch.where(self.logits > 0, 1 - from_its_end, from_its_end)

    has_rsample = True


class SharedHistograms(Distribution):
    """A mixture, by logits ``(K, *batch)``, of histograms ``(K, L)`` on L levels from 0 to 1."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, logits: Tensor, histograms: Tensor) -> None:
        super().__init__(logits.shape[1:], validate_args=False)
        self.log_weights = logits.log_softmax(0)
        self.log_histograms = widened(histograms).log_softmax(1)
        self.last = histograms.shape[1] - 1

    @property
    def support(self) -> constraints.Constraint:
        """The levels 0, 1/(L−1), …, 1."""
        return _Levels(self.last)

    @property
    def mean(self) -> Tensor:
        """Expected level, ``(*batch)``."""
        levels = torch.arange(self.last + 1).to(self.log_weights) / self.last
        means = self.log_histograms.exp() @ levels
        return torch.einsum("k...,k->...", self.log_weights.exp(), means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each level of ``value`` in nats, ``(*batch)``."""
        level = (value * self.last).round().long()
        # One component after the other: far faster than a table with the components innermost.
        parts = [
            weight + histogram.index_select(0, level.flatten()).view(level.shape)
            for weight, histogram in zip(self.log_weights, self.log_histograms, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels, ``(*sample_shape, *batch)``."""
        weights = self.log_weights.movedim(0, -1)
        chosen = Categorical(logits=weights, validate_args=False).sample(sample_shape)
        # A draw from every histogram, of which one is taken.
        draws = Categorical(logits=self.log_histograms, validate_args=False).sample(chosen.shape)
        level = draws.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return level.to(self.log_weights) / self.last


class _Levels(constraints.Constraint):
    """The levels 0, 1/last, …, 1, to rounding."""

    def __init__(self, last: int) -> None:
        self.last = last

    def check(self, value: Tensor) -> Tensor:
        level = value * self.last
        return ((level - level.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)
