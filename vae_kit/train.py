"""Train a VAE on images without a notebook, on one machine or many.

    python -m vae_kit.train --dataset mnist --epochs 60 --decoder bernoulli --out runs/a
    torchrun --nproc-per-node 2 -m vae_kit.train --dataset mnist --epochs 60 --out runs/b

The folder --out receives checkpoint.pt after every epoch and, at the end, history.npz and the
learning curve. The same command continues from the checkpoint, also with another number of
processes.

Exit codes: 0 finished; 130 interrupted (the checkpoint holds the finished epochs); 2 options that
do not exist; 1 anything else, with a line on stderr that says what.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import vae_helpers as lab

from . import data, networks, parts
from .batches import Transform
from .learning_curve import plot_learning_curve
from .processes import process_group, rank_and_size
from .settings import Settings
from .style import save_figure
from .training import fit

__all__ = ["main"]

# Each decoder with the transform that makes its likelihood an honest one.
DECODERS: dict[str, tuple[Callable[..., lab.Conditional], Transform]] = {
    "bernoulli": (lab.DecoderBernoulli, data.binarize),
    "gaussian": (lab.DecoderGaussian, data.dequantize),
    "continuous-bernoulli": (parts.DecoderContinuousBernoulli, data.scale),
    "categorical": (parts.DecoderCategorical, data.scale),
}
PRIORS: dict[str, Callable[[int], torch.nn.Module]] = {
    "gaussian": lab.PriorGaussian,
    "mixture": partial(parts.PriorMixture, components=100),
    "autoregressive": parts.PriorAutoregressive,
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, from the command line."""
    kind = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("vae_kit.train", formatter_class=kind, allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of this run; made where there is none")
    names = ["mnist", "fashion-mnist", "digits", "auto"]
    add("--dataset", default="mnist", choices=names, help="images to learn")
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
    return parser.parse_args(argv)


def build(args: argparse.Namespace, shape: tuple[int, ...]) -> lab.VAE:
    """The model for images of this shape."""
    torch.manual_seed(args.seed)
    histograms = 4 if args.decoder == "categorical" else 1  # for each, the logits of an image
    out = (histograms * shape[0], *shape[1:])
    if args.network == "conv":
        encoder_net = networks.conv_encoder(shape, 2 * args.latents)
        decoder_net = networks.conv_decoder(args.latents, out)
    else:
        encoder_net = networks.mlp(shape, args.hidden, 2 * args.latents)
        decoder_net = networks.mlp(args.latents, args.hidden[::-1], out)
    encoder, decoder = lab.EncoderGaussian(encoder_net), DECODERS[args.decoder][0](decoder_net)
    return lab.VAE(encoder, decoder, PRIORS[args.prior](args.latents), args.beta)


def train(args: argparse.Namespace) -> None:
    """Do what the arguments say; ``KeyboardInterrupt`` where the run was interrupted."""
    with process_group(args.device) as device:
        images = data.load_images(args.dataset)
        model = build(args, tuple(images.train.images.shape[1:]))
        out = args.out.expanduser()
        out.mkdir(parents=True, exist_ok=True)
        print(images, flush=True)
        history = fit(
            model, images.train, images.test, transform=DECODERS[args.decoder][1], device=device,
            epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, kl_warmup=args.kl_warmup,
            precision=args.precision, seed=args.seed, checkpoint=out / "checkpoint.pt",
            progress=lambda run: print(f"epoch {len(run)}/{args.epochs}: {run.last()}", flush=True),
        )  # fmt: skip
        if len(history) < args.epochs:
            raise KeyboardInterrupt
        if rank_and_size()[0] == 0:
            history.save(out / "history.npz")
            save_figure(plot_learning_curve(history, images.test.images), "learning_curve", out)
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
