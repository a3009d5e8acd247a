"""Distributions that PyTorch lacks or computes badly.

Log-probabilities are in nats, summed over the event, one number per data point. B counts the data
points of a batch, D the dimensions of z. Scales that networks give are bounded away from 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
)

__all__ = [
    "MIN_SCALE",
    "Autoregressive",
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


def widened(out: Any) -> Any:
    """Floats narrower than float32, alone or in a tuple or list, as float32; the rest as it is."""
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
    loc, scale = widened(loc), widened(scale)
    if scale.ndim == 0 and loc.ndim:
        return _IsotropicNormal(loc, scale)
    return independent(Normal(loc, scale, validate_args=False))


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
    if isinstance(q, TransformedDistribution):
        # What moves all of ℝ leaves it where it is; what moves a part of it does not.
        everything = (constraints.real, constraints.real_vector)
        whole = q.base_dist.support in everything
        for part in (part for t in q.transforms for part in getattr(t, "parts", [t])):
            if not whole and any(isinstance(v, (Tensor, nn.Module)) for v in vars(part).values()):
                return True
            whole = whole and part.codomain in everything
        return _support_moves(q.base_dist)
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
