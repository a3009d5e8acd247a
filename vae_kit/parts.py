"""More decoders and priors, with the distributions that PyTorch lacks or computes badly.

Log-probabilities are in nats. B counts the data points of a batch, D the dimensions of z.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, constraints

from vae_helpers import Conditional, at_least_float32, independent, normal, positive

__all__ = ["Autoregressive", "ContinuousBernoulli", "DecoderCategorical"]
__all__ += ["DecoderContinuousBernoulli", "PriorAutoregressive", "PriorMixture", "SharedHistograms"]


class DecoderContinuousBernoulli(Conditional):
    """p(x|z), a density, for x in [0, 1] (Loaiza-Ganem & Cunningham 2019); the network: logits."""

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, *event)`` → continuous Bernoulli with that event."""
        return independent(ContinuousBernoulli(out))


class DecoderCategorical(Conditional):
    """p(x|z) for x in {0, 1/255, …, 1}: a proper distribution over the 256 levels of a pixel.

    A pixel's distribution is a mixture of ``components`` histograms, which all pixels share and
    which are learned with the weights; the network gives the mixture's logits, ``components``
    times the data's channels. So 256 levels cost no more than a few numbers per pixel.
    """

    # Adam moves any parameter by about the learning rate: logits of rare levels take longer steps.
    speed = 10

    def __init__(self, net: nn.Module, components: int = 4) -> None:
        super().__init__(net)
        grid, centres = torch.linspace(0, 1, 256), torch.linspace(0, 1, components).unsqueeze(1)
        # They begin as bumps side by side, narrow ones at black and at white, where pixels gather.
        widths = torch.full_like(centres, 1 / components)
        if components > 2:
            widths[[0, -1]] = 1 / 256
        self.histograms = nn.Parameter(-(grid - centres).abs() / widths / self.speed)

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, K·C, ...)`` → distribution with event shape ``(C, ...)``."""
        logits = out.unflatten(1, (len(self.histograms), -1)).movedim(1, 0)
        histograms = self.speed * at_least_float32(self.histograms)
        return independent(SharedHistograms(logits, histograms))


class PriorMixture(nn.Module):
    """p(z) = Σₖ πₖ N(z; μₖ, diag σₖ²), all of it learned."""

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dim))
        self.raw_scale = nn.Parameter(torch.zeros(components, dim))

    def forward(self) -> Distribution:
        """() → mixture with event shape ``(D,)``."""
        loc = at_least_float32(self.loc)
        return _mixture(self.logits, normal(loc, positive(self.raw_scale)))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, ``(B, D)`` → ``(B,)``."""
        return self().log_prob(z)


