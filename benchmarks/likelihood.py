"""How good are the lab's models? Test −ELBO and −log p(x) on MNIST, in units that compare.

    python benchmarks/likelihood.py                      # everything: three seeds of each
    python benchmarks/likelihood.py --only plain --seeds 0
    python benchmarks/likelihood.py --report             # tables from the numbers that are there

A run that is finished is kept in likelihood.json, a trained model in build/likelihood, and neither
is repeated, so an interrupted benchmark goes on where it was; delete both to measure anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from _common import HERE, ROOT, machine, table

sys.path.insert(0, str(ROOT))

import vae_data as data
import vae_helpers as lab
import vae_networks as networks
from vae_batches import Transform
from vae_diagnostics import bits_per_dim
from vae_runtime import network_dtype, seeded

RESULTS = HERE / "likelihood.json"
TRAINED = ROOT / "build" / "likelihood"  # an interrupted benchmark trains no model twice
SHAPE = (1, 28, 28)
LATENTS = 50


@dataclass(frozen=True)
class Configuration:
    """One line of the table: a model, how it is trained, and what is asked of it."""

    title: str
    model: Callable[[], lab.VAE]
    transform: Transform
    epochs: int
    minutes: int  # of training, at most
    batch_size: int = 256
    lr: float = 4e-3
    # Latents that are given up before the decoder can read them do not come back: at first they
    # are cheap (Sønderby et al. 2016).
    warm_up: int = 0  # epochs in which β rises from 0 to 1
    samples: int = 5000  # of the importance-weighted estimate


def encoder() -> lab.EncoderGaussian:
    """784 → 512 → residual block of 512 → location and scale of 50 latents."""
    return lab.EncoderGaussian(networks.residual_mlp(SHAPE, 512, 1, 2 * LATENTS))


def plain() -> lab.VAE:
    """N(0, I) for a prior."""
    net = networks.residual_mlp(LATENTS, 512, 1, SHAPE)
    prior = lab.PriorGaussian(LATENTS)
    return lab.VAE(encoder(), lab.DecoderBernoulli(net), prior, analytic_kl=False)


def best() -> lab.VAE:
    """The same networks, and a learned prior."""
    net = networks.residual_mlp(LATENTS, 512, 1, SHAPE)
    return lab.VAE(encoder(), lab.DecoderBernoulli(net), lab.PriorAutoregressive(LATENTS))


def levels() -> lab.VAE:
    """The same again for raw grey levels."""
    components = 4
    net = networks.residual_mlp(LATENTS, 512, 1, (components, *SHAPE[1:]))
    decoder = lab.DecoderCategorical(net, components)
    return lab.VAE(encoder(), decoder, lab.PriorAutoregressive(LATENTS))


CONFIGURATIONS = {
    "plain": Configuration(
        "Gaussian prior, Bernoulli decoder", plain, data.binarize, 54, 4, warm_up=18
    ),
    "best": Configuration(
        "autoregressive prior, Bernoulli decoder", best, data.binarize, 64, 10, lr=3e-3, samples=500
    ),
    "levels": Configuration(
        "autoregressive prior, categorical decoder", levels, data.scale, 24, 10, samples=100
    ),
}


def train(name: str, seed: int, images: data.Images) -> tuple[lab.VAE, lab.History, dict[str, str]]:
    """The trained model, its history and the machine; from ``build/`` where it has been trained."""
    asked = CONFIGURATIONS[name]
    torch.manual_seed(seed)
    vae = asked.model()
    stem = "-".join(map(str, [name, seed, *settings(name).values()]))
    weights, curve = TRAINED / f"{stem}.pt", TRAINED / f"{stem}.npz"
    if weights.exists():
        state = torch.load(weights, weights_only=True)
        vae.load_state_dict(state["model"])
        return vae, lab.History.load(curve), state["machine"]

    history = lab.fit(
        vae,
        images.train,
        images.test,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        lr=asked.lr,
        transform=asked.transform,
        seed=seed,
        kl_warmup=asked.warm_up,
        keep_points=len(images.test),
        progress=lambda history: print(history, flush=True),
    )
    where = machine(threads=torch.get_num_threads())
    TRAINED.mkdir(parents=True, exist_ok=True)
    history.save(curve)
    torch.save({"model": vae.state_dict(), "machine": where}, weights)
    return vae, history, where


def measure(name: str, seed: int, images: data.Images) -> dict[str, Any]:
    """Train and evaluate one configuration with one seed."""
    asked = CONFIGURATIONS[name]
    vae, history, where = train(name, seed, images)
    device = next(vae.parameters()).device
    with seeded(0):  # the same binary test set for every model and seed
        x = asked.transform(images.test.images).to(device)
        # The networks compute as they did in training: their rounding is part of the model.
        bound = vae.log_marginal(x, asked.samples, chunk=1000, precision="auto").cpu()
    elbo = lab.evaluate(vae, x)
    return {
        "settings": settings(name),
        "epochs": len(history),
        "seconds": float(history.seconds.sum()),
        "train": float(history.train_mean[-1]),
        "elbo": float(-elbo.value.mean()),
        "elbo_se": standard_error(elbo.value),
        "rate": float(elbo.kl.mean()),
        "log_p": float(-bound.mean()),
        "log_p_se": standard_error(bound),
        "precision": str(network_dtype("auto", device) or torch.float32).removeprefix("torch."),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "machine": where,
    }


def settings(name: str) -> dict[str, Any]:
    """What a run is recognised by: a run of other settings is not of this configuration."""
    asked = CONFIGURATIONS[name]
    return {
        key: getattr(asked, key) for key in ("epochs", "batch_size", "lr", "warm_up", "samples")
    }


def standard_error(values: torch.Tensor) -> float:
    """Of an average over images."""
    return float(values.std() / len(values) ** 0.5)


def number(values: list[float], digits: int = 2) -> str:
    """Mean over seeds ± its standard error, minus signs as in print."""
    text = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text.replace("-", "−")


def goals(name: str, runs: list[dict[str, Any]]) -> list[list[str]]:
    """Per goal: what, measured, at least, aim."""
    log_p, elbo = ([run[key] for run in runs] for key in ("log_p", "elbo"))
    training = max(run["seconds"] for run in runs) / 60
    title, most = CONFIGURATIONS[name].title, CONFIGURATIONS[name].minutes
    rows = {
        "plain": [["−log p(x), nats", number(log_p), "≤ 86.35", "85.5"]],
        "best": [
            ["−log p(x), nats", number(log_p), "≤ 83.5", "82.0"],
            ["−ELBO, nats", number(elbo), "≤ 87", "85"],
        ],
        "levels": [
            ["−ELBO, bits per pixel", number([bits(nats) for nats in elbo], 4), "≤ 1.39", "1.25"]
        ],
    }[name]
    return [
        *([f"{title}: {what}", *rest] for what, *rest in rows),
        [f"{title}: minutes of training, longest", f"{training:.1f}", f"≤ {most}", ""],
    ]


def bits(nats: float) -> float:
    """Bits per pixel of a probability of levels."""
    return bits_per_dim(nats, 784)


def unit_of(name: str) -> tuple[str, float, int]:
    """Unit of a configuration's numbers, its share of a nat, and the digits that it deserves."""
    return ("bits", bits(1), 4) if name == "levels" else ("nats", 1.0, 2)


