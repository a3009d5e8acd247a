"""What training_speed.py runs in processes of its own: ``python _workers.py TASK SETTINGS``.

A contestant trains as its library has it, and hands over after each turn, mostly an epoch, to
``Turns``, which reports, then waits for the word to go on: so all contestants alternate on an
otherwise idle machine. The other tasks are single measurements that want a fresh process.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_start = time.perf_counter()
import torch  # noqa: E402

TORCH_SECONDS = time.perf_counter() - _start


def peak_memory() -> float:
    """Peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory before exec as ours
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


TORCH_MEMORY = peak_memory()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
_start = time.perf_counter()
import vae_helpers as lab  # noqa: E402
from vae_data import binarize, load_images  # noqa: E402
from vae_networks import mlp  # noqa: E402
from vae_steps import SCHEDULES  # noqa: E402

LAB_SECONDS = time.perf_counter() - _start

import numpy as np  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from torch.utils.data import DataLoader, Subset, TensorDataset  # noqa: E402

LATENTS, LEARNING_RATE = 20, 1e-3


def images(points: int | None = None, held_out: int = 0) -> tuple[Tensor, Tensor]:
    """MNIST as flat uint8 tensors, the training set cut or repeated to ``points``.

    With ``held_out`` the last so many training images stand in for the test set.
    """
    mnist = load_images("mnist")
    train, test = mnist.train.images.flatten(1), mnist.test.images.flatten(1)
    if held_out:
        train, test = train[:-held_out], train[-held_out:]
    if points and points <= len(train):
        return train[:points].clone(), test
    if points:
        repeated = torch.empty(points, train.shape[1], dtype=torch.uint8)
        for part in repeated.split(len(train)):
            part.copy_(train[: len(part)])
        return repeated, test
    return train, test


def networks(hidden: int = 400, pixels: int = 784) -> tuple[nn.Sequential, nn.Sequential]:
    """The network of all contestants: 784–400–2·20 and 20–400–784, ReLU, the same first weights."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * LATENTS))
    decoder = nn.Sequential(nn.Linear(LATENTS, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    return encoder, decoder


def lab_model(hidden: int = 400) -> lab.VAE:
    """The lab's model of that network."""
    encoder, decoder = networks(hidden)
    return lab.VAE(
        lab.EncoderGaussian(encoder), lab.DecoderBernoulli(decoder), lab.PriorGaussian(LATENTS)
    )


def synchronize(device: str) -> None:
    """Wait for what was launched: on a GPU the clock must not stop before the work does."""
    if device == "cuda":
        torch.cuda.synchronize()


