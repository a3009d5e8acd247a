"""Train a VAE on images without a notebook, on one machine or many.

    python train.py --dataset mnist --epochs 60 --decoder bernoulli --prior mixture --out runs/a
    torchrun --nproc-per-node 2 train.py --dataset mnist --epochs 60 --out runs/b

The folder --out receives checkpoint.pt after every epoch and, at the end, history.npz,
learning_curve.png, learning_curve.svg and results.json. The same command continues from the
checkpoint, also with another number of processes. Options may stand in a file, one word a line,
that is named by @FILE.

Exit codes: 0 finished; 130 interrupted (the checkpoint holds the finished epochs); 1 anything else,
with a line on stderr that says what.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

import vae_data as data
import vae_figures as figures
import vae_helpers as lab
import vae_networks as networks
from vae_batches import Transform

HISTOGRAMS = 4  # that the pixels share in a categorical decoder
# Each decoder with the transform that makes its likelihood an honest one.
DECODERS: dict[str, tuple[Callable[..., lab.Conditional], Transform]] = {
    "bernoulli": (lab.DecoderBernoulli, data.binarize),
    "gaussian": (lab.DecoderGaussian, data.dequantize),
    "continuous-bernoulli": (lab.DecoderContinuousBernoulli, data.scale),
    "categorical": (partial(lab.DecoderCategorical, components=HISTOGRAMS), data.scale),
}
DENSITIES = ("gaussian", "continuous-bernoulli")  # not to be compared with probabilities
PRIORS: dict[str, Callable[[argparse.Namespace], torch.nn.Module]] = {
    "gaussian": lambda args: lab.PriorGaussian(args.latents),
    "mixture": lambda args: lab.PriorMixture(args.latents, args.components),
    "autoregressive": lambda args: lab.PriorAutoregressive(args.latents),
}
USERS_ERRORS = (
    OSError, TypeError, ValueError, FloatingPointError, torch.cuda.OutOfMemoryError,
)  # fmt: skip
NOT_SETTINGS = ("out", "root")  # where, not what


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it stands above, and the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


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
    """The options, from the command line and from the files named there by @."""
    some, many = at_least(0), at_least(1)
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of this run; made where there is none")

    names = ["mnist", "fashion-mnist", "digits", "auto"]
    add("--dataset", default="mnist", choices=names, help="images to learn")
    add("--root", help="folder of the data, if not that of VAE_LAB_DATA")
    add("--decoder", default="gaussian", choices=list(DECODERS), help="p(x|z), and the transform")
    add("--prior", default="gaussian", choices=list(PRIORS), help="p(z)")
    add("--components", default=100, type=many, help="components of the mixture")
    add("--network", default="mlp", choices=["mlp", "conv"], help="kind of both networks")
    add("--hidden", default=[512, 512], type=many, nargs="+", help="widths of the mlp's layers")
    add("--latents", default=40, type=many, help="dimensions of z")
    add("--beta", default=1.0, type=float, help="weight of the KL term in the objective")
    add(
        "--kl",
        default="analytic",
        choices=["analytic", "sampled"],
        help="KL exact where known, or of a sample",
    )
    add("--epochs", default=30, type=many, help="passes through the training images")
    add("--batch-size", type=many, help="images per step; if not given, it follows their number")
    add("--lr", default=4e-3, type=float, help="peak learning rate")
    add("--schedule", default="one-cycle", choices=["one-cycle", "constant"], help="its course")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of networks")
    add("--device", choices=["cpu", "cuda", "mps"], help="if not the fastest there is")
    add("--seed", default=0, type=some, help="of weights, order and noise")
    add(
        "--kl-warmup",
        default=0,
        type=some,
        help="epochs in which the KL term comes in",
    )
    add("--keep-points", type=many, help="points per split that the history keeps, if not all")
    add("--samples", default=0, type=some, help="samples of z per test image to estimate log p(x)")
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What defines the run, by option."""
    return {k.replace("_", "-"): v for k, v in vars(args).items() if k not in NOT_SETTINGS}


