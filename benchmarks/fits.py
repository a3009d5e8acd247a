"""The catalogue of fits by which convergence.py tests the verdict: data, models, settings.

``SHAPED`` may shape the rule of ``vae_kit.convergence``; ``FRESH`` may not, and decides how good it
is: it was drawn up after the rule was last changed, and before any of its verdicts was looked at.
"""

import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from _common import ROOT
from sklearn import datasets
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

from vae_helpers import VAE, DecoderBernoulli, DecoderGaussian, EncoderGaussian, PriorGaussian
from vae_kit.data import binarize, dequantize, load_images, scale
from vae_kit.networks import conv_decoder, conv_encoder, mlp, residual_mlp
from vae_kit.parts import (
    DecoderCategorical,
    DecoderContinuousBernoulli,
    PriorAutoregressive,
    PriorMixture,
)

__all__ = ["FRESH", "MNIST", "SHAPED", "Fit", "tolerance"]

Split = tuple[Tensor, ...]
Rng = np.random.Generator
Sample = Callable[[Rng, int], np.ndarray]
Data = Callable[[int], Split]  # of the number of a draw
DIGIT, IMAGE = (1, 8, 8), (1, 28, 28)

# ---------------------------------------------------------------------------------------- data


def of(sample: str | Sample, train: int) -> Data:
    """Two sets from one distribution, the test set of 4,000 points."""

    def both(number: int) -> Split:
        rng = np.random.default_rng(1 + number)
        draw = SAMPLES[sample] if isinstance(sample, str) else sample
        draws = (draw(rng, n) for n in (train, 4000))
        first, second = (torch.tensor(points, dtype=torch.float32) for points in draws)
        return first, second

    return both


def table(name: str) -> Data:
    """A table of scikit-learn's, shuffled and cut, in units of the first part's deviations."""

    def halves(number: int) -> Split:
        rows = getattr(datasets, f"load_{name}")().data
        rows = rows[np.random.default_rng(number).permutation(len(rows))]
        n = len(rows) // 2
        rows = (rows - rows[:n].mean(0)) / (rows[:n].std(0) + 1e-9)
        return tuple(torch.tensor(half, dtype=torch.float32) for half in (rows[:n], rows[n:]))

    return halves


def images(name: str, train: int | None = None) -> Data:
    """Raw images, so many of the training set, at first those in front, or all."""

    def load(number: int) -> Split:
        found = load_images(name, download=False)
        points = len(found.train)
        order = np.random.default_rng(number).permutation(points) if number else np.arange(points)
        return found.train.images[order[:train]], found.test.images

    return load


