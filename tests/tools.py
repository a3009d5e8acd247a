"""What several test files need: small models, an exactly solvable one, and small tools."""

import math
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

import vae_helpers as lab
from vae_helpers import MIN_SCALE
from vae_kit.history import History
from vae_kit.networks import mlp
from vae_kit.settings import Settings
from vae_kit.training import fit

ROOT = Path(__file__).resolve().parent.parent


def within(estimates, truth, errors=5.0):
    """Whether the mean of independent estimates (first axis) agrees with the truth."""
    estimates = np.asarray(estimates)
    error = estimates.std(0, ddof=1) / math.sqrt(len(estimates))
    return np.all(np.abs(estimates.mean(0) - np.asarray(truth)) <= errors * error + 1e-12)


def scale_of(raw):
    """What a network's output for a scale stands for, in float64."""
    return np.logaddexp(0, raw) + 1e-3


def generator_states():
    """Where all generators stand that a library might disturb."""
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


class FullCovariance(nn.Module):
    """An encoder that is none of the lab's: q(z|x) with a full covariance matrix."""

    def __init__(self, net, dim):
        super().__init__()
        self.net, self.dim = net, dim

    def forward(self, x):
        loc, raw = self.net(x).split([self.dim, self.dim**2], dim=1)
        raw = raw.view(-1, self.dim, self.dim)
        diagonal = F.softplus(raw.diagonal(dim1=1, dim2=2)) + 0.01
        return MultivariateNormal(loc, scale_tril=raw.tril(-1) + diagonal.diag_embed())


class Executed:
    """Leaves a trace, a new folder, wherever its pickle is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class LinearGaussian:
    """p(z) = N(0, I), x|z = N(Wz + b, s²I): all is known. W's columns are orthogonal, and so the
    posterior is diagonal: ``EncoderGaussian`` with a linear network can be it, exactly."""

    def __init__(self, dims=5, latents=2, s=0.5):
        rng = np.random.default_rng(0)
        self.dims, self.latents, self.s = dims, latents, s
        self.w = np.linalg.qr(rng.normal(size=(dims, latents)))[0] * rng.uniform(1, 2, latents)
        self.b = rng.normal(size=dims)
        self.variance = 1 / (1 + (self.w**2).sum(0) / s**2)  # of the posterior
        self.gain = (self.variance * self.w / s**2).T  # posterior mean = gain (x − b)

    def covariance(self):
        return self.w @ self.w.T + self.s**2 * np.eye(self.dims)

    def log_p(self, x):
        return multivariate_normal(self.b, self.covariance()).logpdf(np.asarray(x))

    def data(self, n):
        rng = np.random.default_rng(1)
        return torch.from_numpy(rng.multivariate_normal(self.b, self.covariance(), n))

    def vae(self, shift=0.0, widen=1.0, **options):
        """The model in float64, q being the posterior, or that shifted and widened."""
        encoder = nn.Linear(self.dims, 2 * self.latents)
        decoder = nn.Linear(self.latents, self.dims)
        with torch.no_grad():
            rows = np.vstack([self.gain, np.zeros_like(self.gain)])
            raw = np.log(np.expm1(widen * np.sqrt(self.variance) - MIN_SCALE))  # softplus⁻¹
            bias = np.concatenate([shift - self.gain @ self.b, raw])
            parameters = (encoder.weight, encoder.bias, decoder.weight, decoder.bias)
            for parameter, value in zip(parameters, (rows, bias, self.w, self.b), strict=True):
                parameter.data = torch.from_numpy(value)
        return lab.VAE(
            lab.EncoderGaussian(encoder),
            lab.DecoderGaussian(decoder, scale=self.s),
            lab.PriorGaussian(self.latents),
            **options,
        ).double()


def tiny_vae(shape=(6,), latents=2, decoder=lab.DecoderGaussian, prior=None, **options):
    """A VAE of the lab's own parts, with 8 hidden units."""
    return lab.VAE(
        lab.EncoderGaussian(mlp(shape, [8], 2 * latents)),
        decoder(mlp(latents, [8], shape)),
        prior or lab.PriorGaussian(latents),
        **options,
    )


def run(model, data, **settings):
    """``fit`` for tests: in float32 on the CPU, the data being their own test set."""
    given = {"epochs": 1, "device": "cpu", "precision": "float32", "progress": False}
    return fit(model, data, settings.pop("test", data), **(given | settings))


def quick_processes():
    """A ``multiprocessing`` context that forks from a server which has imported PyTorch: children
    start in a fraction of a second, and none inherits what the tests have done so far."""
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo is what the first optimizer of a process imports, which takes seconds.
    context.set_forkserver_preload(["torch._dynamo", "scipy.stats", "pytest"])
    return context


def missing(reason):
    """Skip where a tool is missing; on CI, where it must be there, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


EVENTS = [(), (5,), (2, 3), (1, 4, 4)]


class Fixed(nn.Module):
    """A network that gives the same output, whatever the condition."""

    def __init__(self, out):
        super().__init__()
        self.out = nn.Parameter(torch.as_tensor(out))

    def forward(self, condition):
        return self.out.expand(len(condition), *self.out.shape[1:])


class Gives(nn.Module):
    """A part that makes its distribution from its condition, or from what a network makes of it."""

    def __init__(self, make, net=None):
        super().__init__()
        self.make, self.net = make, net

    def forward(self, *condition):
        return self.make(*condition if self.net is None else [self.net(*condition)])


def summed(log_density):
    return log_density.reshape(len(log_density), -1).sum(1)


def case(event, batch=4):
    """A network's output, twice its size along the channels, and a condition, in float64."""
    rng = np.random.default_rng(len(event))
    return rng, rng.normal(size=(batch, *event)), torch.zeros(batch, 2, dtype=torch.float64)


def log_prob_of(distribution, x, condition):
    return distribution.double().log_prob(torch.from_numpy(x), condition).detach().numpy()


def history_of(test, train=None, end=None, identity=None, **settings):
    """A history of these rows of −ELBO: test ``(epochs + 1, n)``, train ``(epochs, n)`` and, after
    the run, ``end`` ``(n,)``; ``settings`` and ``identity`` differ from the usual where given."""
    test = torch.as_tensor(np.asarray(test), dtype=torch.float64)
    train = test[1:] if train is None else torch.as_tensor(np.asarray(train), dtype=torch.float64)
    asked = Settings(**({"epochs": max(1, len(train)), "batch_size": 8} | settings))
    identity = {"model": "m", "first weights": "w", "test data": "d"} | (identity or {})
    history = History(asked, identity, train.shape[1], test.shape[1])
    history.add_test(test[0])
    for number, rows in enumerate(zip(train, test[1:], strict=True)):
        history.add_epoch(*rows, seconds=0.5, lr=1e-3 * (number + 1), clipped=number)
    if end is not None:
        history.train_end.append(torch.as_tensor(np.asarray(end), dtype=torch.float64))
    return history


class Still(Normal):
    """A normal whose sample is its mean, so that two runs can be compared number by number."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.mean.expand(self._extended_shape(sample_shape))


class StillEncoder(lab.EncoderGaussian):
    def distribution(self, out):
        q = super().distribution(out).base_dist
        return Independent(Still(q.loc, q.scale), 1)
