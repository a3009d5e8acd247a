"""Variational autoencoders from interchangeable parts.

A conditional distribution is a network plus a rule that turns the network's output into a
``torch.distributions.Distribution``. An encoder q(z|x) is one, a decoder p(x|z) is one, and a
prior p(z) is one without a condition. A VAE only composes the three::

    x ──encoder──▶ q(z|x) ──rsample──▶ z ──decoder──▶ p(x|z)
              └──── KL(q‖p) ◀──── prior p(z)    └─ log p(x|z)
                          └────── ELBO per point ──┘

Every log-probability, KL and ELBO is in nats, summed over the event, one number per data point,
and in float32 at least. Shapes: B data points in a batch, D latent dimensions.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributions.constraints as constraints
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence
from torch.distributions import TransformedDistribution as Transformed

__all__ = ["MIN_SCALE", "VAE", "Conditional", "DecoderBernoulli", "DecoderGaussian", "Elbo"]
__all__ += ["EncoderGaussian", "PriorGaussian", "evaluating"]

# ------------------------------------------------------------------ conditional distributions


class Conditional(nn.Module):
    """A network plus a rule that turns its output into a distribution (abstract).

    A subclass is the rule, ``distribution``. It sees the output in float32, or float64 where the
    network computes in that.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def distribution(self, out: Any) -> Distribution:
        """The distribution that the network's output ``(B, ...)`` stands for."""
        raise NotImplementedError

    def forward(self, condition: Tensor) -> Distribution:
        """Condition ``(B, ...)`` → distribution with batch shape ``(B,)``."""
        weights = [p for p in self.net.parameters() if p.is_floating_point()]
        if weights and condition.is_floating_point():
            condition = condition.to(weights[0].dtype)
        try:
            return self.distribution(at_least_float32(self.net(condition)))
        except RuntimeError as error:
            error.args = (f"{type(self).__name__}, given {tuple(condition.shape)}: {error}",)
            raise

    def log_prob(self, value: Tensor, condition: Tensor) -> Tensor:
        """log p(value | condition) in nats, ``(B,)``; ``ValueError`` outside of the support."""
        return log_prob(self(condition), value)


class EncoderGaussian(Conditional):
    """q(z|x) = N(z; μ(x), diag σ²(x)), the variational posterior (Kingma & Welling 2014).

    ``net`` maps x to w, ``(B, 2D)``: the first half is μ, the second gives σ by softplus.
    """

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, 2D)`` → normal with event shape ``(D,)``."""
        return normal(*location_and_scale(out))


class DecoderGaussian(Conditional):
    """p(x|z) = N(x; μ(z), σ²), the event having the data's shape.

    ``scale="learned"`` learns one σ shared by all data (Rybkin et al. 2021), a number fixes it, and
    "net" takes it from the network, whose output then has twice the channels: μ, then σ.

    A learned σ is 1 at first; ``start_from``, which ``fit`` calls, sets it to the residuals' size.
    """

    def __init__(self, net: nn.Module, scale: float | str = "learned") -> None:
        super().__init__(net)
        self.given_scale = scale
        if scale == "learned":
            self.raw_scale = nn.Parameter(torch.zeros(()))
        elif scale != "net" and finite_number('scale, if not "learned" or "net",', scale) == 0:
            raise ValueError("scale must be positive, got 0")

    @property
    def scale(self) -> Tensor | None:
        """The σ shared by all data, ``()``; None where the network gives one to each."""
        if self.given_scale == "learned":
            return torch.exp(_SCALE_SPEED * at_least_float32(self.raw_scale)) + MIN_SCALE
        if self.given_scale == "net":
            return None
        return torch.tensor(float(self.given_scale), dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def start_from(self, residuals: Tensor) -> None:
        """Set an untrained σ to its maximum-likelihood value, the residuals' root mean square."""
        if self.given_scale == "learned" and self.raw_scale.requires_grad and self.raw_scale == 0:
            size = residuals.square().mean().sqrt().clamp(MIN_SCALE)
            self.raw_scale.copy_(size.log() / _SCALE_SPEED)

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, *event)`` → normal with that event; with "net", ``(B, 2C, ...)`` → ``(C, ...)``."""
        scale = self.scale
        if scale is None:
            return normal(*location_and_scale(out))
        return normal(out, scale.to(out))


class DecoderBernoulli(Conditional):
    """p(x|z) for x in {0, 1}: the network gives logits, in the data's shape."""

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, *event)`` → Bernoulli with that event."""
        return independent(Bernoulli(logits=out, validate_args=False))


class PriorGaussian(nn.Module):
    """p(z) = N(0, I) over z of D dimensions, or of any shape; its tensors move with the model."""

    loc: Tensor

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim))

    def forward(self) -> Distribution:
        """() → standard normal with event shape ``(D,)``."""
        loc = at_least_float32(self.loc)
        base = Normal(loc, torch.ones_like(loc), validate_args=False)
        return Independent(base, loc.ndim, validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, ``(B, D)`` → ``(B,)``."""
        log_p: Tensor = self().log_prob(z)
        return log_p