PROTOCOL = f"""\
MNIST as published: 60,000 training and 10,000 test images, no validation split. Nothing is chosen
by the test set within a run: the last epoch counts, not the best. The configurations themselves
were found while looking at test numbers, as benchmarks/README.md tells. β = 1, but for the plain
model's first {CONFIGURATIONS["plain"].warm_up} epochs, in which it rises from 0.2. Bernoulli
decoders: pixels binarised anew each time they are seen in training (dynamic binarisation); the test
images binarised once, the same for all rows. Levels: raw 8-bit pixels, the probability of the very
level, not a density. −ELBO from one sample of z per image; −log p(x) by importance sampling, which
is an upper bound too, and closer. In the table of runs ± is the standard error over images, which
all seeds share. The networks compute in the precision that `fit` picks for the machine, in training
and in evaluation alike; log-probabilities and their sums are float32. The time is that of all
epochs, each with its evaluation on the test set, on as many threads as the column says.\
"""

PUBLISHED = """\
Dynamic binarisation, test set, nats; from the papers, not measured here.

| model | −log p(x) | training |
| --- | ---: | ---: |
| VAE, one stochastic layer (Burda et al. 2016, table 1) | 86.76 | 3,280 epochs |
| the same with the IWAE objective, k = 50 | 84.78 | 3,280 epochs |
| two stochastic layers, IWAE, k = 50 | 82.90 | 3,280 epochs |

Raw 8-bit MNIST: 1.39 bits per pixel is what the VAE of BB-ANS needs (Townsend et al. 2019).\
"""


