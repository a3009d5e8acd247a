"""Is the verdict on convergence right? Fits of many kinds, each then trained 8 times as long.

    python benchmarks/convergence.py                    # what is missing, but for the long ones
    python benchmarks/convergence.py --only moons wine  # these; a long one where it is named
    python benchmarks/convergence.py --report           # table and figure of what is there

A fit that is finished is kept in convergence.json and not repeated; so an interrupted benchmark
goes on where it was. Runs that fits share, and unfinished ones, are kept in build/convergence, and
the runs with other peak rates in convergence_rates.json; delete all three to measure anew.
convergence.md tells the protocol.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from _common import HERE, ROOT, machine, table
from sklearn import datasets
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

import vae_helpers as lab
from vae_convergence import convergence
from vae_data import binarize, dequantize, load_images, scale
from vae_figures import new_figure, save_figure
from vae_networks import conv_decoder, conv_encoder, mlp, residual_mlp

RUNS = ROOT / "build" / "convergence"
LONGER = 8
DIGITS, MNIST = (1, 8, 8), (1, 28, 28)
KEEP = 2000  # points of each split whose values are kept: a standard error to 2 %

# ---------------------------------------------------------------------------------------- data

Sample = Callable[[np.random.Generator, int], np.ndarray]


def drawn(sample: Sample, train: int, test: int = 4000) -> tuple[Tensor, Tensor]:
    """Two sets from one distribution, as it comes."""
    rng = np.random.default_rng(1)
    return tuple(torch.tensor(sample(rng, n), dtype=torch.float32) for n in (train, test))  # type: ignore[return-value]


def cut(rows: np.ndarray, train: int) -> tuple[Tensor, Tensor]:
    """A table, shuffled and cut in two, in units of the first part's standard deviations."""
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    rows = (rows - rows[:train].mean(0)) / (rows[:train].std(0) + 1e-9)
    return tuple(torch.tensor(part, dtype=torch.float32) for part in (rows[:train], rows[train:]))  # type: ignore[return-value]


def moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two half circles in the plane."""
    points = datasets.make_moons(n, noise=0.08, random_state=int(rng.integers(2**31)))[0]
    return (points - [0.5, 0.25]) / [0.87, 0.5]


def rings(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two circles, one within the other."""
    seed = int(rng.integers(2**31))
    return 1.7 * datasets.make_circles(n, noise=0.05, factor=0.5, random_state=seed)[0]


def clusters(rng: np.random.Generator, n: int) -> np.ndarray:
    """Four clouds in the plane."""
    return rng.choice([-1, 1], (n, 2)) + 0.25 * rng.normal(size=(n, 2))


def sines(rng: np.random.Generator, n: int) -> np.ndarray:
    """Signals of 32 samples: a sine of random frequency, phase and size, and noise."""
    frequency, phase, size = rng.uniform([[1, 0, 0.5]], [[3, 2 * np.pi, 1.5]], (n, 3)).T[..., None]
    wave = size * np.sin(2 * np.pi * frequency * np.linspace(0, 1, 32) + phase)
    return wave + 0.1 * rng.normal(size=wave.shape)


def pulses(rng: np.random.Generator, n: int) -> np.ndarray:
    """Signals of 40 samples: a bump of random place and width, and noise."""
    place, width = rng.uniform([[0.2, 0.03]], [[0.8, 0.15]], (n, 2)).T[..., None]
    bump = np.exp(-0.5 * ((np.linspace(0, 1, 40) - place) / width) ** 2)
    return bump + 0.05 * rng.normal(size=bump.shape)


def walks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random walks of 24 steps."""
    return rng.normal(size=(n, 24)).cumsum(1) / 5


def friedman(rng: np.random.Generator, n: int) -> np.ndarray:
    """Five inputs and the output of Friedman's function."""
    x, y = datasets.make_friedman1(n, noise=0.5, random_state=int(rng.integers(2**31)))
    return np.c_[(x[:, :5] - 0.5) / 0.29, (y - 14.4) / 4.9]


