"""Train a VAE on images without a notebook, on one machine or many.

    python -m vae_kit.train --dataset mnist --epochs 60 --decoder bernoulli --out runs/a
    torchrun --nproc-per-node 2 -m vae_kit.train --dataset mnist --epochs 60 --out runs/b

The folder --out receives checkpoint.pt after every epoch and, at the end, history.npz,
learning_curve.png, learning_curve.svg and results.json. The same command continues from the
checkpoint, also with another number of processes. Options may stand in a file, one word a line,
that is named by @FILE.

Exit codes: 0 finished; 130 interrupted (the checkpoint holds the finished epochs); 1 anything else,
with a line on stderr that says what.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from vae_helpers import (
    VAE,
    Conditional,
    DecoderBernoulli,
    DecoderGaussian,
    EncoderGaussian,
    PriorGaussian,
)

from . import data, networks, parts
from .batches import Transform
from .diagnostics import log_marginal
from .history import History
from .learning_curve import plot_learning_curve
from .processes import joined, rank_and_size
from .settings import Settings
from .style import save_figure
from .training import fit

__all__ = ["main"]

HISTOGRAMS = 4  # that the pixels share in a categorical decoder
# Each decoder with the transform that makes its likelihood an honest one.
DECODERS: dict[str, tuple[Callable[..., Conditional], Transform]] = {
    "bernoulli": (DecoderBernoulli, data.binarize),
    "gaussian": (DecoderGaussian, data.dequantize),
    "continuous-bernoulli": (parts.DecoderContinuousBernoulli, data.scale),
    "categorical": (partial(parts.DecoderCategorical, components=HISTOGRAMS), data.scale),
}
PRIORS: dict[str, Callable[[int], torch.nn.Module]] = {
    "gaussian": PriorGaussian,
    "mixture": partial(parts.PriorMixture, components=100),
    "autoregressive": parts.PriorAutoregressive,
}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it stands above, and the default of every option."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says what is wrong in one line, and exits with 1."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message}\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, from the command line and from the files named there by @."""
    parser = Parser(
        prog="vae_kit.train", description=__doc__, formatter_class=Help, allow_abbrev=False,
        fromfile_prefix_chars="@",
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of this run; made where there is none")
    names = ["mnist", "fashion-mnist", "digits", "auto"]
    add("--dataset", default="mnist", choices=names, help="images to learn")
    add("--root", help="folder of the data, if not that of VAE_LAB_DATA")
    add("--decoder", default="bernoulli", choices=list(DECODERS), help="p(x|z), and the transform")
    add("--prior", default="gaussian", choices=list(PRIORS), help="p(z)")
    add("--network", default="mlp", choices=["mlp", "conv"], help="kind of both networks")
    add("--hidden", default=[512, 512], type=int, nargs="+", help="widths of the mlp's layers")
    add("--latents", default=40, type=int, help="dimensions of z")
    add("--beta", default=1.0, type=float, help="weight of the KL term in the objective")
    add("--epochs", default=30, type=int, help="passes through the training images")
    add("--batch-size", type=int, help="images per step; None: it follows their number")
    add("--lr", default=Settings.lr, type=float, help="learning rate before its decay")
    add("--kl-warmup", default=0, type=int, help="epochs in which the KL term comes in")
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of networks")
    add("--device", choices=["cpu", "cuda", "mps"], help="None: the fastest there is")
    add("--seed", default=0, type=int, help="of weights, order and noise")
    add("--keep-points", type=int, help="points per split that the history keeps; None: all")
    add("--samples", default=0, type=int, help="samples of z per test image to estimate log p(x)")
    return parser.parse_args(argv)


def build(args: argparse.Namespace, shape: tuple[int, ...]) -> VAE:
    """The model for images of this shape."""
    torch.manual_seed(args.seed)
    out = (HISTOGRAMS * shape[0], *shape[1:]) if args.decoder == "categorical" else shape
    if args.network == "conv":
        encoder_net = networks.conv_encoder(shape, 2 * args.latents)
        decoder_net = networks.conv_decoder(args.latents, out)
    else:
        encoder_net = networks.mlp(shape, args.hidden, 2 * args.latents)
        decoder_net = networks.mlp(args.latents, args.hidden[::-1], out)
    decoder = DECODERS[args.decoder][0](decoder_net)
    return VAE(EncoderGaussian(encoder_net), decoder, PRIORS[args.prior](args.latents), args.beta)


def results(
    args: argparse.Namespace, images: data.Images, model: VAE, history: History
) -> dict[str, Any]:
    """All that there is to say about a finished run, for ``results.json``."""
    device = next(model.parameters()).device
    ends = {"train": history.train_end, "test": history.test}
    given = {name: value for name, value in vars(args).items() if name not in ("out", "root")}
    summary: dict[str, Any] = {
        "dataset": images.name,
        "unit": "nats per image",
        "negative_elbo": {k: {"mean": c.mean[-1], "se": c.se[-1]} for k, c in ends.items()},
        "images": {name: curve.points for name, curve in ends.items()},
        "clipped_steps": int(history.clipped.sum()),
        "seconds": history.seconds.sum(),
        "settings": given | {"batch_size": history.settings.batch_size},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": rank_and_size()[1],
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    if args.samples:
        torch.manual_seed(args.seed)
        log_p = log_marginal(model, DECODERS[args.decoder][1](images.test.images), args.samples)
        error = log_p.std().item() / len(log_p) ** 0.5
        summary["test_negative_log_p"] = {"mean": -log_p.mean().item(), "se": error}
    return summary


def train(args: argparse.Namespace) -> None:
    """Do what the arguments say; ``KeyboardInterrupt`` where the run was interrupted."""
    with joined(args.device) as device:
        images = data.load_images(args.dataset, args.root)
        model = build(args, tuple(images.train.images.shape[1:]))
        out, first = args.out.expanduser(), rank_and_size()[0] == 0
        if first:
            out.mkdir(parents=True, exist_ok=True)
        print(images, flush=True)

        def line(history: History) -> None:
            print(f"epoch {len(history)}/{args.epochs}: {history.last()}", flush=True)

        history = fit(
            model, images.train, images.test, transform=DECODERS[args.decoder][1], device=device,
            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, kl_warmup=args.kl_warmup,
            precision=args.precision, seed=args.seed, keep_points=args.keep_points,
            checkpoint=out / "checkpoint.pt", progress=True if sys.stdout.isatty() else line,
        )  # fmt: skip
        if len(history) < args.epochs:
            raise KeyboardInterrupt
        if first:
            history.save(out / "history.npz")
            save_figure(plot_learning_curve(history, images.test.images), "learning_curve", out)
            text = json.dumps(results(args, images, model, history), indent=2, allow_nan=False)
            (out / "results.json").write_text(text + "\n", encoding="utf-8")
            print(f"{history}: {out}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and turn what a user can put right into a line instead of a traceback."""
    args = parse(argv)
    try:
        train(args)
    except KeyboardInterrupt:
        print("vae_kit.train: interrupted; the same command continues", file=sys.stderr)
        return 130
    except (OSError, TypeError, ValueError, FloatingPointError, RuntimeError) as error:
        print(f"vae_kit.train: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a terminal or log that cannot show a sign shows "?"
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    raise SystemExit(main())
