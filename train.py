"""Train a VAE on images without a notebook, on one machine or many.

    python train.py --dataset mnist --epochs 60 --decoder bernoulli --prior mixture --out runs/a
    torchrun --nproc-per-node 2 train.py --dataset mnist --epochs 60 --out runs/b

The folder --out receives checkpoint.pt after every epoch and, at the end, history.npz,
learning_curve.png, learning_curve.svg and results.json. The same command continues from the
checkpoint, also with another number of processes.

Exit codes: 0 finished; 130 interrupted (the checkpoint holds the finished epochs); 1 anything else,
with a line on stderr that says what.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

import vae_helpers as lab

# Each decoder with the transform that makes its likelihood an honest one.
DECODERS: dict[str, tuple[Callable[..., lab.Conditional], lab.Transform]] = {
    "bernoulli": (lab.DecoderBernoulli, lab.binarize),
    "gaussian": (lab.DecoderGaussian, lab.dequantize),
    "continuous-bernoulli": (lab.DecoderContinuousBernoulli, lab.scale),
}
NOT_SETTINGS = ("out", "settings", "save_settings")  # where, not what


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says what is wrong in one line, and exits with 1."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(1, f"{self.prog}: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least ``least``."""

    def whole_number(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return whole_number


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments from a settings file, if there is one, overridden by those of the command line."""
    some, many = at_least(0), at_least(1)
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of this run; made where there is none")
    add("--settings", type=Path, help="JSON file of settings; the command line wins")
    add("--save-settings", type=Path, help="write this run's settings to a JSON file, and train")

    # A default is shown by what it says, so every option with one shows it.
    def option(name: str, default: Any, help: str, **kind: Any) -> None:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text = help if default is None else f"{help} (default: {shown})"
        add(name, default=default, help=text, **kind)

    names = ["mnist", "fashion-mnist", "digits", "auto"]
    option("--dataset", "mnist", "images to learn", choices=names)
    option("--root", None, "folder of the data (default: VAE_LAB_DATA, else data)")
    option("--decoder", "gaussian", "p(x|z), and with it the transform", choices=sorted(DECODERS))
    option("--prior", "gaussian", "p(z)", choices=["gaussian", "mixture"])
    option("--components", 100, "components of the mixture prior", type=many)
    option("--network", "mlp", "kind of both networks", choices=["mlp", "conv"])
    option("--hidden", [512, 512], "widths of the hidden layers of mlp", type=many, nargs="+")
    option("--width", 16, "channels of the first layer of conv", type=many)
    option("--latents", 40, "dimensions of z", type=many)
    option("--beta", 1.0, "weight of the KL term in the objective", type=float)
    option("--kl", "analytic", "KL exact where known, or sampled", choices=["analytic", "sampled"])
    option("--epochs", 30, "passes through the training images", type=many)
    option("--batch-size", 128, "images per step, of all processes together", type=many)
    option("--lr", 3e-3, "peak learning rate", type=float)
    option("--schedule", "one-cycle", "its course", choices=["one-cycle", "constant"])
    option("--precision", "auto", "of networks", choices=["auto", "float32", "bfloat16"])
    option("--device", None, "default: the fastest there is", choices=["cpu", "cuda", "mps"])
    option("--seed", 0, "of weights, order and noise", type=some)
    option("--cloud", None, "points per split that the history keeps (default: all)", type=many)
    option("--samples", 0, "if not 0, estimate -log p(x) of the test images with so many samples "
           "of z each", type=some)  # fmt: skip
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = Parser(prog="train.py", add_help=False, allow_abbrev=False)
    first.add_argument("--settings", type=Path)
    if path := first.parse_known_args(arguments)[0].settings:
        try:
            arguments = [*from_settings(path), *arguments]
        except (OSError, ValueError) as error:
            parser.error(f"--settings {path}: {error}")
    return parser.parse_args(arguments)


def from_settings(path: Path) -> list[str]:
    """A settings file as arguments, which are then checked like those typed by hand."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError('expected {"option": value, ...}')
    given = {name: value for name, value in settings.items() if value is not None}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [text for name, values in lists.items() for text in (f"--{name}", *map(str, values))]


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What defines the run, by option."""
    return {k.replace("_", "-"): v for k, v in vars(args).items() if k not in NOT_SETTINGS}


def build(args: argparse.Namespace, shape: tuple[int, ...]) -> lab.VAE:
    """The model for images of this shape."""
    torch.manual_seed(args.seed)
    if args.network == "conv":
        encoder_net = lab.conv_encoder(shape, 2 * args.latents, args.width)
        decoder_net = lab.conv_decoder(args.latents, shape, args.width)
    else:
        encoder_net = lab.mlp(shape, args.hidden, 2 * args.latents)
        decoder_net = lab.mlp(args.latents, args.hidden[::-1], shape)
    return lab.VAE(
        lab.EncoderGaussian(encoder_net),
        DECODERS[args.decoder][0](decoder_net),
        lab.PriorGaussian(args.latents)
        if args.prior == "gaussian"
        else lab.PriorMixture(args.latents, args.components),
        beta=args.beta,
        analytic_kl=args.kl == "analytic",
    )


@contextlib.contextmanager
def processes(device: str | None) -> Iterator[int]:
    """This process's rank among those that torchrun started, 0 where there is but one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has none, or PyTorch cannot use it")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this machine has none, or PyTorch cannot use it")
    if not dist.is_torchelastic_launched():
        yield 0
        return
    cuda = torch.cuda.is_available() and device in (None, "cuda")
    if cuda:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"more processes than the {there} CUDA devices of this machine")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        # What goes to stdout is said once.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            with contextlib.redirect_stdout(nowhere if dist.get_rank() else sys.stdout):
                yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def load(name: str, root: str | None) -> lab.Images:
    """The images; of several processes on a machine, the first one downloads."""
    waits = dist.is_initialized() and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        dist.barrier()
    images = lab.load_images(name, root)
    if dist.is_initialized() and not waits:
        dist.barrier()
    return images