# ----------------------------------------------------------------------------------- model


class Elbo(NamedTuple):
    """The two terms of the evidence lower bound, per data point, in nats."""

    log_likelihood: Tensor
    """log p(x|z) at one z ~ q(z|x), ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) ‖ p(z)), exact or its single-sample estimate, ``(B,)``."""

    @property
    def value(self) -> Tensor:
        """The ELBO itself, ``(B,)``: β plays no part in it."""
        return self.log_likelihood - self.kl

    def objective(self, beta: float) -> Tensor:
        """The mean over the batch of −log p(x|z) + β KL, ``()``; at β = 1 that of −ELBO."""
        return (beta * self.kl - self.log_likelihood).mean()


class VAE(nn.Module):
    """A variational autoencoder: q(z|x), p(x|z) and p(z), each replaceable at any time.

    ``encoder(x)`` and ``decoder(z)`` return a ``Distribution`` with batch shape ``(B,)``,
    ``prior()`` one with batch shape ``()``. Any module that does so works. ``beta`` weights the KL
    term in the loss (β-VAE, Higgins et al. 2017), and nothing else. ``analytic_kl=False`` estimates
    that term from a sample even where PyTorch knows it.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module,
        beta: float = 1.0, *, analytic_kl: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.beta = finite_number("beta", beta)
        self.analytic_kl = analytic_kl

    def forward(self, x: Tensor) -> Elbo:
        """The same as ``elbo``: what ``DistributedDataParallel`` and ``compile()`` call."""
        return self.elbo(x)

    def elbo(self, x: Tensor) -> Elbo:
        """Both terms of the ELBO at one reparametrised sample, for x in model space ``(B, ...)``.

        Raises ``TypeError`` for x that is no tensor of floating-point numbers and for parts that
        give no distribution, ``ValueError`` where shapes or supports do not fit together.
        """
        q = self._posterior(x)
        z = q.rsample()
        p = self.decoder(z)
        with full_precision(x.device):
            return Elbo(log_prob(p, x), self.kl(q, z))

    def kl(self, q: Distribution, z: Tensor) -> Tensor:
        """KL(q ‖ p) in nats, ``(B,)``: exact where PyTorch knows it, else estimated at z ~ q."""
        p = self._prior()
        if p.event_shape != q.event_shape:
            shapes = f"{tuple(p.event_shape)} is not the encoder's {tuple(q.event_shape)}"
            raise ValueError(f"the prior's event shape {shapes}: give both the same shape")
        if self.analytic_kl:
            with contextlib.suppress(NotImplementedError):
                return kl_divergence(q, p)
        return sampled_kl(q, p, z)

    def loss(self, x: Tensor) -> Tensor:
        """The scalar to minimise, for x ``(B, ...)``: the mean of −log p(x|z) + β KL, in nats."""
        return self.elbo(x).objective(self.beta)

    def sample(self, n: int, mean: bool = False) -> Tensor:
        """Draw ``n`` times z ~ p(z), then x ~ p(x|z), or with ``mean`` its mean, ``(n, ...)``."""
        with evaluating(self):
            p = self.decoder(self._prior().sample(torch.Size((n,))))
            return mean_of(p) if mean else p.sample()

    def reconstruct(self, x: Tensor, mean: bool = True) -> Tensor:
        """Encode and decode: with ``mean``, the means of q and p; else a sample of each."""
        with evaluating(self):
            q = self._posterior(x)
            p = self.decoder(mean_of(q) if mean else q.sample())
            return mean_of(p) if mean else p.sample()

    def _posterior(self, x: Tensor) -> Distribution:
        """q(z|x), if it is one that gradients can pass, for each point."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a tensor of floats in the model's space, got {got}")
        q = _distribution(self.encoder(x), "encoder", x.shape[:1])
        if not q.has_rsample:
            raise TypeError(f"the encoder's {_name(q)} has no rsample(): no gradient can reach it")
        return q

    def _prior(self) -> Distribution:
        return _distribution(self.prior(), "prior", torch.Size())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, within it; afterwards every module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:  # not by eval(), which networks made by torch.export refuse
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