def readme(_: int) -> Split:
    """The example of README."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        data = torch.randn(2000, 3) @ torch.randn(3, 8) + 0.5 * torch.randn(2000, 8)
    return data[:1600], data[1600:]


def spirals(rng: Rng, n: int) -> np.ndarray:
    """Two arms of a spiral in the plane."""
    turn, arm = 3 * np.pi * np.sqrt(rng.random(n)), rng.choice([-1, 1], n)
    points = arm * turn * np.stack([np.cos(turn), np.sin(turn)]) / 5
    return points.T + 0.05 * rng.normal(size=(n, 2))


def checkers(rng: Rng, n: int) -> np.ndarray:
    """The black fields of a board of 4 × 4."""
    column = rng.integers(0, 4, n)
    row = 2 * rng.integers(0, 2, n) + column % 2
    return (np.c_[column, row] + rng.random((n, 2)) - 2) / 1.2


def factors(rng: Rng, n: int, factors: int = 3, dims: int = 15) -> np.ndarray:
    """Numbers that a few factors explain, and noise: linear and Gaussian."""
    noisy = rng.normal(size=(n, factors)) @ weights(9, factors, dims)
    return (noisy + 0.5 * rng.normal(size=(n, dims))) / (0.25 + factors) ** 0.5


def products(rng: Rng, n: int) -> np.ndarray:
    """Eight functions of two numbers, and noise."""
    x, y = rng.normal(size=(2, n))
    columns = np.c_[x, y, x * y, x * x - 1, np.sin(2 * x), np.cos(2 * y), x + y, x - y]
    return columns + 0.2 * rng.normal(size=(n, 8))


def sines(rng: Rng, n: int) -> np.ndarray:
    """Signals of 32 samples: a sine of random frequency, phase and size, and noise."""
    frequency, phase, size = rng.uniform([[1, 0, 0.5]], [[3, 2 * np.pi, 1.5]], (n, 3)).T[..., None]
    wave = size * np.sin(2 * np.pi * frequency * np.linspace(0, 1, 32) + phase)
    return wave + 0.1 * rng.normal(size=wave.shape)


def chirps(rng: Rng, n: int) -> np.ndarray:
    """Signals of 48 samples whose frequency rises, and noise."""
    start, rise, phase = rng.uniform([[0.5, 0.5, 0]], [[2, 3, 2 * np.pi]], (n, 3)).T[..., None]
    time = np.linspace(0, 1, 48)
    wave = np.sin(2 * np.pi * (start * time + rise * time**2) + phase)
    return wave + 0.1 * rng.normal(size=(n, 48))


def pulses(rng: Rng, n: int) -> np.ndarray:
    """Signals of 40 samples: a bump of random place and width, and noise."""
    place, width = rng.uniform([[0.2, 0.03]], [[0.8, 0.15]], (n, 2)).T[..., None]
    bump = np.exp(-0.5 * ((np.linspace(0, 1, 40) - place) / width) ** 2)
    return bump + 0.05 * rng.normal(size=bump.shape)


def echoes(rng: Rng, n: int) -> np.ndarray:
    """Thirty-two samples of an autoregressive process of second order."""
    noise, x = rng.normal(size=(n, 52)), np.zeros((n, 52))
    for i in range(2, 52):
        x[:, i] = 1.6 * x[:, i - 1] - 0.8 * x[:, i - 2] + noise[:, i]
    return x[:, 20:] / 3.5


def windows(rng: Rng, n: int) -> np.ndarray:
    """Overlapping windows of 24 samples, cut from one long series with two periods."""
    time = np.arange(n + 23)
    series = np.sin(time / 7) + 0.5 * np.sin(time / 2.3) + 0.2 * rng.normal(size=len(time))
    return np.lib.stride_tricks.sliding_window_view(series, 24)


def one_hot(rng: Rng, n: int) -> np.ndarray:
    """Six columns of four categories each, which two factors explain, one-hot: 24 bits."""
    logits = (1.5 * rng.normal(size=(n, 2)) @ weights(6, 2, 24)).reshape(n, 6, 4)
    chosen = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return (chosen[..., None] == np.arange(4)).reshape(n, 24)


def bars(rng: Rng, n: int) -> np.ndarray:
    """Binary images of 4 × 4: rows and columns are lit at random, then 3 % of the pixels flip."""
    lit = rng.random((n, 2, 4)) < 0.25
    return ((lit[:, 0, :, None] | lit[:, 1, None]) ^ (rng.random((n, 4, 4)) < 0.03)).reshape(n, 16)


def rectangles(rng: Rng, n: int) -> np.ndarray:
    """Binary images of 6 × 6: a rectangle is lit, then 3 % of the pixels flip."""
    low, high = np.sort(rng.integers(0, 6, (2, n, 2)), 0)
    lit = [(low[:, k, None] <= np.arange(6)) & (np.arange(6) <= high[:, k, None]) for k in (0, 1)]
    image = (lit[0][:, :, None] & lit[1][:, None]) ^ (rng.random((n, 6, 6)) < 0.03)
    return image.reshape(n, 36)


def weights(seed: int, *shape: int) -> np.ndarray:
    """Fixed coefficients of what is hidden."""
    return np.random.default_rng(seed).normal(size=shape)


def toy(name: str, rng: Rng, n: int, **settings: Any) -> Any:
    """The points of one of scikit-learn's generators."""
    make = getattr(datasets, f"make_{name}")
    return make(n, random_state=int(rng.integers(2**31)), **settings)[0]


