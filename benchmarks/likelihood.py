"""How good are the lab's models? Test −ELBO and −log p(x) on MNIST, in units that compare.

    python benchmarks/likelihood.py                     # everything that is missing
    python benchmarks/likelihood.py --tune              # the candidates only
    python benchmarks/likelihood.py --only plain --seeds 0
    python benchmarks/likelihood.py --report            # tables from the numbers that are there

Each candidate trains once on the first 50,000 training images, and validation images, the other
10,000, choose among them. The chosen ones train on all 60,000 with three seeds, and each run looks
at the test images once, after its training. A run that is finished is kept, in likelihood.json or
likelihood_tuning.json, its model in build/likelihood, and neither is repeated: so an interrupted
benchmark goes on where it was. Delete them to measure anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _common import HERE, ROOT, machine, table
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))

import vae_data as data
import vae_helpers as lab
import vae_networks as networks
from vae_batches import Transform
from vae_diagnostics import bits_per_dim
from vae_runtime import seeded

RESULTS, TUNING = HERE / "likelihood.json", HERE / "likelihood_tuning.json"
TRAINED = ROOT / "build" / "likelihood"  # an interrupted benchmark trains no model twice
SHAPE, LATENTS, LEVELS = (1, 28, 28), 50, 4
VALIDATION, SAMPLES, SAMPLES_TUNING = 10_000, 5000, 100


@dataclass(frozen=True)
class Family:
    """What is asked of a kind of model."""

    title: str
    transform: Transform
    minutes: int  # of training on two cores, at most
    goal: tuple[float, float]  # at least, aim
    published: str  # what it compares with, and how far it is like for like


FAMILIES = {
    "plain": Family(
        "Gaussian prior, Bernoulli decoder", data.binarize, 4, (86.0, 85.3),
        "86.76, one stochastic layer (Burda et al. 2016, table 1). The prior, the training images "
        "and, but for the warm-up, the objective are the same; the networks are not: theirs have "
        "two hidden layers of 200, and train for 3,280 epochs",
    ),
    "best": Family(
        "autoregressive prior, Bernoulli decoder", data.binarize, 10, (83.0, 82.0),
        "84.78, one stochastic layer, and 82.90, two, both with the IWAE objective of 50 samples "
        "(the same table). Only the training images are the same: networks, prior and objective "
        "are others",
    ),
    "levels": Family(
        "autoregressive prior, categorical decoder", data.scale, 10, (1.235, 1.20),
        "1.39 bits per pixel, the VAE of BB-ANS (Townsend et al. 2019). The data are the same, "
        "networks, prior and decoder are others",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A model of a family, and how it is trained."""

    family: str
    decoder: str = "1 block"
    epochs: int = field(kw_only=True)
    batch_size: int = 256
    lr: float = 4e-3
    # Latents that are given up before the decoder can read them do not come back: at first they
    # are cheap (Sønderby et al. 2016).
    warm_up: int = 0  # epochs in which β rises from 0 to 1

    def model(self) -> lab.VAE:
        """The networks: 784 → 512 → a residual block → 50 latents, and a decoder."""
        encoder = lab.EncoderGaussian(networks.residual_mlp(SHAPE, 512, 1, 2 * LATENTS))
        shape = (LEVELS, *SHAPE[1:]) if self.family == "levels" else SHAPE
        net = DECODERS[self.decoder](shape)
        decoder = (
            lab.DecoderCategorical(net, LEVELS)
            if self.family == "levels"
            else lab.DecoderBernoulli(net)
        )
        if self.family == "plain":  # the KL from one sample, whose gradient has less noise
            return lab.VAE(encoder, decoder, lab.PriorGaussian(LATENTS), analytic_kl=False)
        return lab.VAE(encoder, decoder, lab.PriorAutoregressive(LATENTS))