# -------------------------------------------------------------------------------- numerics

# The least scale a network can ask for is about the standard deviation of the noise that makes
# 8-bit levels continuous, (1/256)/√12 ≈ 0.0011: below it a density would describe that noise.
MIN_SCALE = 1e-3

# Adam moves any parameter by about the learning rate per step. That is too slow for σ, so what is
# learned is log σ / 20: log σ moves 20 times as fast.
_SCALE_SPEED = 20


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float; ``ValueError`` unless it is a finite number of at least 0."""
    number: Any = value.item() if hasattr(value, "item") else value  # of NumPy or PyTorch
    if type(number) not in (int, float) or not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return float(number)


def at_least_float32(out: Any) -> Any:
    """Floats narrower than float32, alone or in a tuple, as float32; the rest as it is."""
    if isinstance(out, tuple):
        return tuple(map(at_least_float32, out))
    narrow = isinstance(out, Tensor) and out.is_floating_point() and out.dtype.itemsize < 4
    return out.float() if narrow else out


def full_precision(device: torch.device) -> Any:
    """Switch autocast off within it, if the device has any."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def positive(raw: Tensor) -> Tensor:
    """Any real number → a scale of at least ``MIN_SCALE``, by softplus; the same shape."""
    return F.softplus(at_least_float32(raw)) + MIN_SCALE


def location_and_scale(out: Tensor) -> tuple[Tensor, Tensor]:
    """A network's output ``(B, 2C, ...)`` → location and scale, ``(B, C, ...)`` each."""
    if not isinstance(out, Tensor) or out.ndim < 2 or out.shape[1] % 2:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"the network must give location and scale, (B, 2C, ...), got {got}")
    loc, raw_scale = out.chunk(2, dim=1)
    return loc, positive(raw_scale)


def independent(base: Distribution) -> Distribution:
    """The same distribution with every dimension after the batch in one event."""
    return Independent(base, len(base.batch_shape) - 1, validate_args=False)


def normal(loc: Tensor, scale: Tensor) -> Distribution:
    """N(loc, diag scale²): batch shape ``(B,)``, and the event is the rest of ``loc``'s shape."""
    if scale.ndim == 0 and loc.ndim:
        return _IsotropicNormal(loc, scale)
    return independent(Normal(loc, scale, validate_args=False))