def friedman(rng: Rng, n: int) -> np.ndarray:
    """Five inputs and the output of Friedman's function."""
    x, y = datasets.make_friedman1(n, noise=0.5, random_state=int(rng.integers(2**31)))
    return np.c_[(x[:, :5] - 0.5) / 0.29, (y - 14.4) / 4.9]


SAMPLES: dict[str, Sample] = {
    # in the plane
    "moons": lambda rng, n: (toy("moons", rng, n, noise=0.08) - [0.5, 0.25]) / [0.87, 0.5],
    "circles": lambda rng, n: 1.7 * toy("circles", rng, n, noise=0.05, factor=0.5),
    "clusters": lambda rng, n: rng.choice([-1, 1], (n, 2)) + 0.25 * rng.normal(size=(n, 2)),
    # in space
    "roll": lambda rng, n: (toy("swiss_roll", rng, n, noise=0.3) - [2, 10, 0]) / [6.8, 6, 7],
    "s_curve": lambda rng, n: toy("s_curve", rng, n, noise=0.1) - [0, 1, 0],
    # tables
    "blobs": lambda rng, n: (
        2 * weights(4, 5, 10)[rng.integers(0, 5, n)] + 0.5 * rng.normal(size=(n, 10))
    ) / 2,
    "more factors": lambda rng, n: factors(rng, n, 5, 20),
    "skewed": lambda rng, n: (
        np.exp(0.3 * rng.normal(size=(n, 2)) @ weights(3, 2, 12)) + 0.1 * rng.normal(size=(n, 12))
    ),
    "counts": lambda rng, n: np.log1p(
        rng.poisson(np.exp(1.5 + 0.5 * rng.normal(size=(n, 2)) @ weights(5, 2, 10)))
    ) - 1.5,
    "noise": lambda rng, n: rng.normal(size=(n, 10)),
    "heavy tails": lambda rng, n: rng.standard_t(5, size=(n, 8)) / 1.3,
    "uniform": lambda rng, n: rng.random((n, 8)),
    "walks": lambda rng, n: rng.normal(size=(n, 24)).cumsum(1) / 5,
    # bits: independent ones; answers that three traits explain; tasks of rising difficulty
    "coins": lambda rng, n: rng.random((n, 30)) < np.linspace(0.1, 0.9, 30),
    "survey": lambda rng, n: below_logits(rng, 1.5 * rng.normal(size=(n, 3)) @ weights(7, 3, 30)),
    "ladder": lambda rng, n: below_logits(
        rng, 3 * (rng.normal(size=(n, 1)) - np.linspace(-1.5, 1.5, 20))
    ),
}  # fmt: skip


def below_logits(rng: Rng, logits: np.ndarray) -> np.ndarray:
    """Bits that are 1 with these log-odds."""
    return rng.random(logits.shape) < 1 / (1 + np.exp(-logits))


# -------------------------------------------------------------------------------------- models


def vae(
    shape: Any, hidden: list[int], latents: int, decoder: Any = DecoderGaussian,
    prior: Callable[[int], nn.Module] = PriorGaussian, out: Any = None, beta: float = 1.0,
    dropout: float = 0.0,
) -> Callable[[], VAE]:  # fmt: skip
    """Perceptrons with these hidden layers; ``out`` is the shape that the decoder asks for."""

    def network(*sizes: Any) -> nn.Module:
        def thinned(layer: nn.Module) -> list[nn.Module]:
            active = dropout and isinstance(layer, nn.SiLU)
            return [layer, nn.Dropout(dropout)] if active else [layer]

        return nn.Sequential(*itertools.chain(*map(thinned, mlp(*sizes))))

    def build() -> VAE:
        encoder = EncoderGaussian(network(shape, hidden, 2 * latents))
        net = network(latents, hidden[::-1], out or shape)
        return VAE(encoder, decoder(net), prior(latents), beta)

    return build


