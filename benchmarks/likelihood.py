"""How good are the lab's models? Test −ELBO and −log p(x) on MNIST, in units that compare.

    python benchmarks/likelihood.py --tune           # the candidates, on validation images
    python benchmarks/likelihood.py                  # what is missing; some four hours

Each candidate trains once on the first 50,000 training images, and validation images, the other
10,000, choose among them. The chosen ones train on all 60,000 with three seeds, and each run looks
at the test images once, after its training. A finished run is a line of likelihood.jsonl, from
which likelihood.md is written; an unfinished one goes on from its checkpoint in build/likelihood.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import torch
from _common import HERE, ROOT, machine, table
from torch import Tensor

sys.path.insert(0, str(ROOT))

from vae_helpers import VAE, DecoderBernoulli, EncoderGaussian, PriorGaussian
from vae_kit.batches import Transform
from vae_kit.data import Images, binarize, load_images, scale
from vae_kit.diagnostics import bits_per_dim, log_marginal
from vae_kit.evaluation import evaluate
from vae_kit.networks import conv_decoder, residual_mlp
from vae_kit.parts import DecoderCategorical, PriorAutoregressive
from vae_kit.seeds import seeded
from vae_kit.training import fit

RESULTS, REPORT = HERE / "likelihood.jsonl", HERE / "likelihood.md"
RUNS = ROOT / "build" / "likelihood"
SHAPE, LATENTS, LEVELS = (1, 28, 28), 50, 4
REST, SAMPLES, SAMPLES_TUNING = 50_000, 5000, 100  # images to train candidates on
Run = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model of a family, and how it is trained."""

    family: str
    epochs: int
    blocks: int = 1  # of the decoder
    batch_size: int = 512
    lr: float = 2e-3
    # Latents that are given up before the decoder can read them do not come back: at first they
    # are cheap (Sønderby et al. 2016).
    warm_up: int = 0

    def model(self) -> VAE:
        """784 → 512 → a residual block → 50 latents, and a decoder."""
        encoder = EncoderGaussian(residual_mlp(SHAPE, 512, 1, 2 * LATENTS))
        if self.family == "levels":
            decoder = DecoderCategorical(conv_decoder(LATENTS, (LEVELS, *SHAPE[1:]), 16), LEVELS)
            return VAE(encoder, decoder, PriorAutoregressive(LATENTS))
        bits = DecoderBernoulli(residual_mlp(LATENTS, 512, self.blocks, SHAPE))
        if self.family == "best":
            return VAE(encoder, bits, PriorAutoregressive(LATENTS))
        # The KL from one sample, whose gradient has less noise.
        return VAE(encoder, bits, PriorGaussian(LATENTS), analytic_kl=False)

    @property
    def transform(self) -> Transform:
        """Of raw images into the model's space."""
        return scale if self.family == "levels" else binarize


# Kinds of model: what each is, and the published number beside it.
FAMILIES = {
    "plain": ("Gaussian prior, Bernoulli decoder; −log p(x), nats",
              "86.76, one stochastic layer, 3,280 epochs (Burda et al. 2016, table 1)"),
    "best": ("autoregressive prior, Bernoulli decoder; −log p(x), nats",
             "84.78, one stochastic layer, and 82.90, two, both with the IWAE objective of 50 "
             "samples (the same table)"),
    "levels": ("autoregressive prior, categorical decoder; −ELBO, bits per pixel",
               "1.39, the VAE of BB-ANS (Townsend et al. 2019)"),
}  # fmt: skip
CANDIDATES = {
    "plain": Candidate("plain", 72, warm_up=10),
    "plain, higher rate": Candidate("plain", 72, lr=4e-3, warm_up=10),
    "plain, 2 blocks": Candidate("plain", 56, 2, warm_up=8),
    "best": Candidate("best", 100, 2),
    "best, higher rate": Candidate("best", 100, 2, lr=4e-3),
    "best, batch 256": Candidate("best", 80, 2, 256),
    "levels": Candidate("levels", 36, batch_size=256),
    "levels, higher rate": Candidate("levels", 36, batch_size=256, lr=4e-3),
}


def measure(name: str, seed: int, train: Tensor, looked_at: Tensor, samples: int) -> Run:
    """Train a candidate on some images and evaluate it on others."""
    asked = CANDIDATES[name]
    torch.manual_seed(seed)
    vae = asked.model()
    RUNS.mkdir(parents=True, exist_ok=True)
    history = fit(
        vae, train, train[-1000:],  # fit wants a test set: here it is no test
        epochs=asked.epochs, batch_size=asked.batch_size, lr=asked.lr, seed=seed,
        transform=asked.transform, kl_warmup=asked.warm_up, keep_points=1000,
        checkpoint=RUNS / f"{name.replace(', ', '-')}-{seed}-{len(train)}",
        progress=lambda history: print(history, flush=True),
    )  # fmt: skip
    if len(history) < asked.epochs:
        raise KeyboardInterrupt
    with seeded(0):  # the same binary images and noise for every model and seed
        x = asked.transform(looked_at).float().to(next(vae.parameters()).device)
        nats = {"elbo": -evaluate(vae, x).value}
        if asked.family != "levels":  # its −ELBO is what is asked for
            nats["log_p"] = -log_marginal(vae, x, samples).cpu()
    found = {key: [float(value.mean()), standard_error(value)] for key, value in nats.items()}
    return {
        "name": name, "seed": seed, "images": len(train), "settings": asdict(asked),
        "seconds": round(float(history.seconds.sum())), "train": float(history.train_end.mean[-1]),
        **found, "machine": machine(torch.get_num_threads()),
    }  # fmt: skip