def share_of_rate(settings: dict[str, Any]) -> Callable[[int], float]:
    """Number of the step, from 0 → its share of the peak rate, as ``fit`` has it."""
    total = settings["epochs"] * -(-(settings["points"] or 60_000) // settings["batch"])
    shares = SCHEDULES[settings["schedule"]](np.arange(total) / total).tolist()
    return lambda step: shares[min(step, total - 1)]  # a scheduler asks once more, after the end


# ------------------------------------------------------------------------------- contestants

View = Callable[[Tensor], tuple[Tensor, Tensor]]  # x → mean and standard deviation of q(z|x)


class Turns:
    """One turn per line of standard input, one line of JSON on standard output per turn."""

    def __init__(self, device: str, test: Tensor, reply: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        grey = test.float() / 255
        # The same black and white images and the same noise for all, whatever they trained with.
        self.x = (torch.rand(grey.shape, generator=generator) < grey).float().to(device)
        self.noise = torch.randn(len(test), LATENTS, generator=generator).to(device)
        self.device, self.reply, self.posterior, self.logits = device, reply, None, None

    def start(self, posterior: View | None, logits: Callable[[Tensor], Tensor] | None) -> None:
        """Say what the weights stand for (None: a floor, which has none), and wait."""
        self.posterior, self.logits = posterior, logits
        # The first optimizer of a process imports seconds' worth of torch, whoever makes it.
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        self._tell({"threads": torch.get_num_threads(), "gpu": gpu})

    def done(self, *_: Any) -> None:
        """Stop the clock, evaluate outside of it, report, and wait for the next turn."""
        synchronize(self.device)
        seconds = time.perf_counter() - self.clock
        memory = peak_memory() - TORCH_MEMORY
        self._tell({"seconds": seconds, "elbo": self._negative_elbo(), "memory": memory})

    def _tell(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.reply, flush=True)
        if not sys.stdin.readline().strip():
            sys.exit()
        self.clock = time.perf_counter()

    @torch.no_grad()
    def _negative_elbo(self) -> float | None:
        """Test −ELBO in float32, one sample, analytic KL: the same few lines for everybody."""
        if self.posterior is None:
            return None
        total = 0.0
        for x, noise in zip(self.x.split(1000), self.noise.split(1000), strict=True):
            mean, scale = self.posterior(x)
            kl = 0.5 * (mean**2 + scale**2 - 1) - scale.log()
            logits = self.logits(mean + scale * noise)
            total += float(F.binary_cross_entropy_with_logits(logits, x, reduction="sum"))
            total += float(kl.sum())
        return total / len(self.x)


def halves(encoder: nn.Module, positive: Callable[[Tensor], Tensor]) -> View:
    """The view of an encoder that gives mean and raw scale side by side."""

    def view(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = encoder(x).chunk(2, dim=1)
        return mean, positive(raw)

    return view


def ours(settings: dict[str, Any], turns: Turns) -> None:
    """``fit`` itself; a test set of two points, because evaluation is measured for itself."""
    train, test = images(settings["points"], settings.get("held_out", 0))
    model = lab_model().to(settings["device"])
    encoder = model.encoder

    def view(x: Tensor) -> tuple[Tensor, Tensor]:
        q = encoder(x).base_dist
        return q.loc, q.scale

    if settings["compile"]:
        # CUDA graphs where launching costs more than computing.
        options = {"fallback_random": True, "triton.cudagraphs": settings["device"] == "cuda"}
        model.compile(options=options)
    turns.start(_in_float32(model, view), _in_float32(model, lambda z: model.decoder.net(z)))
    own = {"batch_size": settings["batch"], "lr": LEARNING_RATE, "schedule": "constant"}
    lab.fit(
        model, train, test[:2], epochs=settings["epochs"], transform=binarize,
        progress=turns.done, precision=settings["precision"], device=settings["device"],
        **settings.get("fit", own),
    )  # fmt: skip


def growth(settings: dict[str, Any], turns: Turns) -> None:
    """``fit`` on N images, which hands over after ``turn`` images, the same number for every N."""
    train, test = images(settings["points"])
    seen = 0

    def transform(raw: Tensor) -> Tensor:
        nonlocal seen
        if seen >= settings["turn"]:
            turns.done()
            seen = 0
        seen += len(raw)
        return binarize(raw)

    turns.start(None, None)
    lab.fit(
        lab_model(settings["hidden"]), train, test[: settings["test"]],
        epochs=settings["epochs"], batch_size=settings["batch"], lr=LEARNING_RATE,
        schedule="constant", transform=transform, progress=False,
        precision=settings["precision"], device=settings["device"],
    )  # fmt: skip


def _in_float32(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the networks in full precision, as in every other contestant's view."""

    def call(argument: Tensor) -> Any:
        with lab.networks_in(model, "float32"):
            return function(argument)

    return call


def textbook(settings: dict[str, Any], turns: Turns) -> None:
    """The loop of the official examples: ToTensor per image, DataLoader, .item() per step."""
    from torchvision import datasets, transforms

    device = settings["device"]
    folder = os.environ.get("VAE_LAB_DATA", "data")
    data = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(_first(data, settings), batch_size=settings["batch"], shuffle=True)
    encoder, decoder = (net.to(device) for net in networks())
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(weights, settings.get("lr", LEARNING_RATE))
    scheduler = None
    if "schedule" in settings:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate(settings))
    turns.start(halves(encoder, lambda log_variance: torch.exp(0.5 * log_variance)), decoder)
    for _ in range(settings["epochs"]):
        total = 0.0
        for grey, _label in loader:
            x = torch.bernoulli(grey.to(device).view(len(grey), -1))
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
            if scheduler:
                scheduler.step()
        turns.done()


def _first(data: Any, settings: dict[str, Any]) -> Any:
    return Subset(data, range(settings["points"])) if settings["points"] else data


def _for_pythae(encoder: nn.Module, decoder: nn.Module) -> tuple[Any, Any]:
    """The common network in pythae's base classes."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = self.net(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    return Encoder(), Decoder()


def pythae(settings: dict[str, Any], turns: Turns) -> None:
    """Pythae's own model, dataset and trainer, with the common network."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    encoder, decoder = networks()
    grey = images(settings["points"])[0].float() / 255
    data = BaseDataset(torch.bernoulli(grey), torch.zeros(len(grey)))

    class Epoch(TrainingCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            # The cheapest way to new binary images in an epoch: all of them at once, in place.
            torch.bernoulli(grey, out=data.data)

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            turns.done()

    class Schedule(TrainingCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            share = share_of_rate(settings)
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, share)

        def on_train_step_end(self, *_: Any, **__: Any) -> None:
            self.scheduler.step()

    config = VAEConfig(input_dim=(grey.shape[1],), latent_dim=LATENTS, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as scratch:
        training = BaseTrainerConfig(
            output_dir=scratch, num_epochs=settings["epochs"],
            learning_rate=settings.get("lr", LEARNING_RATE),
            per_device_train_batch_size=settings["batch"], no_cuda=settings["device"] != "cuda",
        )  # fmt: skip
        trainer = BaseTrainer(
            VAE(config, *_for_pythae(encoder, decoder)), data, training_config=training,
            callbacks=[Epoch(), *([Schedule()] if "schedule" in settings else [])],
        )  # fmt: skip
        turns.start(halves(encoder, lambda log_variance: torch.exp(0.5 * log_variance)), decoder)
        trainer.train()


def pyro(settings: dict[str, Any], turns: Turns) -> None:
    """Pyro's SVI in the manner of its VAE tutorial, validation off as there.

    Its batches come from a ``DataLoader`` over tensors in memory, or, ``loader=False``, by index:
    the best case, in which pyro pays for nothing but itself.
    """
    import pyro as p
    import pyro.distributions as pd
    from pyro.infer import SVI, TraceMeanField_ELBO

    pd.enable_validation(False)
    device = settings["device"]
    encoder, decoder = (net.to(device) for net in networks())

    def model(x: Tensor) -> None:
        p.module("decoder", decoder)
        with p.plate("data", len(x)):
            loc = x.new_zeros(len(x), LATENTS)
            z = p.sample("z", pd.Normal(loc, torch.ones_like(loc)).to_event(1))
            p.sample("x", pd.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        p.module("encoder", encoder)
        with p.plate("data", len(x)):
            mean, log_scale = encoder(x).chunk(2, dim=1)
            p.sample("z", pd.Normal(mean, log_scale.exp()).to_event(1))

    rate = {"lr": settings.get("lr", LEARNING_RATE)}
    optimizer = p.optim.Adam(rate)
    if "schedule" in settings:
        asked = {"optimizer": torch.optim.Adam, "optim_args": rate}
        optimizer = p.optim.LambdaLR({**asked, "lr_lambda": share_of_rate(settings)})
    svi = SVI(model, guide, optimizer, TraceMeanField_ELBO())
    grey = images(settings["points"])[0].float() / 255
    loader = DataLoader(TensorDataset(grey), batch_size=settings["batch"], shuffle=True)

    def batches() -> Iterator[Tensor]:
        if settings["loader"]:
            yield from (x for (x,) in loader)
        else:
            yield from (grey[i] for i in torch.randperm(len(grey)).split(settings["batch"]))

    turns.start(halves(encoder, torch.exp), decoder)
    for _ in range(settings["epochs"]):
        total = 0.0
        for x in batches():
            total += svi.step(torch.bernoulli(x.to(device)))
            if "schedule" in settings:
                optimizer.step()
        turns.done()


def floor(settings: dict[str, Any], turns: Turns) -> None:
    """The matrix products of forward and backward, and nothing else, or Adam's step besides."""
    device, dtype = settings["device"], getattr(torch, settings["precision"])
    points = settings["points"] or 60_000
    layers = Products(settings["batch"], 400, dtype, device)
    parameters = [p.to(device) for net in networks() for p in net.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    turns.start(None, None)
    for _ in range(settings["epochs"]):
        for _step in range(-(-points // settings["batch"])):
            layers.run()
            if settings["adam"]:
                optimizer.step()
        turns.done()


class Products:
    """y = x Wᵀ, ∂W = gᵀ x, and ∂x = g W but for the first layer, into memory already taken."""

    def __init__(self, batch: int, hidden: int, dtype: torch.dtype, device: str) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(dtype)

        sizes = [(784, hidden), (hidden, 2 * LATENTS), (LATENTS, hidden), (hidden, 784)]
        self.layers = [
            (random(batch, i), random(o, i), random(batch, o), i != 784) for i, o in sizes
        ]
        self.out = [tuple(torch.empty_like(t) for t in layer[:3]) for layer in self.layers]

    def run(self) -> None:
        """One step's worth."""
        for (x, weight, g, inner), (dx, dweight, y) in zip(self.layers, self.out, strict=True):
            torch.mm(x, weight.T, out=y)
            torch.mm(g.T, x, out=dweight)
            if inner:
                torch.mm(g, weight, out=dx)


# ------------------------------------------------------------------------ single measurements


def scaling(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds per epoch of ``fit``, first and later, and the peak of memory above torch's."""
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    train, test = images(settings["points"])
    history = lab.fit(
        lab_model(settings["hidden"]), train, test[: settings["test"]],
        epochs=settings["epochs"], batch_size=settings["batch"], lr=LEARNING_RATE,
        schedule="constant", transform=binarize, progress=False,
        precision=settings["precision"], device=settings["device"],
    )  # fmt: skip
    return {
        "seconds": history.seconds.tolist(),
        "memory": peak_memory() - TORCH_MEMORY,
        "torch import": TORCH_SECONDS,
        "lab import": LAB_SECONDS,
    }


def overhead(settings: dict[str, Any]) -> dict[str, Any]:
    """The share of an epoch between an optimiser's step and the next batch's transform.

    There lie indexing, learning rate, bookkeeping and the progress bar. The look for non-finite
    numbers lies elsewhere, and so do the set-up and end of an epoch: a bare loop over the same
    model calls, with batches that lie ready, tells what everything together costs.
    """
    os.environ.pop("TQDM_DISABLE", None)  # the bar is part of what is measured
    device = settings["device"]
    train, test = images(settings["points"])
    batch, marks = settings["batch"], []
    hook = register_optimizer_step_post_hook(lambda *_: marks.append(("step", time.perf_counter())))

    def transform(raw: Tensor) -> Tensor:
        marks.append(("transform", time.perf_counter()))
        return binarize(raw)

    def fit(transform: Callable[[Tensor], Tensor]) -> float:
        history = lab.fit(
            lab_model(), train, test[:2], epochs=1, batch_size=batch, lr=LEARNING_RATE,
            schedule="constant", transform=transform, precision=settings["precision"],
            device=device,
        )  # fmt: skip
        return float(history.seconds[0])

    shares = []
    for _ in range(settings["repeats"]):
        marks.clear()
        seconds = fit(transform)
        gaps = [
            later - earlier
            for (first, earlier), (second, later) in itertools.pairwise(marks)
            if (first, second) == ("step", "transform")
        ]
        shares.append(sum(gaps) / seconds)
    hook.remove()

    model = lab_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=device != "mps")
    ready = list(train.to(device)[torch.randperm(len(train))].split(batch))

    def bare() -> float:
        synchronize(device)
        start = time.perf_counter()
        with lab.networks_in(model, settings["precision"]):
            for raw in ready:
                elbo = model(binarize(raw))
                optimizer.zero_grad()
                (-elbo.value.mean()).backward()
                optimizer.step()
        synchronize(device)
        return time.perf_counter() - start

    pairs = [(fit(binarize), bare()) for _ in range(settings["repeats"])]
    return {"gaps": statistics.median(shares), "fit and bare loop": pairs}


def evaluation(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds for the −ELBO of the 10,000 test images by ``evaluate``."""
    model, (_, test) = lab_model(), images()

    def once() -> float:
        start = time.perf_counter()
        lab.evaluate(
            model, test, transform=binarize, precision=settings["precision"],
            device=settings["device"],
        )  # fmt: skip
        return time.perf_counter() - start

    return {"seconds": [once() for _ in range(settings["repeats"])]}


def log_marginal(settings: dict[str, Any]) -> dict[str, Any]:
    """Decoded latent points per second of ``log_marginal``, and of its matrix products alone."""
    torch.manual_seed(0)
    device, points, samples = settings["device"], settings["points"], settings["samples"]
    widths = [64, 512, 512, 784]
    model = lab.VAE(
        lab.EncoderGaussian(mlp(784, [512, 512], 128)),
        lab.DecoderBernoulli(mlp(64, [512, 512], 784)),
        lab.PriorGaussian(64),
    ).to(device)
    x = binarize(images()[1][:points].to(device))
    weights = [torch.randn(b, a, device=device) for a, b in itertools.pairwise(widths)]
    inputs = [torch.randn(4096, a, device=device) for a in widths[:-1]]
    outputs = [torch.empty(4096, b, device=device) for b in widths[1:]]

    def products() -> float:
        start = time.perf_counter()
        for _ in range(max(1, points * samples // 4096)):
            for a, w, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(a, w.T, out=out)
        synchronize(device)
        return (time.perf_counter() - start) / max(1, points * samples // 4096) / 4096

    def estimate() -> float:
        start = time.perf_counter()
        model.log_marginal(x, samples)
        synchronize(device)
        return (time.perf_counter() - start) / (points * samples)

    model.log_marginal(x[:4], 1000), products()  # warm up
    pairs = [(estimate(), products()) for _ in range(settings["repeats"])]
    return {"pairs": pairs, "memory": peak_memory() - TORCH_MEMORY}


def main() -> None:
    """Run one task, with the library's own talk kept out of the channel of the answers."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    reply = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task: Callable[..., Any] = globals()[name]
    if name in ("ours", "textbook", "pythae", "pyro", "floor"):
        test = images(1, settings.get("held_out", 0))[1]
        task(settings, Turns(settings["device"], test, reply))
    elif name == "growth":  # evaluates nothing, and measures its memory
        task(settings, Turns(settings["device"], torch.empty(0, 784), reply))
    else:
        print(json.dumps(task(settings)), file=reply, flush=True)


if __name__ == "__main__":
    main()