def gaussian(scale: float | str) -> Callable[[nn.Module], DecoderGaussian]:
    """A Gaussian decoder of this scale."""
    return functools.partial(DecoderGaussian, scale=scale)


def residual(shape: Any, width: int, latents: int, decoder: Any = DecoderGaussian) -> Any:
    """Residual networks of one block."""
    return lambda: VAE(
        EncoderGaussian(residual_mlp(shape, width, 1, 2 * latents)),
        decoder(residual_mlp(latents, width, 1, shape)),
        PriorGaussian(latents),
    )


def convolutional() -> VAE:
    """Digits, convolutions."""
    encoder, net = conv_encoder(DIGIT, 16, 8), conv_decoder(8, DIGIT, 8)
    return VAE(EncoderGaussian(encoder), DecoderGaussian(net), PriorGaussian(8))


# ---------------------------------------------------------------------------------------- fits


@dataclass(frozen=True)
class Fit:
    """A model, its data and settings, and the longest of the three runs by which it is judged."""

    data: Data
    model: Callable[[], VAE]
    epochs: int
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    draw: int = 0


def fit(data: Data, model: Callable[[], VAE], epochs: int, **settings: Any) -> Fit:
    """A small fit: in float32, which is fastest for such networks."""
    return Fit(data, model, epochs, {"precision": "float32"} | settings)


Bernoulli = DecoderBernoulli
mixture = functools.partial(PriorMixture, components=10)
autoregressive = functools.partial(PriorAutoregressive, hidden=32)
digits, mnist = functools.partial(images, "digits"), functools.partial(images, "mnist")
FEW: dict[str, Any] = {"batch_size": 10, "lr": 1e-2}
FAST = {"lr": 1e-2}
README = vae(8, [64], 3)