def factors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Fifteen numbers that three factors explain, and noise."""
    weights = np.random.default_rng(9).normal(size=(3, 15))
    return (rng.normal(size=(n, 3)) @ weights + 0.5 * rng.normal(size=(n, 15))) / 1.8


def survey(rng: np.random.Generator, n: int) -> np.ndarray:
    """Thirty yes-or-no answers that three traits explain."""
    logits = rng.normal(size=(n, 3)) @ np.random.default_rng(7).normal(size=(3, 30))
    return rng.random((n, 30)) < 1 / (1 + np.exp(-1.5 * logits))


def bars(rng: np.random.Generator, n: int) -> np.ndarray:
    """Binary images of 4 × 4: rows and columns are lit at random, then 3 % of the pixels flip."""
    lit = rng.random((n, 2, 4)) < 0.25
    return ((lit[:, 0, :, None] | lit[:, 1, None]) ^ (rng.random((n, 4, 4)) < 0.03)).reshape(n, 16)


def readme() -> tuple[Tensor, Tensor]:
    """README's example."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        data = torch.randn(2000, 3) @ torch.randn(3, 8) + 0.5 * torch.randn(2000, 8)
    return data[:1600], data[1600:]


def images(name: str, train: int | None = None) -> tuple[Tensor, Tensor]:
    """Raw images, the first so many or all of the training set."""
    found = load_images(name, download=False)
    return found.train.images[:train], found.test.images


# -------------------------------------------------------------------------------------- models


def vae(encoder: nn.Module, decoder: nn.Module, latents: int, prior: Any = None) -> lab.VAE:
    """From a network for the encoder and a decoder."""
    return lab.VAE(lab.EncoderGaussian(encoder), decoder, prior or lab.PriorGaussian(latents))


def plain(
    shape: Any, hidden: list[int], latents: int, decoder: Any = lab.DecoderGaussian, out: Any = None
) -> Callable[[], lab.VAE]:
    """Perceptrons with these hidden layers; ``out`` is the shape that the decoder asks for."""
    return lambda: vae(
        mlp(shape, hidden, 2 * latents), decoder(mlp(latents, hidden[::-1], out or shape)), latents
    )


def scale_from_net(net: nn.Module) -> lab.DecoderGaussian:
    """A Gaussian decoder whose network gives σ too."""
    return lab.DecoderGaussian(net, "net")


def with_mixture() -> lab.VAE:
    """Points in the plane, a prior of ten components and a fixed σ."""
    decoder = lab.DecoderGaussian(mlp(2, [32], 2), scale=0.25)
    return vae(mlp(2, [32], 4), decoder, 2, lab.PriorMixture(2, 10))


def residual() -> lab.VAE:
    """Walks, residual networks."""
    decoder = lab.DecoderGaussian(residual_mlp(4, 48, 1, 24))
    return vae(residual_mlp(24, 48, 1, 8), decoder, 4)


def notebook() -> lab.VAE:
    """The network of the report's Task 1."""
    encoder, net = residual_mlp(MNIST, 256, 1, 2 * 9), residual_mlp(9, 256, 1, MNIST)
    return vae(encoder, lab.DecoderGaussian(nn.Sequential(net, nn.Sigmoid())), 9)


def convolutional() -> lab.VAE:
    """Digits, convolutions."""
    shape = (1, 8, 8)
    decoder = lab.DecoderGaussian(conv_decoder(8, shape, 8))
    return vae(conv_encoder(shape, 16, 8), decoder, 8)


# ------------------------------------------------------------------------------ configurations


@dataclass(frozen=True)
class Configuration:
    """A model, its data and settings, and the lengths at which it is judged."""

    data: Callable[[], tuple[Tensor, Tensor]]
    model: Callable[[], lab.VAE]
    transform: Callable[[Tensor], Tensor] | None = None
    batch_size: int | None = 100
    lr: float | None = 1e-2
    epochs: tuple[int, ...] = (4, 16, 64, 256)
    seeds: tuple[int, ...] = (0,)
    long: bool = False  # trained only where it is named, and 8 times as long with seed 0 only

    @property
    def kind(self) -> str:
        """The decoder's."""
        return type(self.model().decoder).__name__.removeprefix("Decoder")

    def settings(self) -> dict[str, Any]:
        """What ``fit`` is given, defaults left out."""
        given = {"batch_size": self.batch_size, "lr": self.lr, "transform": self.transform}
        return {name: value for name, value in given.items() if value is not None}