DECODERS: dict[str, Callable[[Any], nn.Module]] = {
    "1 block": lambda shape: networks.residual_mlp(LATENTS, 512, 1, shape),
    "2 blocks": lambda shape: networks.residual_mlp(LATENTS, 512, 2, shape),
    "convolutions": lambda shape: networks.conv_decoder(LATENTS, shape, 16),
}
CANDIDATES = {
    "plain": Candidate("plain", epochs=60, warm_up=20),
    "plain, 2 blocks": Candidate("plain", "2 blocks", epochs=46, warm_up=15),
    "plain, convolutions": Candidate("plain", "convolutions", epochs=38, warm_up=13),
    "plain, 512": Candidate("plain", epochs=84, batch_size=512, lr=6e-3, warm_up=28),
    "plain, 2 blocks, 512": Candidate(
        "plain", "2 blocks", epochs=66, batch_size=512, lr=6e-3, warm_up=22
    ),
    "plain, 512, warm-up 10": Candidate("plain", epochs=64, batch_size=512, warm_up=10),
    "plain, 512, warm-up 4": Candidate("plain", epochs=64, batch_size=512, warm_up=4),
    "plain, 512, longer": Candidate("plain", epochs=72, batch_size=512, warm_up=10),
    "best": Candidate("best", epochs=64),
    "best, 2 blocks": Candidate("best", "2 blocks", epochs=64),
    "best, 2 blocks, longer": Candidate("best", "2 blocks", epochs=105),
    "best, 2 blocks, 512": Candidate("best", "2 blocks", epochs=100, batch_size=512),
    "levels": Candidate("levels", epochs=40),
    "levels, convolutions": Candidate("levels", "convolutions", epochs=36),
}


def settings(name: str) -> dict[str, Any]:
    """What a run is recognised by: one of other settings is not of this candidate."""
    return vars(CANDIDATES[name])


def train(name: str, seed: int, points: Tensor) -> tuple[lab.VAE, lab.History, dict[str, str]]:
    """The trained model, its history and the machine; from ``build/`` where it has been trained."""
    asked = CANDIDATES[name]
    torch.manual_seed(seed)
    vae = asked.model()
    stem = "-".join(map(str, [name, seed, len(points), *settings(name).values()]))
    weights, curve = TRAINED / f"{stem}.pt", TRAINED / f"{stem}.npz"
    if weights.exists():
        state = torch.load(weights, weights_only=True)
        vae.load_state_dict(state["model"])
        return vae, lab.History.load(curve), state["machine"]

    history = lab.fit(
        vae, points, points[-1000:],  # fit wants a test set: here it is no test
        epochs=asked.epochs, batch_size=asked.batch_size, lr=asked.lr, seed=seed,
        transform=FAMILIES[asked.family].transform, kl_warmup=asked.warm_up, keep_points=1000,
        progress=lambda history: print(history, flush=True),
    )  # fmt: skip
    where = machine(threads=torch.get_num_threads())
    TRAINED.mkdir(parents=True, exist_ok=True)
    history.save(curve)
    torch.save({"model": vae.state_dict(), "machine": where}, weights)
    return vae, history, where


def measure(
    name: str, seed: int, points: Tensor, looked_at: Tensor, samples: int
) -> dict[str, Any]:
    """Train a candidate on some images and evaluate it on others."""
    vae, history, where = train(name, seed, points)
    family = CANDIDATES[name].family
    device = next(vae.parameters()).device
    with seeded(0):  # the same binary images and noise for every model and seed
        x = FAMILIES[family].transform(looked_at).to(device)
        elbo = lab.evaluate(vae, x)
        found = {
            "settings": settings(name), "seconds": float(history.seconds.sum()),
            "train": float(history.train_mean[-1]),
            "elbo": float(-elbo.value.mean()), "elbo_se": standard_error(elbo.value),
            "machine": where,
        }  # fmt: skip
        if family == "levels":  # its −ELBO is what is asked for
            return found
        # The networks compute as they did in training: their rounding is part of the model.
        bound = vae.log_marginal(x, samples, precision="auto").cpu()
    return found | {"log_p": float(-bound.mean()), "log_p_se": standard_error(bound)}


def standard_error(values: Tensor) -> float:
    """Of an average over images."""
    return float(values.std() / len(values) ** 0.5)