SHAPED: dict[str, Fit] = {
    "README": Fit(readme, README, 80),
    "README, 16 epochs": Fit(readme, README, 16),
    "factors": fit(of(factors, 2000), vae(15, [32], 3), 32, batch_size=64, **FAST),
    "factors, linear": fit(of(factors, 1000), vae(15, [], 3), 32, **FAST),
    "factors, few": fit(of(factors, 60), vae(15, [32], 3), 64, **FEW),
    "factors, rate too large": fit(of(factors, 1000), vae(15, [32], 3), 32, lr=5e-2),
    "moons": fit(of("moons", 2000), vae(2, [32], 2), 32, batch_size=64),
    "clusters, mixture": fit(of("clusters", 1000), vae(2, [32], 2, gaussian(0.25), mixture), 48),
    "sines": fit(of(sines, 1000), vae(32, [64], 6), 16),
    "sines, few": fit(of(sines, 100), vae(32, [64], 6), 64, **FEW),
    "sines, rate too small": fit(of(sines, 1000), vae(32, [64], 6), 32, lr=1e-5),
    "pulses, linear": fit(of(pulses, 1000), vae(40, [], 4), 32, **FAST),
    "walks": fit(of("walks", 1000), residual(24, 48, 4), 32),
    "walks, few": fit(of("walks", 100), residual(24, 48, 4), 64, **FEW),
    "friedman": fit(of(friedman, 2000), vae(6, [24], 3), 32, batch_size=64),
    "breast cancer": fit(table("breast_cancer"), vae(30, [48], 6), 64),
    "wine": fit(table("wine"), vae(13, [24], 3), 64, **FEW),
    "survey": fit(of("survey", 2000), vae(30, [16], 3, Bernoulli), 32, batch_size=64, **FAST),
    "survey, few": fit(of("survey", 100), vae(30, [24], 3, Bernoulli), 64, **FEW),
    "bars": fit(of(bars, 1000), vae(16, [24], 6, Bernoulli), 32),
    "digits, grey": fit(digits(), vae(DIGIT, [64], 8), 16, transform=dequantize),
    "digits, grey, few": fit(digits(200), vae(DIGIT, [64], 8), 64, transform=dequantize, **FEW),
    "digits, binary": fit(digits(), vae(DIGIT, [32], 4, Bernoulli), 32, transform=binarize),
    "noise": fit(of("noise", 2000), vae(10, [16], 2), 16, batch_size=64),
    "README, again": Fit(readme, README, 80, seed=1),
    "README, 16 epochs, again": Fit(readme, README, 16, seed=1),
    "more factors, linear": fit(
        of("more factors", 2000), vae(20, [], 5), 64, batch_size=64, **FAST),
    "more factors": fit(of("more factors", 2000), vae(20, [32], 5), 32, batch_size=64),
    "more factors, β = 0.5": fit(
        of("more factors", 2000), vae(20, [], 5, beta=0.5), 32, batch_size=64, **FAST),
    "blobs": fit(of("blobs", 2000), vae(10, [32], 3), 32, batch_size=64),
    "blobs, few": fit(of("blobs", 60), vae(10, [32], 3), 64, **FEW),
    "blobs, β = 4": fit(of("blobs", 1000), vae(10, [32], 3, beta=4), 32),
    "blobs, rate too small": fit(of("blobs", 1000), vae(10, [32], 3), 32, lr=3e-5),
    "heavy tails": fit(of("heavy tails", 2000), vae(8, [16], 2), 32, batch_size=64),
    "uniform, continuous Bernoulli": fit(
        of("uniform", 2000), vae(8, [16], 2, DecoderContinuousBernoulli), 32, batch_size=64),
    "coins": fit(of("coins", 2000), vae(30, [16], 3, Bernoulli), 16),
    "ladder, linear": fit(of("ladder", 2000), vae(20, [], 2, Bernoulli), 32, batch_size=64, **FAST),
    "one-hot": fit(of(one_hot, 2000), vae(24, [16], 2, Bernoulli), 32, batch_size=64, **FAST),
    "one-hot, few": fit(of(one_hot, 80), vae(24, [32], 2, Bernoulli), 64, **FEW),
    "counts": fit(of("counts", 2000), vae(10, [16], 2), 32, batch_size=64, **FAST),
    "skewed, σ from the network": fit(
        of("skewed", 1000), vae(12, [32], 3, gaussian("net"), out=24), 32),
    "skewed, few, σ from the network": fit(
        of("skewed", 80), vae(12, [32], 3, gaussian("net"), out=24), 64, **FEW),
    "circles": fit(of("circles", 2000), vae(2, [32], 2), 16, batch_size=64),
    "spirals, autoregressive": fit(
        of(spirals, 1000), vae(2, [32, 32], 2, gaussian(0.1), autoregressive), 32),
    "checkers, mixture": fit(
        of(checkers, 2000), vae(2, [32], 2, gaussian(0.2), mixture), 32, batch_size=64),
    "roll": fit(of("roll", 2000), vae(3, [32], 2), 32, batch_size=64),
    "s-curve, σ from the network": fit(
        of("s_curve", 2000), vae(3, [32], 2, gaussian("net"), out=6), 32, batch_size=64),
    "chirps": fit(of(chirps, 1000), vae(48, [64], 4), 16),
    "chirps, few": fit(of(chirps, 120), vae(48, [64], 4), 64, **FEW),
    "chirps, linear": fit(of(chirps, 2000), vae(48, [], 6), 32, batch_size=64, **FAST),
    "chirps, rate too large": fit(of(chirps, 1000), vae(48, [64], 4), 32, lr=0.1),
    "echoes": fit(of(echoes, 1000), vae(32, [48], 8), 32),
    "echoes, few": fit(of(echoes, 100), vae(32, [48], 8), 64, **FEW),
    "echoes, linear": fit(of(echoes, 2000), vae(32, [], 8), 32, batch_size=64, **FAST),
    "windows": fit(of(windows, 1000), vae(24, [32], 3), 32),
    "products": fit(of(products, 1000), vae(8, [32], 3), 32),
    "products, few": fit(of(products, 80), vae(8, [32], 3), 64, **FEW),
    "rectangles": fit(of(rectangles, 1000), vae(36, [32], 5, Bernoulli), 32),
    "rectangles, few": fit(of(rectangles, 120), vae(36, [32], 5, Bernoulli), 64, **FEW),
    "iris": fit(table("iris"), vae(4, [16], 2), 64, **FEW),
    "diabetes": fit(table("diabetes"), vae(10, [32], 4), 64, **FAST),
    "diabetes, linear": fit(table("diabetes"), vae(10, [], 4), 64, **FAST),
    "breast cancer, dropout": fit(table("breast_cancer"), vae(30, [48], 6, dropout=0.2), 64),
    "breast cancer, linear": fit(table("breast_cancer"), vae(30, [], 6), 64, **FAST),
    "wine, large network": fit(table("wine"), vae(13, [64, 64], 4), 32, **FEW),
    "digits, continuous Bernoulli, few": fit(
        digits(200), vae(DIGIT, [64], 8, DecoderContinuousBernoulli), 32, transform=scale, **FEW),
    "digits, levels, few": fit(
        digits(300), vae(DIGIT, [64], 8, DecoderCategorical, out=(4, 8, 8)), 64, transform=scale),
    "digits, binary, larger": fit(digits(), vae(DIGIT, [64], 8, Bernoulli), 16, transform=binarize),
    "digits, binary, few": fit(
        digits(150), vae(DIGIT, [64], 8, Bernoulli), 64, transform=binarize, **FEW),
    "digits, grey, convolutions": fit(digits(), convolutional, 16, transform=dequantize),
    "digits, grey, fixed σ": fit(
        digits(), vae(DIGIT, [32], 8, gaussian(0.3)), 16, transform=dequantize),
}  # fmt: skip