class PriorAutoregressive(nn.Module):
    """p(z) = Π p(z_d | z_1 … z_d−1), each factor a mixture of Gaussians, all of it learned.

    One masked network gives the parameters of all factors at once (MADE, Germain et al. 2015),
    so a log-probability costs one pass; a sample costs D.
    """

    first_mask: Tensor
    last_mask: Tensor

    def __init__(self, dim: int, hidden: int = 256, components: int = 4) -> None:
        super().__init__()
        self.components, outputs = components, dim * 3 * components
        self.first = nn.Linear(dim, hidden)
        self.last = nn.Linear(hidden, outputs)
        # Hidden unit h sees z_1 … z_seen(h); factor d sees those units that see no z beyond z_d−1.
        # A step above 1 spreads the units where there are fewer of them than dimensions.
        step = max(0, dim - 2) // hidden + 1
        seen = torch.arange(hidden) * step % max(1, dim - 1) + 1
        self.register_buffer("first_mask", (seen[:, None] > torch.arange(dim)).float())
        factor = torch.arange(outputs) // (3 * components)
        self.register_buffer("last_mask", (factor[:, None] >= seen).float())
        with torch.no_grad():  # each factor begins close to the same wide mixture
            self.last.weight *= 0.3
            self.last.bias.view(dim, 3, components)[:, 1] = torch.linspace(-1, 1, components)

    def factors(self, z: Tensor) -> Distribution:
        """z ``(*, D)`` → p(z_d | z_1 … z_d−1), batch shape ``(*, D)``."""
        z = z.to(self.first.weight.dtype)
        hidden = F.silu(F.linear(z, self.first.weight * self.first_mask, self.first.bias))
        out = F.linear(hidden, self.last.weight * self.last_mask, self.last.bias)
        parts = at_least_float32(out).unflatten(-1, (-1, 3, self.components))
        logits, loc, raw_scale = parts.unbind(-2)
        return _mixture(logits, Normal(loc, positive(raw_scale), validate_args=False))

    def forward(self) -> Distribution:
        """() → distribution with event shape ``(D,)``."""
        return Autoregressive(self.factors, like=at_least_float32(self.first.weight[0]))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, ``(B, D)`` → ``(B,)``."""
        return self().log_prob(z)


def _mixture(logits: Tensor, components: Distribution) -> Distribution:
    """The mixture of ``components``, batch shape ``(..., K)``, with weights softmax(logits)."""
    weights = Categorical(logits=at_least_float32(logits), validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)


class Autoregressive(Distribution):
    """p(z) = Π p(z_d | z_1 … z_d−1): ``factors(z)`` gives all D of them, batch shape ``(*, D)``.

    ``like`` is any tensor of one sample's shape, device and dtype.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, factors: Callable[[Tensor], Distribution], like: Tensor) -> None:
        super().__init__(event_shape=like.shape, validate_args=False)
        self.factors, self.like = factors, like

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, ``(*, D)`` → ``(*,)``."""
        return self.factors(value).log_prob(value).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw one dimension after the other, ``(*sample_shape, D)``."""
        z = self.like.new_zeros(*sample_shape, *self.event_shape)
        for d in range(z.shape[-1]):
            z[..., d] = self.factors(z).sample()[..., d]
        return z


# For large |l| a continuous Bernoulli of logit l is an exponential distribution, of mean 1/|l| from
# one of its ends, whose density has no bound. This bound makes that mean as small as the least
# scale of a normal distribution.
MAX_LOGIT = 1e3

# Below this |l| a continuous Bernoulli is computed from its series, whose rest is less than 1e-8:
# the formula would lose digits in differences of nearly equal numbers.
_SERIES = 0.2


class ContinuousBernoulli(Distribution):
    """p(x) = eˡˣ l / (eˡ − 1) on [0, 1], elementwise by logits l (Loaiza-Ganem & Cunningham 2019).

    PyTorch's own clamps its probabilities: beyond |l| = 15.9 its density does not integrate to one.
    Here all of it is computed from |l| by ``expm1``, or near 0 by a series. Beyond ``MAX_LOGIT``
    the density is that at the bound, where the gradient still points the way back.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.unit_interval
    has_rsample = True

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


class _GreyLevels(constraints.Constraint):
    """0, 1/255, …, 1, to rounding."""

    def check(self, value: Tensor) -> Tensor:
        level = 255 * value
        return ((level - level.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)


class SharedHistograms(Distribution):
    """A mixture, by logits ``(K, *batch)``, of histograms ``(K, 256)`` on grey levels 0 to 1."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = _GreyLevels()

    def __init__(self, logits: Tensor, histograms: Tensor) -> None:
        super().__init__(logits.shape[1:], validate_args=False)
        self.log_weights, self.log_histograms = logits.log_softmax(0), histograms.log_softmax(1)

    @property
    def mean(self) -> Tensor:
        """Expected level, ``(*batch)``."""
        means = self.log_histograms.exp() @ (torch.arange(256).to(self.log_weights) / 255)
        return torch.einsum("k...,k->...", self.log_weights.exp(), means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each level of ``value`` in nats, ``(*batch)``."""
        level = (255 * value).round().long()
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
        return level.to(self.log_weights) / 255
