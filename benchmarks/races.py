"""Two races on MNIST: seconds per epoch, and seconds until the test −ELBO that other loops reach.

    python benchmarks/races.py --tune     # a rate and a length for fit, on validation images
    python benchmarks/races.py            # the race, about ten minutes on a quiet machine

Each contestant is a process of its own and trains one epoch a turn; turns alternate in an order
drawn anew each round, and while one trains the others sleep. pythae is installed into
build/bench-venv, which sees this environment's packages: one PyTorch for all.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import HERE, ROOT, machine, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

sys.path.insert(0, str(ROOT))

from vae_helpers import VAE, DecoderBernoulli, EncoderGaussian, PriorGaussian, positive
from vae_kit.data import binarize, load_images
from vae_kit.history import History
from vae_kit.settings import Settings
from vae_kit.training import fit

RESULTS, REPORT = HERE / "races.json", HERE / "races.md"
BENCH_VENV = ROOT / "build" / "bench-venv"
LATENTS, EPOCHS, HELD_OUT = 20, 18, 10_000
OTHERS = ("textbook loop", "pythae")
LENGTHS, RATES = (6, 7, 8), (4e-3, 5e-3, 8e-3)
Answer = dict[str, Any]

# ------------------------------------------------------------------------- in a contestant


def images(held_out: bool) -> tuple[Tensor, Tensor]:
    """MNIST as flat uint8 tensors; the last training images may stand in for the test set."""
    mnist = load_images("mnist", download=False)
    train, test = mnist.train.images.flatten(1), mnist.test.images.flatten(1)
    return (train[:-HELD_OUT], train[-HELD_OUT:]) if held_out else (train, test)


def networks(seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    """The network of all: 784–400–2·20 and 20–400–784, ReLU, the same first weights."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * LATENTS))
    return encoder, nn.Sequential(nn.Linear(LATENTS, 400), nn.ReLU(), nn.Linear(400, 784))