# All of them on another draw of the data, with another seed, and every other one half as long.
FRESH: dict[str, Fit] = {
    f"{name}, draw 2": replace(asked, draw=1, seed=2, epochs=asked.epochs // (1 + place % 2))
    for place, (name, asked) in enumerate(SHAPED.items())
    if "README" not in name
}

# The report's two models, on request: its networks, batches, rate and lengths.
REPORT = {"batch_size": 256, "lr": 4e-3}
MNIST: dict[str, Fit] = {
    f"notebook, {name}, seed {seed}": Fit(
        mnist(train), residual(IMAGE, 256, 20, decoder), epochs, REPORT | {"transform": f}, seed
    )
    for name, decoder, f, train, epochs in (
        ("Bernoulli", Bernoulli, binarize, None, 32),
        ("Gaussian, few images", DecoderGaussian, dequantize, 3000, 64),
    )
    for seed in (0, 1)
}


def tolerance(asked: Fit, train: Tensor) -> float:
    """The rule, fixed before any run, in nats per data point.

    A density: 0.01 nats per dimension, one per cent of a Gaussian's σ. A probability: one per cent
    of what its dimensions cost each by itself, coded by their frequencies in the training set.
    """
    decoder = asked.model().decoder
    if not isinstance(decoder, (DecoderBernoulli, DecoderCategorical)):
        return 0.01 * train[0].numel()
    transform = asked.settings.get("transform")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        x = (transform(train) if transform else train).flatten(1)
    levels = (x * 255).round().long()
    shares = torch.stack([(levels == v).double().mean(0) for v in levels.unique()])
    return 0.01 * float(-torch.special.xlogy(shares, shares).sum())