Bernoulli, Categorical = lab.DecoderBernoulli, lab.DecoderCategorical
BOTH = (0, 1)
CONFIGURATIONS = {
    "moons": Configuration(lambda: drawn(moons, 1000), plain(2, [32], 2)),
    "rings": Configuration(
        lambda: drawn(rings, 1000), plain(2, [32], 2, scale_from_net, 4)
    ),
    "clusters": Configuration(lambda: drawn(clusters, 1000), with_mixture, seeds=BOTH),
    "sines": Configuration(lambda: drawn(sines, 1000), plain(32, [64], 6), seeds=BOTH),
    "sines, linear": Configuration(
        lambda: drawn(sines, 1000), plain(32, [], 6), epochs=(16, 64, 256)
    ),
    "few sines": Configuration(
        lambda: drawn(sines, 100), plain(32, [64], 6), batch_size=10, epochs=(16, 64, 256),
        seeds=BOTH,
    ),
    "pulses": Configuration(lambda: drawn(pulses, 1000), plain(40, [32], 3)),
    "pulses, linear": Configuration(
        lambda: drawn(pulses, 1000), plain(40, [], 4), epochs=(16, 64, 256)
    ),
    "walks": Configuration(lambda: drawn(walks, 1000), residual, seeds=BOTH),
    "few walks": Configuration(
        lambda: drawn(walks, 100), residual, batch_size=10, epochs=(16, 64, 256), seeds=BOTH
    ),
    "friedman": Configuration(lambda: drawn(friedman, 1000), plain(6, [24], 3)),
    "factors": Configuration(lambda: drawn(factors, 1000), plain(15, [32], 3), seeds=BOTH),
    "factors, linear": Configuration(
        lambda: drawn(factors, 1000), plain(15, [], 3), epochs=(16, 64, 256)
    ),
    "few factors": Configuration(
        lambda: drawn(factors, 60), plain(15, [32], 3), batch_size=10, epochs=(16, 64, 256),
        seeds=BOTH,
    ),
    "cancer": Configuration(
        lambda: cut(datasets.load_breast_cancer().data, 300), plain(30, [48], 6), batch_size=30,
        epochs=(4, 32, 128), seeds=BOTH,
    ),
    "wine": Configuration(
        lambda: cut(datasets.load_wine().data, 90), plain(13, [24], 3), batch_size=10,
        epochs=(4, 32, 128),
    ),
    "diabetes": Configuration(
        lambda: cut(datasets.load_diabetes().data, 240), plain(10, [32], 4), batch_size=30,
        epochs=(4, 32, 128),
    ),
    "bars": Configuration(
        lambda: drawn(bars, 1000), plain(16, [24], 6, Bernoulli), seeds=BOTH
    ),
    "survey": Configuration(
        lambda: drawn(survey, 1000), plain(30, [24], 3, Bernoulli), seeds=BOTH
    ),
    "few answers": Configuration(
        lambda: drawn(survey, 100), plain(30, [24], 3, Bernoulli), batch_size=10,
        epochs=(16, 64, 256), seeds=BOTH,
    ),
    "digits, grey": Configuration(
        lambda: images("digits"), plain(DIGITS, [96], 8), dequantize, epochs=(4, 16, 64)
    ),
    "digits, grey, linear": Configuration(
        lambda: images("digits"), plain(DIGITS, [], 8), dequantize, epochs=(16, 64, 256)
    ),
    "digits, convolutions": Configuration(
        lambda: images("digits"), convolutional, dequantize, epochs=(4, 16, 64)
    ),
    "digits, binary": Configuration(
        lambda: images("digits"), plain(DIGITS, [96], 8, Bernoulli), binarize, epochs=(4, 16, 64),
        seeds=BOTH,
    ),
    "few digits, binary": Configuration(
        lambda: images("digits", 200), plain(DIGITS, [96], 8, Bernoulli), binarize, batch_size=20,
        epochs=(4, 16, 64),
    ),
    "digits, levels": Configuration(
        lambda: images("digits"), plain(DIGITS, [64], 8, Categorical, (4, 8, 8)), scale,
        epochs=(4, 16, 64),
    ),
    "MNIST, grey, linear": Configuration(
        lambda: images("mnist"), plain(MNIST, [], 8), dequantize, 500, epochs=(4, 8), seeds=BOTH
    ),
    "MNIST, grey": Configuration(
        lambda: images("mnist"), plain(MNIST, [64], 4), dequantize, 500, epochs=(4,), seeds=BOTH
    ),
    "MNIST, binary, linear": Configuration(
        lambda: images("mnist"), plain(MNIST, [], 8, Bernoulli), binarize, 500, epochs=(4, 8)
    ),
    "MNIST, binary": Configuration(
        lambda: images("mnist"), plain(MNIST, [64], 6, Bernoulli), binarize, 500, epochs=(4,)
    ),
    "README": Configuration(readme, plain(8, [64], 3), None, None, None, epochs=(16, 80)),
    "notebook": Configuration(
        lambda: images("mnist"), notebook, dequantize, 512, None, epochs=(64,), seeds=BOTH,
        long=True,
    ),
}  # fmt: skip
# The report's model with other peak rates: neither may gain more than the tolerance.
RATES = {"half": 2e-3, "the report's": None, "twice": 8e-3}


