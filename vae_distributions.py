"""Distributions that PyTorch lacks or computes badly.

Log-probabilities are in nats, summed over the event, one number per data point. B counts the data
points of a batch, D the dimensions of z. Scales of normal distributions are bounded away from 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
)

__all__ = [
    "MAX_LOGIT",
    "MIN_SCALE",
    "Autoregressive",
    "ContinuousBernoulli",
    "SharedHistograms",
    "bernoulli",
    "halves",
    "independent",
    "mixture",
    "normal",
    "path_log_prob",
    "positive",
    "widened",
]

# The least scale a network can ask for is about the standard deviation of what dequantizing adds,
# (1/256)/√12 ≈ 0.0011: below it a density would describe the noise. The bound keeps log-densities
# finite on constant data; data far from the magnitude of 1 should be standardised first.
MIN_SCALE = 1e-3

# For large |l| a continuous Bernoulli of logit l is an exponential distribution, of mean 1/|l| from
# one of its ends, whose density has no bound. This one matches that of the scales.
MAX_LOGIT = 1e3

# Below this |l| a continuous Bernoulli is computed from its series, whose rest is less than 1e-8:
# the formula would lose digits in differences of nearly equal numbers.
_SERIES = 0.2


def widened(out: Any) -> Any:
    """A tensor, or those in a tuple or list, in float32 where they are narrower floats."""
    if isinstance(out, (tuple, list)):
        return type(out)(widened(part) for part in out)
    if isinstance(out, Tensor) and out.is_floating_point() and out.dtype.itemsize < 4:
        return out.float()
    return out


def positive(raw: Tensor) -> Tensor:
    """Any real number → a scale of at least ``MIN_SCALE``, by softplus; the same shape."""
    return F.softplus(widened(raw)) + MIN_SCALE


def halves(out: Tensor) -> tuple[Tensor, Tensor]:
    """A network's output ``(B, 2C, ...)`` → location and raw scale, ``(B, C, ...)`` each.

    Raises ``ValueError`` where the second dimension is not even.
    """
    if out.ndim < 2 or out.shape[1] % 2:
        raise ValueError(
            "a network that gives location and scale must end in (B, 2C, ...), twice the numbers "
            f"of the location: it gave {tuple(out.shape)}"
        )
    loc, raw_scale = out.chunk(2, dim=1)
    return loc, raw_scale


def independent(base: Distribution) -> Distribution:
    """The same distribution with all dimensions but the first in one event."""
    return Independent(base, len(base.batch_shape) - 1, validate_args=False)


def normal(loc: Tensor, scale: Tensor) -> Distribution:
    """N(loc, diag scale²): batch shape ``(B,)``, and the event is the rest of ``loc``'s shape."""
    if scale.ndim == 0 and loc.ndim:
        return _IsotropicNormal(widened(loc), scale)
    return independent(Normal(widened(loc), scale, validate_args=False))


class _IsotropicNormal(Independent):  # type: ignore[type-arg]  # not generic in PyTorch 2.4
    """N(loc, σ² I): with one σ, squared errors are summed before anything else is done to them."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), loc.ndim - 1, validate_args=False)
        self.scale = scale

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        return independent(self.base_dist).expand(batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        error, event = value - self.base_dist.loc, self.reinterpreted_batch_ndims
        squares = error.square().flatten(-event).sum(-1) if event else error.square()
        log_unit = 0.5 * math.log(2 * math.pi) + self.scale.log()
        return -0.5 * squares / self.scale**2 - self.event_shape.numel() * log_unit


def mixture(logits: Tensor, components: Distribution) -> Distribution:
    """The mixture of ``components``, batch shape ``(..., K)``, with weights softmax(logits)."""
    weights = Categorical(logits=widened(logits), validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)


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


class Autoregressive(Distribution):
    """p(z) = Π p(z_d | z_1 … z_d−1) for z of the shape ``(dim,)``.

    ``factors(z)`` gives all D conditional distributions at once, batch shape ``(*, D)``. ``like``
    is any tensor whose device and dtype samples shall have.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, factors: Callable[[Tensor], Distribution], dim: int, like: Tensor) -> None:
        super().__init__(event_shape=torch.Size([dim]), validate_args=False)
        self.factors, self.like = factors, like

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, ``(*, D)`` → ``(*,)``."""
        return self.factors(value).log_prob(value).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw one dimension after the other, ``(*sample_shape, D)``."""
        z = self.like.new_zeros(*sample_shape, *self.event_shape)
        with torch.no_grad():
            for d in range(z.shape[-1]):
                z[..., d] = self.factors(z).sample()[..., d]
        return z


def path_log_prob(q: Distribution, z: Tensor) -> Tensor:
    """log q(z) in nats, ``(B,)``, whose gradient flows along the path of z alone where it may.

    The rest of its gradient, the score, has mean zero (Roeder et al. 2017), but only where the
    support of q does not depend on q's parameters. Else, as under a uniform q, it stays.
    """
    return (q if _support_moves(q) else _detached(q)).log_prob(z)


def _support_moves(q: Distribution) -> bool:
    """Whether q's support may depend on its parameters."""
    if isinstance(q, Independent):
        return _support_moves(q.base_dist)
    if isinstance(
        q, TransformedDistribution
    ):  # a map of ℝ covers the same range, whatever moves it
        return q.base_dist.support not in (constraints.real, constraints.real_vector)
    support = q.support
    bounds = [support, getattr(support, "base_constraint", None)]
    return any(isinstance(v, Tensor) for c in bounds if c is not None for v in vars(c).values())


def _detached(q: Distribution) -> Distribution:
    """A copy of q through which no gradient flows to its parameters.

    It detaches the tensors of q and those of the distributions inside it. What else a foreign q
    may hold, a learned transform for instance, stays in the graph.
    """
    twin = copy.copy(q)
    for name, value in vars(q).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.detach())
        elif isinstance(value, Distribution):
            setattr(twin, name, _detached(value))
    return twin