def standard_error(values: Tensor) -> float:
    """Of an average over images."""
    return float(values.std() / len(values) ** 0.5)


def criterion(run: Run) -> float:
    """By what a candidate is chosen: −log p(x), or −ELBO where that is asked for."""
    return float((run.get("log_p") or run["elbo"])[0])


def read() -> list[Run]:
    """Finished runs of the present candidates."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    present = {name: asdict(asked) for name, asked in CANDIDATES.items()}
    return [run for run in map(json.loads, lines) if run["settings"] == present.get(run["name"])]


def chosen(family: str, runs: list[Run]) -> str | None:
    """The best candidate of a family on validation images, if all of its candidates are there."""
    names = {name for name, asked in CANDIDATES.items() if asked.family == family}
    tried = [run for run in runs if run["name"] in names and run["images"] == REST]
    if {run["name"] for run in tried} != names:
        return None
    return str(min(tried, key=criterion)["name"])


# ------------------------------------------------------------------------------------ report


def shown(family: str, nats: float, error: float | None = None) -> str:
    """A number ± its standard error: nats, or bits per pixel of levels."""
    unit, digits = (bits_per_dim(1.0, 784), 4) if family == "levels" else (1.0, 2)
    text = f"{unit * nats:.{digits}f}"
    return text if error is None else f"{text} ± {unit * error:.{digits}f}"


def row(run: Run) -> list[object]:
    """A line for a run."""
    asked = CANDIDATES[run["name"]]
    ends = [shown(asked.family, *run[key]) if key in run else "–" for key in ("elbo", "log_p")]
    return [
        run["name"], run["seed"], asked.blocks, asked.epochs, asked.batch_size, f"{asked.lr:g}",
        asked.warm_up, f"{run['seconds'] / 60:.1f}", shown(asked.family, run["train"]), *ends,
    ]  # fmt: skip


HEAD = ["candidate", "seed", "blocks", "epochs", "batch", "rate", "warm-up", "minutes",
        "train −ELBO", "−ELBO", "−log p(x)"]  # fmt: skip
PROTOCOL = f"""\
Written by likelihood.py. Validation images, the last 10,000 of MNIST's training set, choose: each
candidate trains once on the other 50,000, and the lowest −log p(x) of its kind wins (for levels,
−ELBO). The winners train on all 60,000 with three seeds, and each run sees the test images once,
after its last epoch. Encoders: 784–512, a residual block, {LATENTS} latents. Decoders: residual
blocks of 512, or for levels `conv_decoder` of width 16. Bernoulli decoders: pixels binarised anew
each time they are seen in training; validation and test images binarised once, the same for all.
Levels: raw 8-bit pixels, the probability of the very level. −ELBO from one sample of z per image;
−log p(x) by importance sampling, {SAMPLES:,} samples for each test image and {SAMPLES_TUNING} for
each validation image: an upper bound on average, too, and closer. ± is the standard error, over
images in the tables of runs, over seeds above them. Published numbers are from the papers:
training and test images are the same, networks, priors and lengths are not.
"""


def report(runs: list[Run]) -> None:
    """Write the tables."""
    rows = []
    for family, (title, published) in FAMILIES.items():
        winner = chosen(family, runs)
        finals = [run for run in runs if run["name"] == winner and run["images"] == 60_000]
        if finals:
            nats = [criterion(run) for run in finals]
            error = stdev(nats) / len(nats) ** 0.5 if len(nats) > 1 else None
            minutes = max(run["seconds"] for run in finals) / 60
            rows.append([title, len(nats), shown(family, mean(nats), error), f"{minutes:.1f}",
                         published])  # fmt: skip
    head = ["", "seeds", "measured", "minutes of training, longest", "published"]
    tested = [row(run) for run in runs if run["images"] == 60_000]
    where = "\n".join(sorted({f"*{run['machine']}*" for run in runs}))
    REPORT.write_text(
        f"# Likelihood\n\n{PROTOCOL}\n{table(head, rows)}\n## Test images\n\n"
        f"{table(HEAD, tested)}\n## Validation images\n\n"
        f"{table(HEAD, [row(run) for run in runs if run['images'] == REST])}\n{where}\n",
        encoding="utf-8",
    )


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="the candidates only")
    asked = parser.parse_args()
    images = load_images("mnist", download=False)
    for name in CANDIDATES:
        once(name, 0, images, tuning=True)
    for seed in () if asked.tune else range(3):
        for family in FAMILIES:
            once(str(chosen(family, read())), seed, images, tuning=False)
    report(read())


def once(name: str, seed: int, images: Images, tuning: bool) -> None:
    """Measure a run and keep it, unless it is there."""
    train, test, samples = images.train.images, images.test.images, SAMPLES
    if tuning:
        train, test, samples = train[:REST], train[REST:], SAMPLES_TUNING
    if any((r["name"], r["seed"], r["images"]) == (name, seed, len(train)) for r in read()):
        return
    print(f"{name}, seed {seed}", flush=True)
    run = measure(name, seed, train, test, samples)
    with RESULTS.open("a") as file:
        file.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