def average(values: torch.Tensor) -> dict[str, float]:
    """Mean and standard error, in nats per image."""
    return {"mean": values.mean().item(), "se": (values.std() / math.sqrt(len(values))).item()}


def results(
    args: argparse.Namespace, images: lab.Images, model: lab.VAE, history: lab.History
) -> dict[str, Any]:
    """All that there is to say about a finished run, for ``results.json``."""
    found = history.convergence() if len(history) >= 4 else None
    device = next(model.parameters()).device
    told: dict[str, Any] = {
        "dataset": images.name,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "unit": "nats per image",
        "train_negative_elbo": {"mean": history.train_mean[-1], "se": history.train_se[-1]},
        "test_negative_elbo": {"mean": history.test_mean[-1], "se": history.test_se[-1]},
        "convergence": found and {"verdict": found.verdict, **asdict(found)},
        "epochs": len(history),
        "seconds": history.seconds.sum(),
        "settings": settings_of(args),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
    if args.samples:
        torch.manual_seed(args.seed)
        x = DECODERS[args.decoder][1](images.test.images.to(device))
        told["test_negative_log_p"] = average(-model.log_marginal(x, args.samples))
    return told


def train(args: argparse.Namespace) -> int:
    """Do what the arguments say, and return the exit code."""
    with processes(args.device) as rank:
        images = load(args.dataset, args.root)
        model = build(args, tuple(images.train.images.shape[1:]))
        if rank == 0:
            args.out.mkdir(parents=True, exist_ok=True)
            if args.save_settings:
                text = json.dumps(settings_of(args), indent=2)
                args.save_settings.write_text(text + "\n", encoding="utf-8")
        print(images, flush=True)

        def line(history: lab.History) -> None:
            print(
                f"epoch {len(history)}/{args.epochs}: -ELBO train {history.train_mean[-1]:.2f}, "
                f"test {history.test_mean[-1]:.2f} +/- {history.test_se[-1]:.2f}, "
                f"{history.seconds[-1]:.1f} s",
                flush=True,
            )

        several = dist.is_initialized() and not torch.cuda.is_available()
        history = lab.fit(
            model, images.train, images.test,
            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule=args.schedule,
            transform=DECODERS[args.decoder][1], precision=args.precision, seed=args.seed,
            device="cpu" if several else args.device, cloud=args.cloud,
            checkpoint=args.out / "checkpoint.pt",
            progress=True if sys.stdout.isatty() else line,
        )  # fmt: skip
        if len(history) < args.epochs:
            raise KeyboardInterrupt
        if rank == 0:
            history.save(args.out / "history.npz")
            figure = lab.plot_learning_curve(history).figure
            lab.save_figure(figure, "learning_curve", "The learning curve.", args.out)
            told = results(args, images, model, history)
            text = json.dumps(told, indent=2, allow_nan=False)
            (args.out / "results.json").write_text(text + "\n", encoding="utf-8")
            print(f"{len(history)} epochs, {history.seconds.sum():.0f} s: {args.out}", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and turn what a user can put right into a line instead of a traceback."""
    args = parse(argv)
    try:
        return train(args)
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command continues", file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError, torch.cuda.OutOfMemoryError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a terminal or log that cannot show a sign shows "?"
        stream.reconfigure(errors="replace")
    raise SystemExit(main())
