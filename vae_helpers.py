"""Variational autoencoders from exchangeable parts.

A conditional distribution is a network plus a rule that turns the network's output into a
``torch.distributions.Distribution``. An encoder q(z|x) is one, a decoder p(x|z) is one, and a
prior p(z) is one without a condition. A VAE only composes the three::

    raw batch ──transform──▶ x ──encoder──▶ q(z|x) ──rsample──▶ z ──decoder──▶ p(x|z)
                                      └───── KL(q‖p) ◀──── prior p(z)   └─ log p(x|z)
                                                 └──────── ELBO per point ──────┘

This file reads from top to bottom in that order:

==================  ====================================================================
conditional         Conditional: EncoderGaussian, DecoderGaussian, DecoderBernoulli,
                    DecoderContinuousBernoulli, DecoderCategorical
priors              PriorGaussian, PriorMixture, PriorAutoregressive
model               VAE (elbo, loss, sample, reconstruct, log_marginal), Elbo, looking_at
training            fit → History, train_epoch, networks_in, wide_dtype; rates are in vae_steps
evaluation          evaluate
==================  ====================================================================

Every log-probability, KL and ELBO is in nats, summed over the event, one number per data point.
Shapes: B data points in a batch, N in a data set, D latent dimensions. Nothing happens at import.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    kl_divergence,
)
from torch.utils.data import Dataset

from vae_batches import Batch, Batches, Transform, as_numbers
from vae_checkpoint import Checkpoint, describe, digest
from vae_distributions import (
    MIN_SCALE,
    Autoregressive,
    halves,
    independent,
    mixture,
    normal,
    path_log_prob,
    positive,
    widened,
)
from vae_history import History
from vae_pixels import ContinuousBernoulli, SharedHistograms, bernoulli
from vae_runtime import (
    Precision,
    agreed,
    distributed,
    gathered,
    network_dtype,
    pick_device,
    process,
    progress_bar,
    seeded,
    share_buffers,
    whole_number,
)
from vae_steps import SCHEDULES, bound_gradient, checked_settings, default_batch_size
from vae_support import (
    checked_log_prob,
    checked_posterior,
    checked_prior,
    fixed_scale,
    refuse_not_finite,
    remedy,
)

__all__ = [
    "VAE",
    "Conditional",
    "DecoderBernoulli",
    "DecoderCategorical",
    "DecoderContinuousBernoulli",
    "DecoderGaussian",
    "Elbo",
    "EncoderGaussian",
    "History",
    "PriorAutoregressive",
    "PriorGaussian",
    "PriorMixture",
    "evaluate",
    "fit",
    "looking_at",
    "networks_in",
    "train_epoch",
    "wide_dtype",
]

# ------------------------------------------------------------------ conditional distributions


class Conditional(nn.Module):
    """A network plus a rule that turns its output into a distribution (abstract).

    A subclass is the rule, ``distribution``. Within ``networks_in`` the network, and nothing else,
    computes in another precision. Before the rule sees its output, that becomes float32, or stays
    float64.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.precision: torch.dtype | None = None

    def distribution(self, out: Tensor) -> Distribution:
        """The distribution that the network's output ``(B, ...)`` stands for."""
        raise NotImplementedError

    def forward(self, condition: Tensor) -> Distribution:
        """Condition ``(B, ...)`` → distribution with batch shape ``(B,)``."""
        own = next(self.net.parameters(), condition)
        if condition.is_floating_point():
            condition = condition.to(own.dtype)
        with _autocast(condition.device, self.precision):
            out = self.net(condition)
        try:
            return self.distribution(widened(out))
        except (AttributeError, TypeError) as error:
            if isinstance(out, Tensor):
                raise
            raise TypeError(
                f"the network gave a {type(out).__name__}, not one tensor: join its heads by "
                "torch.cat(heads, dim=1), or write a subclass of Conditional whose rule takes them"
            ) from error

    def log_prob(self, value: Tensor, condition: Tensor) -> Tensor:
        """log p(value | condition) in nats, ``(B,)``.

        Raises ``ValueError`` outside the support, and ``FloatingPointError`` for NaN or infinity
        unless the support is the real line, where they give NaN or −∞.
        """
        return checked_log_prob(self(condition), value)