@functools.cache
def tolerance(asked: Configuration) -> float:
    """The rule, fixed before any run, in nats per data point.

    A density: 0.01 nats per dimension, one per cent of a Gaussian's σ. A probability: one per cent
    of what its dimensions cost each by itself, coded by their frequencies in the training set.
    """
    train = asked.data()[0]
    dims = train[0].numel()
    if asked.kind == "Gaussian":
        return 0.01 * dims
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        x = asked.transform(train) if asked.transform else train
    levels = (
        (x.flatten(1) * 255).round().long() if asked.kind == "Categorical" else x.flatten(1).long()
    )
    counts = torch.stack([(levels == v).sum(0) for v in levels.unique()]).double()
    shares = counts / counts.sum(0)
    return 0.01 * float(-torch.special.xlogy(shares, shares).sum())


# -------------------------------------------------------------------------------------- fits


def run_of(name: str, seed: int, epochs: int, lr: float | None = None) -> lab.History:
    """A run of a configuration, trained once: its history is kept, and what is unfinished too."""
    asked = CONFIGURATIONS[name]
    asked = asked if lr is None else replace(asked, lr=lr)
    settings = {k: getattr(v, "__name__", str(v)) for k, v in asked.settings().items()}
    words = repr([name, seed, epochs, settings])
    path = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{epochs}"
    path = path.with_name(f"{path.name}-{hashlib.sha256(words.encode()).hexdigest()[:8]}.npz")
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        train, test = asked.data()
        torch.manual_seed(seed)
        slow = len(train) > 10_000  # else the file takes longer than the epoch
        history = lab.fit(
            asked.model(), train, test, epochs=epochs, seed=seed, keep_points=KEEP,
            checkpoint=path.with_suffix(".pt") if slow else None, progress=False,
            **asked.settings(),
        )  # fmt: skip
        if len(history) < epochs:
            raise KeyboardInterrupt
        history.save(path)
        path.with_suffix(".pt").unlink(missing_ok=True)
    return lab.History.load(path)


def key_of(name: str, seed: int, epochs: int) -> str:
    """Under which a fit is found in the results."""
    return f"{name} | {epochs} epochs | seed {seed}"


def recognised(name: str) -> dict[str, Any]:
    """Settings by which a result is recognised: one of others is not of this configuration."""
    asked = CONFIGURATIONS[name]
    transform = asked.transform.__name__ if asked.transform else None
    return {"batch_size": asked.batch_size, "lr": asked.lr, "transform": transform,
            "tolerance": round(tolerance(asked), 6)}  # fmt: skip