class _IsotropicNormal(Independent):  # type: ignore[type-arg]  # not generic in PyTorch 2.4
    """N(loc, σ² I): with one σ, squared errors are summed before anything else is done to them."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), loc.ndim - 1, validate_args=False)
        self.scale = scale

    def log_prob(self, value: Tensor) -> Tensor:
        error, event = value - self.base_dist.loc, self.reinterpreted_batch_ndims
        squares = error.square().flatten(-event).sum(-1) if event else error.square()
        log_unit = 0.5 * math.log(2 * math.pi) + self.scale.log()
        return -0.5 * squares / self.scale**2 - self.event_shape.numel() * log_unit


def log_prob(p: Distribution, value: Tensor) -> Tensor:
    """log p(value) in nats, ``(B,)``; ``ValueError`` where the value cannot be one of p."""
    _distribution(p, "decoder", value.shape[:1])
    if p.event_shape != value.shape[1:]:
        described = f"the decoder describes events of shape {tuple(p.event_shape)}"
        raise ValueError(f"{described}, the data have {tuple(value.shape[1:])}")
    support = support_of(p)
    if support in (None, constraints.real) or value.is_meta:
        return p.log_prob(value)
    if torch.compiler.is_compiling():  # which cannot branch on data: faults become NaN
        return p.log_prob(torch.where(support.check(value), value, math.nan))
    if support.check(value).all():
        return p.log_prob(value)
    kind = "takes only 0 and 1: binarise" if support is constraints.boolean else "does not take"
    values = f"data with values from {value.min():g} to {value.max():g}"
    raise ValueError(f"the decoder's {_name(p)} {kind} {values}")


def support_of(p: Distribution) -> Any:
    """What one number drawn from p can be, or None where p does not say."""
    with contextlib.suppress(NotImplementedError):
        support: Any = p.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return support
    return None


def mean_of(p: Distribution) -> Tensor:
    """The mean of p; ``ValueError`` where it has none."""
    with contextlib.suppress(NotImplementedError):
        mean: Tensor = p.mean
        if mean.is_meta or not mean.isnan().any():
            return mean
    raise ValueError(f"a {_name(p)} has no mean here, or it is NaN: mean=False draws a sample")


def sampled_kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """log q(z) − log p(z) in nats, ``(B,)``: an unbiased estimate of KL(q ‖ p) at z ~ q.

    Where q and p apply the same transform to simpler distributions, those are compared: the KL is
    the same, and no sample is rounded to an end of the support. Raises ``ValueError`` for another
    transformed q whose samples are so rounded, and for a discrete q.
    """
    inner, other, support = _inner(q), _inner(p), support_of(q)
    both = isinstance(inner, Transformed) and isinstance(other, Transformed)
    if both and inner.transforms == other.transforms:
        kl = sampled_kl(inner.base_dist, other.base_dist, inner.base_dist.rsample())
        return kl.reshape(kl.shape[0], -1).sum(1)
    if support is not None and support.is_discrete:
        raise ValueError(
            f"samples of the encoder's {_name(q)}, which is discrete, carry no gradient of log q: "
            "only the exact KL can be trained, with a prior of the same kind and analytic_kl=True"
        )
    low, high = (getattr(support, name, math.nan) for name in ("lower_bound", "upper_bound"))
    lowest, highest = low + torch.finfo(z.dtype).tiny, high - 16 * torch.finfo(z.dtype).eps
    if isinstance(inner, Transformed) and ((z <= lowest) | (z >= highest)).any():
        rounded = f"samples of the encoder's {_name(q)} are rounded to an end of its support"
        raise ValueError(f"{rounded}, where log q is wrong: give a prior by the same transform")
    if isinstance(q, Independent) and type(inner) is Normal:
        # The gradient flows through z only. The other part, the score, has mean zero, and without
        # it the noise vanishes as q approaches the posterior (Roeder et al. 2017).
        still = Normal(inner.loc.detach(), inner.scale.detach(), validate_args=False)
        q = Independent(still, q.reinterpreted_batch_ndims, validate_args=False)
    return q.log_prob(z) - p.log_prob(z)


def _inner(p: Any) -> Any:
    return _inner(p.base_dist) if isinstance(p, Independent) else p


def _name(p: Distribution) -> str:
    return type(_inner(p)).__name__.strip("_")


def _distribution(p: Any, part: str, batch: torch.Size) -> Distribution:
    """What a part gave, if it is a distribution of this batch shape; else an error in words."""
    if not isinstance(p, Distribution):
        got = type(p).__name__
        raise TypeError(f"the {part} must give a torch.distributions.Distribution, got {got}")
    if p.batch_shape != batch:
        got = f"{tuple(p.batch_shape)} with event shape {tuple(p.event_shape)}"
        raise ValueError(f"the {part} must give batch shape {tuple(batch)}, got {got}")
    return p