class Turns:
    """One turn per line of standard input, one line of JSON on standard output per turn."""

    def __init__(self, test: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        grey = test.float() / 255
        # The same black and white images and the same noise for all, whatever they trained with.
        self.x = (torch.rand(grey.shape, generator=generator) < grey).float()
        self.noise = torch.randn(len(test), LATENTS, generator=generator)
        self.reply = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's own talk

    def start(self, encoder: nn.Module, scale: Callable[[Tensor], Tensor], logits: Any) -> None:
        """Say what the weights stand for, and wait for the first turn."""
        self.encoder, self.scale, self.logits = encoder, scale, logits
        # The first optimizer of a process imports seconds' worth of torch, whoever makes it.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        self._tell({})

    def done(self, seconds: float | None = None) -> None:
        """Stop the clock, evaluate outside of it, report, and wait for the next turn."""
        elapsed = time.perf_counter() - self.clock
        self._tell({"seconds": seconds or elapsed, "elbo": self._negative_elbo()})

    def _tell(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.reply, flush=True)
        if not sys.stdin.readline().strip():
            sys.exit()
        self.clock = time.perf_counter()

    @torch.no_grad()
    def _negative_elbo(self) -> float:
        """Test −ELBO in float32, one sample, analytic KL: the same few lines for everybody."""
        total = 0.0
        for x, noise in zip(self.x.split(1000), self.noise.split(1000), strict=True):
            mean, raw = self.encoder(x).chunk(2, dim=1)
            scale = self.scale(raw)
            total += float((0.5 * (mean**2 + scale**2 - 1) - scale.log()).sum())
            logits = self.logits(mean + scale * noise)
            total += float(F.binary_cross_entropy_with_logits(logits, x, reduction="sum"))
        return total / len(self.x)


def ours(turns: Turns, train: Tensor, length: int, runs: int, **settings: Any) -> None:
    """``fit`` itself, several runs of a length, each with another seed and other first weights.

    The test set has two points, and the evaluation of the training set after the run is outside
    the clock, because the others evaluate nothing.
    """
    for seed in range(runs):
        encoder, decoder = networks(seed)
        parts = EncoderGaussian(encoder), DecoderBernoulli(decoder), PriorGaussian(LATENTS)
        if seed == 0:
            turns.start(encoder, positive, decoder)
        turns.encoder, turns.logits = encoder, decoder

        def done(history: History) -> None:
            turns.done(history.seconds[-1] if len(history) == length else None)

        fit(
            VAE(*parts), train, train[:2], epochs=length, transform=binarize, seed=seed,
            progress=done, device="cpu", **settings,
        )  # fmt: skip


def textbook(turns: Turns, train: Tensor) -> None:
    """The loop of the official examples: ToTensor per image, DataLoader, .item() per step."""
    from torchvision import datasets, transforms

    folder = os.environ.get("VAE_LAB_DATA", "data")
    data = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(Subset(data, range(len(train))), batch_size=128, shuffle=True)
    encoder, decoder = networks()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    turns.start(encoder, lambda log_variance: torch.exp(0.5 * log_variance), decoder)
    for _ in range(EPOCHS):
        total = 0.0
        for grey, _label in loader:
            x = torch.bernoulli(grey.view(len(grey), -1))
            optimizer.zero_grad()
            mean, log_variance = encoder(x).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            image = torch.sigmoid(decoder(z))
            bce = F.binary_cross_entropy(image, x, reduction="sum")
            kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            loss = (bce + kl) / len(x)
            loss.backward()
            total += loss.item()
            optimizer.step()
        turns.done()


def pythae(turns: Turns, train: Tensor) -> None:
    """Pythae's own model, dataset and trainer, with the common network."""
    from pythae import models, trainers
    from pythae.data.datasets import BaseDataset
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers.training_callbacks import TrainingCallback

    encoder, decoder = networks()
    grey = train.float() / 255
    data = BaseDataset(torch.bernoulli(grey), torch.zeros(len(grey)))

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = encoder(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(decoder(z)))

    class Epoch(TrainingCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            # Its data path has no transform: all images are drawn anew at once, in place.
            torch.bernoulli(grey, out=data.data)

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            turns.done()

    parts: Any = Encoder(), Decoder()
    for part, net in zip(parts, (encoder, decoder), strict=True):
        part.net = net
    config = models.VAEConfig((784,), LATENTS, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as scratch:
        training = trainers.BaseTrainerConfig(
            output_dir=scratch, num_epochs=EPOCHS, learning_rate=1e-3, no_cuda=True,
            per_device_train_batch_size=128,
        )  # fmt: skip
        trainer = trainers.BaseTrainer(
            models.VAE(config, *parts), data, training_config=training, callbacks=[Epoch()]
        )
        turns.start(encoder, lambda log_variance: torch.exp(0.5 * log_variance), decoder)
        trainer.train()


def contest(name: str, settings: dict[str, Any]) -> None:
    """Be a contestant; ``held_out`` takes validation images for the test set."""
    train, test = images(settings.pop("held_out", False))
    others: dict[str, Callable[..., None]] = {"textbook loop": textbook, "pythae": pythae}
    others.get(name, ours)(Turns(test), train, **settings)


# ------------------------------------------------------------------------------ in the race


def bench_python() -> Path:
    """The interpreter of the peers' environment, which is made where it is missing."""
    python = BENCH_VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (stamp := BENCH_VENV / "installed").exists():
        venv.create(BENCH_VENV, with_pip=True, clear=True)
        site = sysconfig.get_path("purelib", vars={"base": str(BENCH_VENV)})
        Path(site, "lab.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.check_call([python, "-m", "pip", "install", "-q", "pythae"])
        stamp.touch()
    return python


class Contestant:
    """A process that trains an epoch a turn."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        python = bench_python() if name == "pythae" else sys.executable
        command = [python, __file__, "--contestant", name, json.dumps(settings)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"TQDM_DISABLE": "1"}
        self.process: Any = subprocess.Popen(command, env=environment, **pipes)
        self.answer()  # once it is ready

    def turn(self) -> dict[str, Any]:
        """Let it train an epoch."""
        print("go", file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        return dict(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        """Let it go."""
        self.process.communicate("\n")


def race(field: dict[str, dict[str, Any]], rounds: int) -> dict[str, Answer]:
    """Seconds and test −ELBO of each turn of each contestant, as long as it has any."""
    contestants = {name: Contestant(name, settings) for name, settings in field.items()}
    found: dict[str, Answer] = {name: {"seconds": [], "elbo": []} for name in field}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(contestants), len(contestants)):
            answer = contestants[name].turn()
            for key, values in found[name].items():
                values.append(answer[key])
            print(f"round {number + 1}, {name}: {answer['seconds']:.2f} s", flush=True)
            turns = field[name].get("length", 1) * field[name].get("runs", rounds)
            if number + 1 == min(rounds, turns):
                contestants.pop(name).end()
    return found


def lengths(precision: str, runs: int, **settings: Any) -> dict[str, dict[str, Any]]:
    """``fit`` with these settings, a contestant for each length."""
    return {
        f"{length} epochs, {precision}, rate {settings.get('lr', Settings.lr):g}": settings
        | {"length": length, "runs": runs or EPOCHS // length, "precision": precision}
        for length in LENGTHS
    }


def tune() -> dict[str, Any]:
    """What the textbook loop ends at, and fit by rate and length, on validation images."""
    held_out = {"held_out": True}
    field = {"textbook loop": held_out}
    for rate in RATES:
        for name, settings in lengths("auto", 1, lr=rate).items():
            field[name] = settings | held_out
    found = race(field, EPOCHS)
    return {name: run["elbo"][-1] for name, run in found.items()}


def measure() -> dict[str, Any]:
    """Run the race: the others, fit with its defaults by length, and in float32 alone."""
    field: dict[str, dict[str, Any]] = {name: {} for name in OTHERS}
    field |= lengths("auto", 0) | lengths("float32", 0)
    field["batch 128"] = {"length": EPOCHS, "runs": 1, "batch_size": 128}
    found = race(field, EPOCHS)
    runs = {name: found[name] | field[name] for name in field}
    return {"machine": machine(torch.get_num_threads()), "runs": runs}


# ------------------------------------------------------------------------------------ report


def ratio(one: Answer, other: Answer) -> float:
    """Median over rounds of one's seconds over the other's, the first round left out."""
    rounds = list(zip(one["seconds"], other["seconds"], strict=False))[1:]
    return statistics.median(a / b for a, b in rounds)


def end(run: Answer) -> float:
    """Test −ELBO at the end of its run, the mean where it made several."""
    length = run.get("length", len(run["elbo"]))
    return statistics.mean(run["elbo"][length - 1 :: length])


def epochs_until(run: Answer, goal: float) -> int | None:
    """After how many epochs it had got to a goal: fit at the end of its runs only."""
    if "length" in run:
        return int(run["length"]) if end(run) <= goal else None
    return next((i + 1 for i, elbo in enumerate(run["elbo"]) if elbo <= goal), None)


def times_as_fast(run: Answer, other: Answer) -> str:
    """How much sooner a run is where another ends, in units of that one's time."""
    goal = other["elbo"][-1]
    epochs, own = epochs_until(run, goal), epochs_until(other, goal)
    if epochs is None or own is None:
        return "not reached"
    return f"{ratio(other, run) * own / epochs:.1f} × ({epochs} for {own} epochs)"


def report(results: dict[str, Any]) -> None:
    """Write races.md."""
    text = "# Races\n\n" + PROTOCOL
    if "runs" in results:
        runs, base = results["runs"], results["runs"]["textbook loop"]
        rows = [
            [name, f"{statistics.median(run['seconds'][1:]):.2f}", f"{ratio(base, run):.2f}",
             f"{end(run):.2f}",
             *(times_as_fast(run, runs[other]) for other in OTHERS)]
            for name, run in runs.items()
        ]  # fmt: skip
        head = ["", "s per epoch", "epochs: × textbook", "test −ELBO at its end"]
        head += [f"to {runs[other]['elbo'][-1]:.2f}, {other}" for other in OTHERS]
        text += f"\n{table(head, rows)}\n*{results['machine']}*\n"
    if "tuning" in results:
        rows = [[name, f"{elbo:.2f}"] for name, elbo in results["tuning"].items()]
        text += "\n## On validation images, the last 10,000 for training\n\n"
        text += table(["", "−ELBO at its end"], rows)
    REPORT.write_text(text, encoding="utf-8")


PROTOCOL = f"""\
Written by races.py. All train the network 784–400–20–400–784 on MNIST, binarised anew in each
epoch, one process each, epochs alternating. The other loops train with Adam at 10⁻³ and batches of
128 for {EPOCHS} epochs; `fit` has its defaults (a batch of 256, a rate of {Settings.lr:g}, bfloat16
where that is fast), but for what its name says. A run ends with a decay of the rate, so each length
of `fit` is a run of its own, repeated with other seeds while the others train; its average end
counts. “×” is the median over rounds of the ratio of two times from the same round, and to a goal
times the epochs that each needs to where the other loop ends. Only training is timed; the test
−ELBO, in nats per image, comes from one evaluator for all, in float32, outside the clock.
"""


def main() -> None:
    """Measure what is asked for, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="rates and lengths, on validation")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contestant:
        contest(asked.contestant[0], json.loads(asked.contestant[1]))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {"tuning": tune()} if asked.tune else measure()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