def criterion(run: dict[str, Any]) -> float:
    """By what a candidate is chosen: −log p(x), or −ELBO where that is asked for."""
    return float(run["log_p" if "log_p" in run else "elbo"])


def measured(runs: dict[str, dict[str, Any]], key: str, name: str) -> bool:
    """Whether there is a run under this key that has the settings of the candidate."""
    return key in runs and is_current(runs[key], name)


def is_current(run: dict[str, Any], name: str) -> bool:
    """Whether a run has the settings of the candidate of this name, if there is one."""
    return name in CANDIDATES and run["settings"] == settings(name)


def chosen(tuning: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The best candidate of each family whose candidates are all measured."""
    found = {}
    for family in FAMILIES:
        names = [name for name, asked in CANDIDATES.items() if asked.family == family]
        if all(measured(tuning, name, name) for name in names):
            found[family] = min(names, key=lambda name: criterion(tuning[name]))
    return found


def finals(
    results: dict[str, dict[str, Any]], tuning: dict[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each family's winner on all training images, as far as there are any."""
    found = {
        family: [run for key, run in results.items()
                 if key.rpartition("-")[0] == winner and measured(results, key, winner)]
        for family, winner in chosen(tuning).items()
    }  # fmt: skip
    return {family: runs for family, runs in found.items() if runs}


# ------------------------------------------------------------------------------------ report


def shown(family: str, nats: list[float], error: float | None = None) -> str:
    """Mean over seeds, or one number, ± a standard error: nats, or bits per pixel of levels."""
    unit, digits = (bits_per_dim(1.0, 784), 4) if family == "levels" else (1.0, 2)
    text = f"{unit * mean(nats):.{digits}f}"
    if error is None and len(nats) > 1:
        error = stdev(nats) / len(nats) ** 0.5
    return text if error is None else f"{text} ± {unit * error:.{digits}f}"


def goals(by_family: dict[str, list[dict[str, Any]]]) -> list[list[object]]:
    """What was asked and what was measured."""
    rows: list[list[object]] = []
    for family, runs in by_family.items():
        asked = FAMILIES[family]
        what = "−ELBO, bits per pixel" if family == "levels" else "−log p(x), nats"
        least, aim = asked.goal
        rows.append([f"{asked.title}: {what}", len(runs),
                     shown(family, [criterion(run) for run in runs]),
                     f"≤ {least:g}", f"{aim:g}"])  # fmt: skip
        minutes = max(run["seconds"] for run in runs) / 60
        rows.append([f"{asked.title}: minutes of training, longest", len(runs), f"{minutes:.1f}",
                     f"≤ {asked.minutes}", ""])  # fmt: skip
    return rows


HEAD = ["configuration", "decoder", "seed", "epochs", "batch", "peak rate", "warm-up",
        "training, s", "threads", "train −ELBO", "−ELBO", "−log p(x)"]  # fmt: skip


def row(name: str, seed: int | str, run: dict[str, Any]) -> list[object]:
    """A line for a run."""
    asked = run["settings"]
    ends = [
        shown(asked["family"], [run[key]], run[f"{key}_se"]) if key in run else "–"
        for key in ("elbo", "log_p")
    ]
    return [
        name if is_current(run, name) else f"{name} (no longer a candidate)",
        asked["decoder"], seed, asked["epochs"], asked["batch_size"], f"{asked['lr']:g}",
        asked["warm_up"], f"{run['seconds']:.0f}", run["machine"]["threads"],
        shown(asked["family"], [run["train"]]), *ends,
    ]  # fmt: skip


PROTOCOL = f"""\
MNIST as published: 60,000 training and 10,000 test images. Validation images, the last
{VALIDATION:,} of the training set, choose: each candidate trains once on the other 50,000, and the
lowest validation −log p(x) of its kind wins (for levels, −ELBO). The winners train on all 60,000
with three seeds, and each run sees the test images once, after its last epoch. Not all was clean:
benchmarks/README.md tells what was known of test numbers when the candidates were drawn up.
Candidates are laid out for the limit of time on two quiet cores.

All train on the ELBO of one sample of z, with β = 1; in a warm-up β rises to 1 over the first
epochs. The encoders: 784–512, a residual block, {LATENTS} latents. The decoders: one or two
residual blocks of 512, or `conv_decoder` of width 16. Bernoulli decoders: pixels binarised anew
each time they are seen in training (dynamic binarisation); validation and test images binarised
once, the same for all rows. Levels: raw 8-bit pixels, the probability of the very level, not a
density. −ELBO from one sample of z per image; −log p(x) by importance sampling, {SAMPLES:,} samples
for each test image and {SAMPLES_TUNING} for each validation image, which is an upper bound on
average, too, and closer. ± in the tables of runs is the standard error over images, which all seeds
share. The time of training includes a look at 1,000 training images after each epoch. The networks
compute in the precision that `fit` picks for the machine, in training and in evaluation alike;
log-probabilities and their sums are float32.\
"""


def report(results: dict[str, dict[str, Any]], tuning: dict[str, dict[str, Any]]) -> None:
    """Write the tables."""
    winners = chosen(tuning).values()
    tried = [
        [f"**{name}**", *row(name, 0, run)[1:]] if name in winners else row(name, 0, run)
        for name, run in tuning.items()
    ]
    where = {
        " · ".join(f"{k} {v}" for k, v in run["machine"].items() if k not in ("threads", "date"))
        for run in [*results.values(), *tuning.values()]
    }
    published = "\n".join(f"- {asked.title}: {asked.published}." for asked in FAMILIES.values())
    runs = [row(*key.rsplit("-", 1), run) for key, run in sorted(results.items())]
    (HERE / "likelihood.md").write_text(
        f"""# Likelihood

Written by likelihood.py; all numbers are its own. Levels are in bits per pixel, all else in nats.

## Goals

{table(["", "seeds", "measured", "at least", "aim"], goals(finals(results, tuning)))}
Mean over seeds ± the standard error over seeds.

## Protocol

{PROTOCOL}

## Runs

{table(HEAD, runs)}
## What was tried, on validation images

The winners are bold.

{table(HEAD, tried)}
## Beside published numbers

From the papers, not measured here, on the test set; with dynamic binarisation, where ink or none is
modelled.

{published}

{chr(10).join(f"*{place}*" for place in sorted(where))}
""",
        encoding="utf-8",
    )


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What has been measured so far."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, key: str, run: dict[str, Any]) -> None:
    """Add a run to what has been measured, by this process or by another one meanwhile."""
    path.write_text(json.dumps(read(path) | {key: run}, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FAMILIES, help="one kind of model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="the candidates only")
    parser.add_argument("--report", action="store_true", help="write the tables, measure nothing")
    asked = parser.parse_args()
    families = [asked.only] if asked.only else list(FAMILIES)
    if not asked.report:
        images = data.load_images("mnist", download=False)
        tune(families, images.train.images)
        for seed in [] if asked.tune else asked.seeds:
            for family in families:
                final(chosen(read(TUNING))[family], seed, images)
    report(read(RESULTS), read(TUNING))


def tune(families: list[str], points: Tensor) -> None:
    """Measure the candidates that are missing on the validation images."""
    for name, candidate in CANDIDATES.items():
        if candidate.family in families and not measured(read(TUNING), name, name):
            print(f"candidate {name}", flush=True)
            rest, held_out = points[:-VALIDATION], points[-VALIDATION:]
            keep(TUNING, name, measure(name, 0, rest, held_out, SAMPLES_TUNING))


def final(name: str, seed: int, images: data.Images) -> None:
    """Train a winner on all training images, and look at the test images."""
    if not measured(read(RESULTS), f"{name}-{seed}", name):
        print(f"{name}, seed {seed}", flush=True)
        run = measure(name, seed, images.train.images, images.test.images, SAMPLES)
        keep(RESULTS, f"{name}-{seed}", run)


if __name__ == "__main__":
    main()