def build(args: argparse.Namespace, shape: tuple[int, ...]) -> lab.VAE:
    """The model for images of this shape."""
    torch.manual_seed(args.seed)
    out = (HISTOGRAMS * shape[0], *shape[1:]) if args.decoder == "categorical" else shape
    if args.network == "conv":
        encoder_net = networks.conv_encoder(shape, 2 * args.latents)
        decoder_net = networks.conv_decoder(args.latents, out)
    else:
        encoder_net = networks.mlp(shape, args.hidden, 2 * args.latents)
        decoder_net = networks.mlp(args.latents, args.hidden[::-1], out)
    return lab.VAE(
        lab.EncoderGaussian(encoder_net),
        DECODERS[args.decoder][0](decoder_net),
        PRIORS[args.prior](args),
        beta=args.beta,
        analytic_kl=args.kl == "analytic",
    )


@contextlib.contextmanager
def processes(device: str | None) -> Iterator[tuple[int, str | None]]:
    """Rank and device of this process among those of torchrun; rank 0 where it is alone."""
    several, cuda = dist.is_torchelastic_launched(), torch.cuda.is_available()
    usable = {"cuda": cuda, "mps": torch.backends.mps.is_available() and not several}
    if device and not usable.get(device, True):
        raise ValueError(f"--device {device} is not there, or not for several processes")
    if not several:
        yield 0, device
        return
    device = device or ("cuda" if cuda else "cpu")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        # What goes to stdout is said once.
        with contextlib.redirect_stdout(io.StringIO() if dist.get_rank() else sys.stdout):
            yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()


def results(
    args: argparse.Namespace, images: data.Images, model: lab.VAE, history: lab.History
) -> dict[str, Any]:
    """All that there is to say about a finished run, for ``results.json``."""
    device = next(model.parameters()).device
    summary: dict[str, Any] = {
        "dataset": images.name,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "unit": "nats per image",
        "likelihood": "density" if args.decoder in DENSITIES else "probability",
        "train_negative_elbo": {"mean": history.train_mean[-1], "se": history.train_se[-1]},
        "test_negative_elbo": {"mean": history.test_mean[-1], "se": history.test_se[-1]},
        "bounded_steps": int(history.bounded.sum()),
        "epochs": len(history),
        "seconds": history.seconds.sum(),
        "settings": settings_of(args) | {"batch-size": history.settings["batch_size"]},
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
        log_p = model.log_marginal(x, args.samples)
        error = log_p.std().item() / math.sqrt(len(log_p))
        summary["test_negative_log_p"] = {"mean": -log_p.mean().item(), "se": error}
    return summary


def train(args: argparse.Namespace) -> int:
    """Do what the arguments say, and return the exit code."""
    with processes(args.device) as (rank, device):
        images = data.load_images(args.dataset, args.root)
        model = build(args, tuple(images.train.images.shape[1:]))
        if rank == 0:
            args.out.mkdir(parents=True, exist_ok=True)
        print(images, flush=True)

        def line(history: lab.History) -> None:
            print(
                f"epoch {len(history)}/{args.epochs}: -ELBO train {history.train_mean[-1]:.2f}, "
                f"test {history.test_mean[-1]:.2f} +/- {history.test_se[-1]:.2f}, "
                f"{history.seconds[-1]:.1f} s",
                flush=True,
            )

        history = lab.fit(
            model, images.train, images.test,
            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, schedule=args.schedule,
            transform=DECODERS[args.decoder][1], precision=args.precision, seed=args.seed,
            device=device, keep_points=args.keep_points, kl_warmup=args.kl_warmup,
            checkpoint=args.out / "checkpoint.pt",
            progress=True if sys.stdout.isatty() else line,
        )  # fmt: skip
        if len(history) < args.epochs:
            raise KeyboardInterrupt
        if rank == 0:
            history.save(args.out / "history.npz")
            curve = figures.plot_learning_curve(history, images.test.images)
            figures.save_figure(curve, "learning_curve", args.out)
            summary = results(args, images, model, history)
            text = json.dumps(summary, indent=2, allow_nan=False)
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
    except (
        OSError,
        TypeError,
        ValueError,
        FloatingPointError,
        torch.cuda.OutOfMemoryError,
    ) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a terminal or log that cannot show a sign shows "?"
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    raise SystemExit(main())