def measure(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """Let the verdict speak, then train 8 times as long: a long one with its first seed only."""
    runs = [run_of(name, seed, length) for length in (epochs // 4, epochs // 2, epochs)]
    found = convergence(*runs, tolerance=tolerance(CONFIGURATIONS[name]))
    fit = {
        "settings": recognised(name),
        "data": f"{runs[-1].train_points:,} + {runs[-1].test_points:,}",
        "decoder": CONFIGURATIONS[name].kind,
        "verdict": found.verdict, "line": repr(found), "best": found.best,
        "test": runs[-1].test_mean[-1], "train": runs[-1].train_mean[-1],
        "gains": [gain._asdict() for gain in found.gains],
        "forecast": {str(k): v._asdict() for k, v in found.forecast.items()},
        "seconds": float(sum(run.seconds.sum() for run in runs)),
        "bounded": int(sum(run.bounded.sum() for run in runs)),
        "machine": machine(threads=torch.get_num_threads()),
    }  # fmt: skip
    if CONFIGURATIONS[name].long and seed > 0:
        return fit
    longer = run_of(name, seed, LONGER * epochs)
    return fit | {
        "test_longer": longer.test_mean[-1], "train_longer": longer.train_mean[-1],
        "gained": runs[-1].test_mean[-1] - longer.test_mean[-1],
        "seconds": fit["seconds"] + float(longer.seconds.sum()),
        "bounded": fit["bounded"] + int(longer.bounded.sum()),
    }  # fmt: skip


def measure_rates() -> dict[str, dict[str, float]]:
    """How the report's model ends with each of ``RATES``."""
    (epochs,) = CONFIGURATIONS["notebook"].epochs
    runs = {name: run_of("notebook", 0, epochs, lr) for name, lr in RATES.items()}
    own, unit = runs["the report's"], tolerance(CONFIGURATIONS["notebook"])
    return {
        name: {"lr": run.settings["lr"], "epochs": len(run), "tolerance": unit,
               "train": run.train_mean[-1],
               "test": run.test_mean[-1], "gained": own.test_mean[-1] - run.test_mean[-1],
               "gained_se": paired_error(own, run)}
        for name, run in runs.items()
    }  # fmt: skip


def paired_error(one: lab.History, other: lab.History) -> float:
    """Standard error of the difference of two runs' ends, each test point with itself."""
    assert np.array_equal(one.test_index, other.test_index)
    falls = one.test[-1].astype(np.float64) - other.test[-1]
    return float(falls.std(ddof=1) / np.sqrt(one.test_points))


def is_right(fit: dict[str, Any]) -> bool | None:
    """Whether the run 8 times as long agrees with the verdict; None where either is missing."""
    if "gained" not in fit:
        return None
    gained = fit["gained"] / fit["settings"]["tolerance"]
    return {
        "converged": gained <= 3,
        "still improving": gained > 1 / 3,
        "overfitting": gained <= 0,
        "cannot tell": None,
    }[fit["verdict"]]


def within(fit: dict[str, Any]) -> bool | None:
    """Whether the run 8 times as long ended where it was foretold; None where nothing was."""
    foretold = fit["forecast"].get(str(LONGER))
    if not foretold or "test_longer" not in fit:
        return None
    return bool(foretold["low"] <= fit["test_longer"] <= foretold["high"])


def wanted() -> Iterator[tuple[str, int, int]]:
    """Every fit: configuration, seed, epochs."""
    for name, asked in CONFIGURATIONS.items():
        for seed in asked.seeds:
            for epochs in asked.epochs:
                yield name, seed, epochs


def read() -> dict[str, dict[str, Any]]:
    """What has been measured so far, of the present configurations."""
    path = HERE / "convergence.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    keys = {key_of(*fit): recognised(fit[0]) for fit in wanted()}
    return {key: saved[key] for key in keys if key in saved and saved[key]["settings"] == keys[key]}


# ------------------------------------------------------------------------------------ report


def share(values: list[bool]) -> str:
    """As a percentage, and of how many."""
    return f"{100 * sum(values) / max(1, len(values)):.0f} % of {len(values)}"


def goals(fits: list[dict[str, Any]]) -> list[list[str]]:
    """What was asked and what was measured."""
    judged = [fit for fit in fits if is_right(fit) is not None]
    foretold = [fit for fit in fits if within(fit) is not None]
    right = [fit["verdict"] for fit in judged if is_right(fit)]
    widths = [
        (ends["high"] - ends["low"]) / fit["settings"]["tolerance"]
        for fit in foretold for ends in [fit["forecast"][str(LONGER)]]
    ]  # fmt: skip
    held = [within(fit) is True for fit in foretold]
    silent = [fit["verdict"] == "cannot tell" for fit in fits]
    return [
        ["fits", f"{len(fits)}", "≥ 40"],
        ["verdicts that are right", share([bool(is_right(fit)) for fit in judged]), "≥ 95 %"],
        ["“cannot tell”", share(silent), "≤ 10 %"],
        *([f"right: “{v}”", f"{right.count(v)}", "≥ 8"] for v in VERDICTS[:-1]),
        ["forecasts within their interval", share(held), "≥ 80 %"],
        ["median width of it, tolerances", f"{statistics.median(widths or [0]):.2f}", "≤ 1"],
    ]  # fmt: skip


VERDICTS = ("converged", "still improving", "overfitting", "cannot tell")


def confusion(fits: list[dict[str, Any]]) -> list[list[object]]:
    """Verdicts by what 8 times the training gained, in tolerances."""
    edges = [(3, np.inf), (1 / 3, 3), (0, 1 / 3), (-np.inf, 0)]
    rows = []
    for verdict in VERDICTS:
        gained = [
            fit["gained"] / fit["settings"]["tolerance"]
            for fit in fits if fit["verdict"] == verdict and "gained" in fit
        ]  # fmt: skip
        rows.append([verdict, *(sum(low < g <= high for g in gained) for low, high in edges)])
    return rows


def nats(value: float, unit: float) -> str:
    """With two digits of the tolerance, and a true minus sign."""
    digits = max(0, 1 - int(np.floor(np.log10(unit))))
    return f"{value:,.{digits}f}".replace("-", "−")


def row(key: str, fit: dict[str, Any]) -> list[object]:
    """A line of the table of fits."""
    name, epochs, seed = key.split(" | ")
    unit = fit["settings"]["tolerance"]
    gain, foretold = fit["gains"][-1], fit["forecast"].get(str(LONGER))
    last = f"{nats(gain['value'], unit)} ± {nats(gain['high'] - gain['value'], unit)}"
    ends = [nats(foretold[end], unit) for end in ("low", "high")] if foretold else []
    return [
        name, fit["decoder"], fit["data"], seed.split()[1], epochs.split()[0], nats(unit, unit),
        fit["verdict"], last, nats(fit["test"], unit), " … ".join(ends) or "–",
        *(nats(fit[end], unit) if end in fit else "–" for end in ("test_longer", "gained")),
        {True: "yes", False: "**no**", None: "–"}[is_right(fit)],
    ]  # fmt: skip


COLORS = dict(zip(VERDICTS, ("#009E73", "#0072B2", "#D55E00", "#777777"), strict=True))
MARKS = dict(zip(VERDICTS, "os^x", strict=True))


def draw(fits: list[dict[str, Any]]) -> None:
    """What the verdict saw, and what was foretold, against what 8 times the training gained."""
    figure, axes = new_figure(1, 2, figsize=(11, 5.4), sharey=True)
    ticks = [-1000, -100, -10, -1, 0, 1, 10, 100, 1000]
    for ax in axes:
        ax.set(xscale="symlog", yscale="symlog", xticks=ticks, yticks=ticks)
        ax.tick_params(which="minor", length=0)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
    axes[0].axvline(1, color="0.5", lw=0.8, ls=":")
    axes[0].axhline(3, color="0.5", lw=0.8, ls=":")
    axes[1].plot([-1000, 1000], [-1000, 1000], color="0.5", lw=0.8, ls=":", zorder=0)
    axes[0].set(xlabel="gained by the last doubling (tolerances)", title="What the verdict saw",
                ylabel="gained by 8 times the training (tolerances)")  # fmt: skip
    axes[1].set(xlabel="foretold to be gained by it (tolerances)", title="What was foretold")
    for verdict, color in COLORS.items():
        chosen = [fit for fit in fits if fit["verdict"] == verdict and "gained" in fit]
        units = np.array([fit["settings"]["tolerance"] for fit in chosen])
        style: Any = {"color": color, "marker": MARKS[verdict], "ls": "", "ms": 5, "alpha": 0.8}
        gained = np.array([fit["gained"] for fit in chosen]) / units
        seen = np.array([fit["gains"][-1]["value"] for fit in chosen]) / units
        axes[0].plot(seen, gained, label=f"{verdict} ({len(chosen)})", **style)
        for fit, unit in zip(chosen, units, strict=True):
            if ends := fit["forecast"].get(str(LONGER)):
                low, middle, high = (
                    (fit["test"] - ends[k]) / unit for k in ("high", "value", "low")
                )
                axes[1].plot([low, high], 2 * [fit["gained"] / unit], color=color, lw=1, alpha=0.5)
                axes[1].plot(middle, fit["gained"] / unit, **style)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=4,
                  frameon=False)  # fmt: skip
    figure.alt = (
        f"Of {sum('gained' in fit for fit in fits)} fits, in tolerances: left, what 8 times the "
        "training gained against what the last doubling had gained, marked by verdict; right, "
        "against the forecast and its interval."
    )
    save_figure(figure, "convergence", HERE)


def unmeasured(results: dict[str, dict[str, Any]]) -> str:
    """What is still missing, in a sentence; "" if nothing is."""
    missing = [name for name, *rest in wanted() if key_of(name, *rest) not in results]
    if not missing:
        return ""
    return f"Not measured yet: {len(missing)} fits ({', '.join(dict.fromkeys(missing))}).\n\n"


def rates() -> str:
    """The section on the peak rate; "" if it was not measured."""
    path = HERE / "convergence_rates.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    epochs, unit = (found["half"][key] for key in ("epochs", "tolerance"))
    rows = [
        [f"{run['lr']:g}, {name}", nats(run["train"], unit), nats(run["test"], unit),
         f"{nats(run['gained'], unit)} ± {nats(1.96 * run['gained_se'], unit)}" if run["gained"]
         else "–"]
        for name, run in found.items()
    ]  # fmt: skip
    return f"""## The peak rate of the report's model

Its run of {epochs} epochs with other peak rates, seed 0. Neither may gain more than the tolerance,
{nats(unit, unit)} nats.

{table(["peak rate", "train −ELBO", "test −ELBO", "gained"], rows)}
"""


def report(results: dict[str, dict[str, Any]]) -> None:
    """Write the tables, and draw the figure."""
    fits = list(results.values())
    head = ["configuration", "decoder", "points", "seed", "epochs", "tolerance", "verdict",
            "gained by the last doubling", "test −ELBO", "foretold for 8 ×", "8 × trained",
            "gained", "right"]  # fmt: skip
    where = {" · ".join(f"{k} {v}" for k, v in f["machine"].items() if k != "date") for f in fits}
    draw(fits)
    (HERE / "convergence.md").write_text(
        f"""# Is the verdict on convergence right?

Written by convergence.py. Each fit is judged from its runs of E/4, E/2 and E epochs and then
trained anew, from the same first weights, for 8 E epochs. The notebook's second seed is judged
only, because 8 E epochs of it take the better part of an hour.

## Goals

{table(["", "measured", "asked for"], goals(fits))}
“Converged” is right if the run 8 times as long gains no more than three tolerances, “still
improving” if it gains more than a third of one, “overfitting” if it does not gain.

## Verdicts, by what 8 times the training gained

{table(["verdict", "> 3 tolerances", "⅓ to 3", "0 to ⅓", "none"], confusion(fits))}
![Foretold against actual](convergence.png)

## Protocol

The tolerances follow from rules that were fixed before any run. A density: 0.01 nats per dimension,
what errors smaller by one per cent gain once σ follows them (7.84 nats on MNIST). A probability:
one per cent of what the dimensions cost when each is coded by itself, by its frequencies in the
training set (2.06 nats on binary MNIST). Most lengths are 4, 16, 64 and 256 epochs. They, the rates
and the forecast's shares come from earlier runs of the same kinds. What counts as too large a gap
between test and train was chosen among five rules by 112 fits, 110 of which are below: of fresh
fits somewhat fewer may be right.

A seed sets the first weights, the order and the noise. ± and intervals: 95 % over test points, the
forecast's 80 %.

{rates()}## Fits

{unmeasured(results)}Nats per data point; “points” are training + test.

{table(head, [row(key, fit) for key, fit in results.items()])}
{chr(10).join(f"*{place}*" for place in sorted(where))}
""",
        encoding="utf-8",
    )


def main() -> None:
    """Measure what is missing, and write the tables in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="these configurations")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    for name, seed, epochs in [] if asked.report else wanted():
        chosen = name in asked.only if asked.only else not CONFIGURATIONS[name].long
        if chosen and key_of(name, seed, epochs) not in read():
            fit = measure(name, seed, epochs)
            print(
                f"{key_of(name, seed, epochs)}: {fit['line']} Gained: {fit.get('gained', '-')}",
                flush=True,
            )
            # Read again: another process may have measured another configuration meanwhile.
            results = json.dumps(read() | {key_of(name, seed, epochs): fit}, indent=1)
            (HERE / "convergence.json").write_text(results + "\n")
    rates_file = HERE / "convergence_rates.json"
    if "notebook" in (asked.only or ()) and not asked.report and not rates_file.exists():
        rates_file.write_text(json.dumps(measure_rates(), indent=1) + "\n")
    report(read())


if __name__ == "__main__":
    main()