class EncoderGaussian(Conditional):
    """q(z|x) = N(z; μ(x), diag σ²(x)), the variational posterior (Kingma & Welling 2014).

    ``net`` maps x to w, ``(B, 2D)``: the first half is μ, the second gives σ by softplus.
    """

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, 2D)`` → normal with event shape ``(D,)``."""
        loc, raw_scale = halves(out)
        return normal(loc, positive(raw_scale))


# Adam moves any parameter by about the learning rate per step, which is too slow for parameters
# whose size the data dictate: log σ and the logits of rare grey levels take longer steps.
_SCALE_GAIN = 20
_HISTOGRAM_GAIN = 10


class DecoderGaussian(Conditional):
    """p(x|z) = N(x; μ(z), σ²), the event having the data's shape.

    ``scale=None`` learns one σ shared by all (Rybkin et al. 2021), a float fixes it, and "net"
    takes it from the network, whose output then has twice the channels: μ, then σ; that needs
    standardised data.

    The likelihood is greatest where σ² is the mean squared residual. So ``fit`` lets an untrained σ
    begin at the residuals of the untrained networks, and from there log σ follows them in long
    steps as they shrink. In a loop of one's own, ``start_from`` does that; else σ
    begins at 1, right for standardised data.
    """

    fixed_scale: Tensor | None

    def __init__(self, net: nn.Module, scale: float | Literal["net"] | None = None) -> None:
        super().__init__(net)
        self.given_scale = scale
        # It holds log σ / 20: where Adam moves it by the rate, log σ moves by 20 rates.
        self.log_scale = nn.Parameter(torch.zeros(())) if scale is None else None
        self.register_buffer("fixed_scale", fixed_scale(scale))

    def extra_repr(self) -> str:  # a checkpoint of another scale is recognised by it
        """The scale as it was asked for."""
        return f"scale={self.given_scale!r}"

    @property
    def scale(self) -> Tensor | None:
        """The σ shared by all data points, ``()``; None with ``scale="net"``."""
        if self.log_scale is None:
            return self.fixed_scale
        return (_SCALE_GAIN * widened(self.log_scale)).exp() + MIN_SCALE

    @torch.no_grad()
    def start_from(self, residuals: Tensor) -> None:
        """Let a learned σ that nobody has moved yet begin at the root mean square of residuals."""
        learned = self.log_scale
        if learned is not None and learned.requires_grad and learned == 0:
            size = residuals.square().mean().sqrt().clamp(MIN_SCALE)
            learned.copy_(size.log() / _SCALE_GAIN)

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, *event)`` → normal with that event; with "net", ``(B, 2C, ...)`` → ``(C, ...)``."""
        scale = self.scale
        if scale is not None:
            return normal(out, scale)
        loc, raw_scale = halves(out)
        return normal(loc, positive(raw_scale))


class DecoderBernoulli(Conditional):
    """p(x|z) for x in {0, 1}: the network gives logits, in the data's shape."""

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, *event)`` → Bernoulli with that event."""
        return bernoulli(out)


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

    def __init__(self, net: nn.Module, components: int = 4) -> None:
        super().__init__(net)
        components = whole_number("components", components)
        grid = torch.linspace(0, 1, 256)
        # They begin as bumps side by side, narrow ones at black and at white, where pixels gather.
        centres = torch.linspace(0, 1, components).unsqueeze(1)
        widths = torch.full_like(centres, 1 / components)
        if components > 2:
            widths[[0, -1]] = 1 / 256
        self.histograms = nn.Parameter(-(grid - centres).abs() / widths / _HISTOGRAM_GAIN)

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, K·C, ...)`` → distribution with event shape ``(C, ...)``."""
        components = len(self.histograms)
        if out.ndim < 2 or out.shape[1] % components:
            raise ValueError(
                f"{components} components need (B, {components}·C, ...), so many times the "
                f"channels; got {tuple(out.shape)}"
            )
        logits = out.unflatten(1, (components, -1)).movedim(1, 0)
        return independent(SharedHistograms(logits, _HISTOGRAM_GAIN * widened(self.histograms)))


# ---------------------------------------------------------------------------------- priors


class _Prior(nn.Module):
    """Called without arguments, a prior gives its distribution (abstract)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, ``(B, D)`` → ``(B,)``."""
        log_p: Tensor = self().log_prob(z)
        return log_p