def table_of_runs(results: dict[str, dict[str, Any]]) -> str:
    """A line for each run."""
    rows = []
    for key, run in sorted(results.items()):
        name, _, seed = key.rpartition("-")
        unit, scale, digits = unit_of(name)
        rows.append(
            [
                name, seed, run["epochs"], f"{run['seconds']:.0f}",
                run["machine"]["threads"], unit,
                f"{scale * run['train']:.{digits}f}",
                f"{scale * run['elbo']:.{digits}f} ± {scale * run['elbo_se']:.{digits}f}",
                f"{scale * run['log_p']:.{digits}f} ± {scale * run['log_p_se']:.{digits}f}",
                run["settings"]["samples"],
            ]
        )  # fmt: skip
    head = [
        "configuration", "seed", "epochs", "training, s", "threads", "unit", "train −ELBO",
        "test −ELBO", "test −log p(x)", "samples",
    ]  # fmt: skip
    return table(head, rows)


def report(results: dict[str, dict[str, Any]]) -> None:
    """Write the tables."""
    by_name = {
        name: [run for key, run in sorted(results.items()) if key.startswith(f"{name}-")]
        for name in CONFIGURATIONS
    }
    done = {name: runs for name, runs in by_name.items() if runs}
    asked = ["", "measured", "at least", "aim"]
    seeds = ", ".join(f"{name}: {len(runs)}" for name, runs in done.items())
    over_images = ", ".join(
        f"{scale * max(run['elbo_se'] for run in done[name]):.{digits}f} {unit} ({name})"
        for name, (unit, scale, digits) in ((name, unit_of(name)) for name in done)
    )
    legend = "".join(
        f"- {name}: {CONFIGURATIONS[name].title}; {runs[0]['parameters']:,} parameters\n"
        for name, runs in done.items()
    )
    where = {
        " · ".join(f"{k} {v}" for k, v in run["machine"].items() if k != "threads")
        for run in results.values()
    }
    machines = "\n\n".join(f"*{place}*" for place in sorted(where))
    (HERE / "likelihood.md").write_text(
        f"""# Likelihood

Written by likelihood.py; all numbers are of its last run.

## Goals

{table(asked, [row for item in done.items() for row in goals(*item)])}
Mean over seeds ({seeds}) ± the standard error over seeds. The standard error of −ELBO over the
10,000 test images is {over_images}; it is common to all seeds, and that of −log p(x) is no larger.

## Protocol

{PROTOCOL}

## Runs

{table_of_runs(results)}
{legend}
{machines}

## Beside published numbers

{PUBLISHED}
""",
        encoding="utf-8",
    )


def read() -> dict[str, dict[str, Any]]:
    """What has been measured so far, of the present configurations."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {k: r for k, r in found.items() if r["settings"] == settings(k.rpartition("-")[0])}


def main() -> None:
    """Measure what is missing, and write the tables after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CONFIGURATIONS, help="one configuration")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="write the tables, measure nothing")
    asked = parser.parse_args()
    results = read()
    names = [asked.only] if asked.only else list(CONFIGURATIONS)
    images = None if asked.report else data.load_images("mnist", download=False)
    for seed in asked.seeds if images else []:
        for name in names:
            if f"{name}-{seed}" not in results:
                print(f"{name}, seed {seed}", flush=True)
                run = measure(name, seed, images)
                # Read again: another process may have measured another configuration meanwhile.
                results = read() | {f"{name}-{seed}": run}
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    report(read())


if __name__ == "__main__":
    main()