class PriorGaussian(_Prior):
    """p(z) = N(0, I); its tensors are buffers, so that it moves with the model."""

    loc: Tensor
    unit: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        dim = whole_number("dim", dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("unit", torch.ones(dim))

    def forward(self) -> Distribution:
        """() → standard normal with event shape ``(D,)``."""
        base = Normal(widened(self.loc), widened(self.unit), validate_args=False)
        return Independent(base, 1, validate_args=False)


class PriorMixture(_Prior):
    """p(z) = Σₖ πₖ N(z; μₖ, diag σₖ²), all of it learned."""

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        shape = (whole_number("components", components), whole_number("dim", dim))
        self.logits = nn.Parameter(torch.zeros(shape[0]))
        self.loc = nn.Parameter(torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Distribution:
        """() → mixture with event shape ``(D,)``."""
        return mixture(self.logits, normal(self.loc, positive(self.raw_scale)))


class PriorAutoregressive(_Prior):
    """p(z) = Π p(z_d | z_1 … z_d−1), each factor a mixture of Gaussians, all of it learned.

    One masked network gives the parameters of all factors at once (MADE, Germain et al. 2015),
    so a log-probability costs one pass; a sample costs D.
    """

    first_mask: Tensor
    last_mask: Tensor

    def __init__(self, dim: int, hidden: int = 256, components: int = 4) -> None:
        super().__init__()
        self.dim = dim = whole_number("dim", dim)
        self.components = components = whole_number("components", components)
        hidden = whole_number("hidden", hidden)
        outputs = dim * 3 * components
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
        parts = widened(out).unflatten(-1, (self.dim, 3, self.components))
        logits, loc, raw_scale = parts.unbind(-2)
        return mixture(logits, Normal(loc, positive(raw_scale), validate_args=False))

    def forward(self) -> Distribution:
        """() → distribution with event shape ``(D,)``."""
        return Autoregressive(self.factors, self.dim, like=widened(self.first.weight))


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


class VAE(nn.Module):
    """A variational autoencoder: q(z|x), p(x|z) and p(z), each to be exchanged at any time.

    ``encoder(x)`` and ``decoder(z)`` return a ``Distribution`` with batch shape ``(B,)``,
    ``prior()`` one with batch shape ``()``. Any module that does so works. ``beta`` weights the KL
    term in the loss (β-VAE, Higgins et al. 2017), and nothing else.

    The KL term is exact where PyTorch knows the pair of distributions. Elsewhere, and with
    ``analytic_kl=False``, it is log q(z|x) − log p(z) at the sample. Its gradient reaches q's
    parameters through z alone (Roeder et al. 2017), unless the support of q depends on them: that
    is unbiased, and the noise goes as q nears the posterior.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        beta: float = 1.0,
        *,
        analytic_kl: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.beta = beta
        self.analytic_kl = analytic_kl

    @property
    def beta(self) -> float:
        """The weight of the KL term in the loss, at least 0."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ValueError(f"beta must be a finite number of at least 0, got {value!r}")
        self._beta = float(value)

    def forward(self, x: Tensor) -> Elbo:
        """The same as ``elbo``: what a wrapper such as ``DistributedDataParallel`` calls.

        After ``compile()`` this is the compiled one. Under a Bernoulli it marks grey pixels as NaN,
        and ``fit`` then calls ``elbo``, which raises the usual error.
        """
        return self.elbo(x)

    def elbo(self, x: Tensor) -> Elbo:
        """Both terms of the ELBO at one reparametrised sample, for x in model space ``(B, ...)``.

        Raises ``TypeError`` for data that are no floating-point numbers and for parts that give no
        distribution, ``ValueError`` where shapes do not fit together or data lie outside the
        decoder's support, ``FloatingPointError`` where they are NaN under a bounded support.
        """
        x = self._as_input(x)
        q = checked_posterior(self.encoder(x), len(x))
        z = q.rsample()
        return Elbo(checked_log_prob(self.decoder(z), x), self.kl(q, z))

    def kl(self, q: Distribution, z: Tensor) -> Tensor:
        """KL(q ‖ p) in nats, ``(B,)``: exact where PyTorch knows it, else estimated at z ~ q."""
        p = checked_prior(self.prior(), q)
        if self.analytic_kl:
            with contextlib.suppress(NotImplementedError):
                return kl_divergence(q, p)
        return path_log_prob(q, z) - p.log_prob(z)

    def objective(self, elbo: Elbo) -> Tensor:
        """The mean over the batch of −log p(x|z) + β KL, in nats, ``()``."""
        return (self.beta * elbo.kl - elbo.log_likelihood).mean()

    def loss(self, x: Tensor) -> Tensor:
        """The scalar that ``fit`` minimises: ``objective`` of the ELBO of x ``(B, ...)``."""
        return self.objective(self.elbo(x))

    def sample(self, n: int, mean: bool = False) -> Tensor:
        """Draw ``n`` times z ~ p(z), then x ~ p(x|z), or with ``mean`` its mean, ``(n, ...)``."""
        with looking_at(self):
            p = self.decoder(self.prior().sample((whole_number("n", n),)))
            return p.mean if mean else p.sample()

    def reconstruct(self, x: Tensor, mean: bool = True) -> Tensor:
        """Encode and decode: with ``mean``, the means of q and p; else a sample of each."""
        x = self._as_input(x)
        refuse_not_finite(x)
        with looking_at(self):
            q = checked_posterior(self.encoder(x), len(x))
            p = self.decoder(q.mean if mean else q.sample())
            return p.mean if mean else p.sample()

    def log_marginal(
        self, x: Tensor, n_samples: int, chunk: int = 2048, precision: Precision = "float32"
    ) -> Tensor:
        """Importance-weighted estimate of log p(x) in nats, ``(B,)`` (Burda et al. 2016, eq. 8).

        log 1/K Σ p(x|zₖ) p(zₖ) / q(zₖ|x) over K = ``n_samples`` draws from q: in expectation a
        lower bound that rises with K, from the ELBO at K = 1. No more than ``chunk`` latent
        points are decoded at once, so memory does not depend on K. Errors as in ``elbo``, and
        ``FloatingPointError`` for data or weights that are not finite.
        """
        x = self._as_input(x)
        n_samples, chunk = whole_number("n_samples", n_samples), whole_number("chunk", chunk)
        refuse_not_finite(x)
        with looking_at(self), networks_in(self, precision):
            parts = [self._log_marginal(part, n_samples, chunk) for part in x.split(chunk)]
        log_p = torch.cat(parts)
        if not log_p.is_meta and log_p.isnan().any():
            raise FloatingPointError(
                f"log p(x) is no number for {int(log_p.isnan().sum())} of {len(x)} data points: "
                "the weights of the model are not finite, or far too large"
            )
        return log_p

    def _log_marginal(self, x: Tensor, n_samples: int, chunk: int) -> Tensor:
        q = checked_posterior(self.encoder(x), len(x))
        prior = checked_prior(self.prior(), q)
        total = x.new_full((len(x),), -math.inf)
        step = min(n_samples, max(1, chunk // max(1, len(x))))
        repeated = x.expand(step, *x.shape).flatten(0, 1)
        for start in range(0, n_samples, step):
            z = q.sample((min(step, n_samples - start),))  # (S, B, D)
            p, target = self.decoder(z.flatten(0, 1)), repeated[: len(z) * len(x)]
            # The data stay the same, so one check of them is enough.
            log_likelihood = p.log_prob(target) if start else checked_log_prob(p, target)
            log_weight = log_likelihood.view(z.shape[:2]) + prior.log_prob(z) - q.log_prob(z)
            total = torch.logaddexp(total, log_weight.logsumexp(0))
        return total - math.log(n_samples)

    def _as_input(self, x: Any) -> Tensor:
        """x on the model's device, in its dtype, or in float32 where that is narrower."""
        x = as_numbers(x)
        if not x.is_floating_point():
            with looking_at(self):
                support = self.decoder(self.prior().sample((1,))).support
            raise TypeError(f"data of {x.dtype} are not in the model's space: {remedy(x, support)}")
        device = next((weight.device for weight in self.parameters()), x.device)
        return x.to(device, wide_dtype(self))


@contextlib.contextmanager
def looking_at(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode, and no gradients are kept.

    Afterwards each of its modules has its old mode again: looking changes nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


# -------------------------------------------------------------------------------- training


def fit(
    model: VAE,
    train: Tensor | Dataset[Any],
    test: Tensor | Dataset[Any],
    *,
    epochs: int,
    batch_size: int | None = None,
    lr: float = 4e-3,
    schedule: Literal["one-cycle", "constant"] = "one-cycle",
    kl_warmup: int = 0,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    keep_points: int | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[History], Any] = True,
) -> History:
    """Train ``model`` on its loss with Adam; return every data point's −ELBO in every epoch.

    ``train`` and ``test`` are tensors, arrays, DataFrames of numbers or map-style datasets; of an
    item ``(x, y)`` only x is used. ``transform`` takes a batch into the model's space. Under
    ``torch.distributed`` each process trains on its share of every batch.

    batch_size     by default 32 to 256, growing with the data set (``default_batch_size``)
    lr, schedule   peak learning rate; "one-cycle" warms up to it and anneals to zero
    kl_warmup      epochs over which β rises from 0 to the model's own; the curve is at β = 1
    device         by default CUDA, then MPS, then CPU; the model stays there
    precision      of the networks alone (``networks_in``): "auto" is bfloat16 where that is fast
    seed           of order, noise and transform; the global generators are left as they were
    keep_points    how many points of each split ``History`` keeps, all by default
    workers        processes that load a dataset which is no tensor or array
    checkpoint     file of the run so far; the same call continues from it, bit for bit
    progress       a bar, or a function of the history each epoch; fit ends if it returns False

    Ctrl-C returns the history so far. Raises ``ValueError`` for settings, data or a checkpoint that
    do not fit, ``TypeError`` for what is no data set and for integers without a transform,
    ``FloatingPointError`` for a term that is not finite, ``OSError`` for a full disk and the like.
    """
    settings = checked_settings(
        epochs=epochs, batch_size=batch_size, lr=lr, schedule=schedule, kl_warmup=kl_warmup,
        precision=precision, seed=seed, keep_points=keep_points, transform=describe(transform),
    )  # fmt: skip
    device, dtype = pick_device(device), wide_dtype(model)
    training = Batches(train, "train", device, dtype, transform, workers)
    held_out = Batches(test, "test", device, dtype, transform, workers)
    settings["batch_size"] = settings["batch_size"] or default_batch_size(len(training))
    run = _Run(model.to(device), training, held_out, settings, checkpoint)
    history = run.resume()
    with networks_in(model, precision), closing(training), closing(held_out):
        run.complete(history, progress)
    model.eval()
    _warn_about(history, model, run.steps * len(history))
    return history


def train_epoch(
    loss_and_elbo: Callable[[Batch], tuple[Tensor, Elbo]],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    rates: Iterable[float],
) -> Tensor:
    """Train on every batch once; return each point's −ELBO in nats, in the order of the batches.

    ``loss_and_elbo`` gives the loss of a batch, and the ELBO of each of its points. The optimizer
    has one group of parameters.
    """
    nats = []
    for batch, rate in zip(batches, rates, strict=True):
        loss, elbo = loss_and_elbo(batch)
        optimizer.zero_grad()
        loss.backward()
        bound_gradient(optimizer)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        nats.append(-elbo.value.detach())
    return torch.cat(nats)


class _Run:
    """What ``fit`` carries from epoch to epoch.

    Learning rate, order and noise follow from the settings and the number of the epoch, so a
    checkpoint keeps neither a schedule's state nor a generator's.
    """

    def __init__(
        self,
        model: VAE,
        training: Batches,
        held_out: Batches,
        settings: dict[str, Any],
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.model, self.training, self.held_out = model, training, held_out
        self.settings = settings | {
            "train": training.fingerprint(), "test": held_out.fingerprint(),
            "beta": model.beta, "analytic_kl": model.analytic_kl, "model": repr(model),
            "parameters": str({name: tuple(t.shape) for name, t in model.state_dict().items()}),
        }  # fmt: skip
        self.checkpoint = Checkpoint(checkpoint, self.settings)
        device = training.device
        # With β₂ = 0.999 a weight whose gradients were small for long takes a step of three rates
        # once they grow, which at times throws a model off for good; with 0.99 a step of one.
        self.optimizer = torch.optim.Adam(
            model.parameters(), settings["lr"], (0.9, 0.99), fused=device.type in ("cpu", "cuda")
        )
        self.loss_and_elbo = distributed(_LossAndElbo(model))
        self.steps = len(training.indices(settings["batch_size"], (0,)))
        total = settings["epochs"] * self.steps
        self.rates = settings["lr"] * SCHEDULES[settings["schedule"]](np.arange(total) / total)

    def complete(self, history: History, progress: bool | Callable[[History], Any]) -> None:
        """Add what the history lacks, until ``progress`` or Ctrl-C ends it."""
        epochs = self.settings["epochs"]
        with progress_bar(progress is True, len(self.rates), len(history) * self.steps) as bar:
            try:
                if not len(history.test):
                    self.begin(history)
                    self.save(history)
                while len(history) < epochs:
                    self.add_epoch(history, bar)
                    self.save(history)
                    wish = progress(history) if callable(progress) and not process()[0] else None
                    if agreed(isinstance(wish, (bool, np.bool_)) and not wish):
                        break
            except KeyboardInterrupt:
                print(f"interrupted: the history holds {len(history)} of {epochs} epochs")

    def begin(self, history: History) -> None:
        """Let a learned σ begin at the residuals, note the first weights, and evaluate."""
        start_from = getattr(self.model.decoder, "start_from", None)
        if start_from is not None:
            with torch.no_grad():
                x = self.training.first(_EVALUATION_BATCH, self.settings["seed"])
            if x.is_floating_point() and x.isfinite().all():  # else the evaluation below says why
                drawn = self.model.reconstruct(x)
                if drawn.shape == x.shape:
                    start_from(x - drawn)
        weights = [digest(value) for value in self.model.state_dict().values()]
        history.settings["weights"] = " ".join(weights)
        history.add_test(self.test("test set, before training"))

    def add_epoch(self, history: History, bar: Any) -> None:
        """Train for an epoch, evaluate, and record both."""
        start, epoch = time.perf_counter(), len(history) + 1
        rates = self.rates[self.steps * (epoch - 1) : self.steps * epoch]
        before = self.optimizer.param_groups[0].get("bounded", 0)
        train = self.train(epoch, rates, bar)
        bounded = self.optimizer.param_groups[0].get("bounded", 0) - before
        test = self.test(f"test set, epoch {epoch}")
        seconds = time.perf_counter() - start
        history.add_epoch(train, test, seconds, lr=float(rates.mean()), bounded=bounded)
        bar.set_postfix_str(history.last())

    def train(self, epoch: int, rates: np.ndarray, bar: Any) -> Tensor:
        """−ELBO of every training point in this epoch, ``(N_train,)``, in nats."""
        seed, batch_size = self.settings["seed"], self.settings["batch_size"]
        warm_up = self.settings["kl_warmup"] * self.steps
        beta, order = self.model.beta, []

        def step(batch: Batch) -> tuple[Tensor, Elbo]:
            order.append(batch.rows)
            if warm_up:
                done = (epoch - 1) * self.steps + len(order)
                self.model.beta = beta * min(1.0, done / warm_up)
            with _named(f"train, epoch {epoch}, step {len(order)}"):
                loss, elbo = self.loss_and_elbo(batch.x)
                _refuse_bad_terms(self.model, batch.x, loss, elbo)
            bar.update()
            return batch.share * loss, elbo

        self.model.train()
        try:
            indices = self.training.indices(batch_size, (seed, epoch))
            # Closed at once: a traceback that is kept would keep the workers alive.
            with (
                seeded(seed, epoch, 1 + process()[0]),
                closing(self.training.load(indices)) as batches,
            ):
                nats = train_epoch(step, self.optimizer, batches, rates.tolist())
        finally:
            self.model.beta = beta
        row = torch.zeros(len(self.training), device=nats.device)
        row[torch.cat(order)] = nats.float()
        return gathered(row)

    def test(self, where: str) -> Tensor:
        """−ELBO of every test point, ``(N_test,)``, in nats."""
        batch = min(_EVALUATION_BATCH, 8 * self.settings["batch_size"])
        return -_evaluate(self.model, self.held_out, batch, self.settings["seed"], where).value

    def save(self, history: History) -> None:
        """Write the checkpoint, if one was asked for."""
        arrays = {
            name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in history.state().items()
        }
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        self.checkpoint.write({"model": model, "optimizer": optimizer, "history": arrays})

    def resume(self) -> History:
        """The history so far, model and optimizer being put into the state that belongs to it."""
        saved = self.checkpoint.read()
        if saved is None:
            points = len(self.training), len(self.held_out)
            return History(dict(self.settings), *points, self.settings["keep_points"])
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return History.from_state(saved["history"])


class _LossAndElbo(nn.Module):
    """The loss of a batch, and the ELBO of each point: a module, so that it can be distributed."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Elbo]:
        if getattr(self.model.loss, "__func__", None) is VAE.loss:  # not overridden
            elbo = self.model(x)  # compiled, where the model is
            return self.model.objective(elbo), elbo
        loss = self.model.loss(x)
        if loss.shape != ():
            raise ValueError(
                f"loss(x) must return one number, the mean over the batch; got {tuple(loss.shape)}"
            )
        with looking_at(self.model):  # a loss of one's own gives no ELBO, which the curve shows
            return loss, self.model(x)


@contextlib.contextmanager
def networks_in(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Within it the networks of every ``Conditional`` in the model compute in ``precision``.

    "bfloat16" means autocast; "auto" takes it where the model's device is fast at it. Losses,
    log-probabilities and KL stay in float32, or float64 where the model is.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = network_dtype(precision, device)
    parts = [module for module in model.modules() if isinstance(module, Conditional)]
    before = [part.precision for part in parts]
    try:
        for part in parts:
            part.precision = dtype
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.precision = own


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place in front of an error's words."""
    try:
        yield
    except (FloatingPointError, TypeError, ValueError) as error:
        kinds = (FloatingPointError, TypeError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{where}: {error}") from error


def _refuse_bad_terms(model: VAE, x: Tensor, loss: Tensor, elbo: Elbo) -> None:
    """Raise an error that names the term which is not finite, or its cause."""
    # One look at the sum of all: it is finite only if every term of every point is.
    if math.isfinite(elbo.value.detach().sum() + loss.detach()):
        return
    refuse_not_finite(x)
    for term, values in (("log_likelihood", elbo.log_likelihood), ("kl", elbo.kl)):
        bad = int((~values.isfinite()).sum())
        if bad:
            with torch.no_grad():  # what a compiled model says with NaN, this says in words
                model.elbo(x)
            raise FloatingPointError(f"{term} is not finite for {bad} of {len(x)} data points")
    raise FloatingPointError(f"the loss is {loss.item()}, while the ELBO is finite")


def _warn_about(history: History, model: VAE, steps: int) -> None:
    """Warn of what the numbers of a run of so many steps alone would not tell."""
    bounded = int(history.bounded.sum())
    if bounded > max(3, steps / 4):  # on small batches of uneven data, some are ordinary
        warnings.warn(
            f"the gradient was more than three times as long as usual, or not finite, in {bounded} "
            f"of {steps} steps, and was bounded there: a lower lr may end better",
            stacklevel=3,
        )
    scale = getattr(model.decoder, "log_scale", None)
    if scale is not None and float(model.decoder.scale.detach()) < 1.2 * MIN_SCALE:  # type: ignore[operator]
        warnings.warn(
            f"the decoder's σ has reached its floor, {MIN_SCALE}: at this scale the data have next "
            "to no noise, and the −ELBO says little. Fix σ (scale=0.01), or multiply data of small "
            "numbers by a constant",
            stacklevel=3,
        )


def wide_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of data and log-probabilities: the weights', or float32 where that is narrower."""
    own = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.promote_types(own, torch.float32)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


# ------------------------------------------------------------------------------ evaluation

# Large enough for full speed, small enough to stay in the caches of a CPU.
_EVALUATION_BATCH = 1000


def evaluate(
    model: VAE,
    data: Tensor | Dataset[Any],
    *,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    batch_size: int = _EVALUATION_BATCH,
    seed: int = 0,
) -> Elbo:
    """Both terms of the ELBO for every point of ``data``, ``(N,)``, as ``fit`` evaluates them.

    The model is moved to the device; ``batch_size`` points are in memory at a time. Errors as in
    ``fit``.
    """
    device, batch_size = pick_device(device), whole_number("batch_size", batch_size)
    source = Batches(data, "data", device, wide_dtype(model), transform)
    with networks_in(model.to(device), precision):
        return _evaluate(model, source, batch_size, seed, "evaluation")


def _evaluate(model: VAE, source: Batches, batch_size: int, seed: int, where: str) -> Elbo:
    terms = torch.zeros(2, len(source), dtype=source.dtype, device=source.device)
    share_buffers(model)
    rank = process()[0]
    batches = source.load(source.indices(batch_size))
    with looking_at(model), seeded(seed, 0, 1 + rank), _named(where), closing(batches):
        for batch in batches:
            elbo = model(batch.x)
            _refuse_bad_terms(model, batch.x, torch.zeros(()), elbo)
            terms[:, batch.rows] = torch.stack(elbo).to(source.dtype)
    return Elbo(*gathered(terms))
