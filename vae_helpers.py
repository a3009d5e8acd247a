"""Variational autoencoders from exchangeable parts.

A conditional distribution is a network plus a rule that turns the network's output into a
``torch.distributions.Distribution``. An encoder q(z|x) is one, a decoder p(x|z) is one, and a
prior p(z) is one without a condition. A VAE only composes the three::

    raw batch ──transform──▶ x ──encoder──▶ q(z|x) ──rsample──▶ z ──decoder──▶ p(x|z)
                                      └───── KL(q‖p) ◀──── prior p(z)   └─ log p(x|z)
                                                 └──────── ELBO per point ──────┘

This file reads from top to bottom in that order:

==================  ====================================================================
data                load_images → Images, each split an ImageSet; scale, dequantize, binarize
networks            mlp, residual_mlp (Residual), conv_encoder, conv_decoder; Reshape
distributions       Conditional: EncoderGaussian, DecoderGaussian, DecoderBernoulli,
                    DecoderContinuousBernoulli, DecoderCategorical; MIN_SCALE bounds scales
priors              PriorGaussian, PriorMixture, PriorVamp, PriorAutoregressive
model               VAE (elbo, loss, sample, reconstruct, log_marginal), Elbo
training            fit, evaluate, History (save, load, convergence → Convergence)
diagnostics         latent_units → LatentUnits, bits_per_dim
figures             plot_learning_curve, plot_images, plot_latents, plot_manifold, plot_units,
                    plot_rate_distortion, explore_plane (a page to touch), new_figure,
                    save_figure; TRAIN_COLOR, TEST_COLOR
==================  ====================================================================

Every log-probability, KL and ELBO is in nats, summed over the event, one number per data point.
Shapes: B data points in a batch, N in a data set, D latent dimensions. Nothing happens at import.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import html
import io
import itertools
import json
import math
import os
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    constraints,
    kl_divergence,
)
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ------------------------------------------------------------------------------------- data

# Size and SHA-256 of the published files: torchvision only looks whether there are any.
_FILES = {
    "train-images-idx3-ubyte": 47040016,
    "train-labels-idx1-ubyte": 60008,
    "t10k-images-idx3-ubyte": 7840016,
    "t10k-labels-idx1-ubyte": 10008,
}
_SHA256 = {
    "MNIST": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "Fashion-MNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_DOWNLOAD_TIMEOUT = 20  # seconds of silence from a server before the next mirror is tried


class ImageSet(TensorDataset):
    """A split: a map-style dataset of ``(image, label)``; images uint8 ``(N, C, H, W)``."""

    @property
    def images(self) -> Tensor:
        """All images, uint8, ``(N, C, H, W)``."""
        return self.tensors[0]

    @property
    def labels(self) -> Tensor:
        """All labels, int64, ``(N,)``."""
        return self.tensors[1]

    def __getitems__(self, index: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """The items of a whole index list at once, which is how a ``DataLoader`` asks first."""
        chosen = torch.as_tensor(index)
        return list(zip(*(t[chosen] for t in self.tensors), strict=True))


@dataclass(frozen=True)
class Images:
    """A data set of images: its ``name`` and its splits ``train`` and ``test``."""

    name: str
    train: ImageSet
    test: ImageSet

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.train.images.shape[1:]))
        return f"{self.name}: {len(self.train):,} train + {len(self.test):,} test images, {shape}"


def load_images(
    name: str = "auto", root: str | os.PathLike[str] | None = None, download: bool = True
) -> Images:
    """Load "mnist", "fashion-mnist" or "digits" as raw 8-bit images.

    "auto" is the name in ``VAE_LAB_DATASET``, else MNIST where it is on disk or can be downloaded,
    else, with a warning, scikit-learn's bundled 8 × 8 digits, which need neither disk nor network.
    ``root`` is the folder of the files: by default ``VAE_LAB_DATA``, else ``data``.

    Raises ``ValueError`` for an unknown name and for a file that is not the published one
    (SHA-256), ``FileNotFoundError`` where a data set is neither on disk nor to be downloaded.
    """
    if name == "auto":
        name = os.environ.get("VAE_LAB_DATASET") or "auto"
    folder = Path(root if root is not None else os.environ.get("VAE_LAB_DATA", "data"))
    if name == "digits":
        return _load_digits()
    if name in ("mnist", "fashion-mnist"):
        return _load_torchvision(name, folder, download)
    if name != "auto":
        raise ValueError(f"unknown data set {name!r}: known are mnist, fashion-mnist, digits, auto")
    try:
        return _load_torchvision("mnist", folder, download)
    except FileNotFoundError as error:
        line = "!" * 78
        warnings.warn(
            f"\n{line}\nNOT MNIST: the 8 × 8 digits of scikit-learn stand in for it.\n"
            f"{error}\n{line}",
            stacklevel=2,
        )
        return _load_digits()


def _load_digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 … 16, spread over the 8-bit range that the transforms expect.
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    n = 1500  # the test images come last: other writers than the training images
    return Images("digits", ImageSet(images[:n], labels[:n]), ImageSet(images[n:], labels[n:]))


def _load_torchvision(name: str, root: Path, download: bool) -> Images:
    from torchvision import datasets
    from torchvision.datasets import mnist

    kind = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    title = "MNIST" if name == "mnist" else "Fashion-MNIST"
    raw = root / kind.__name__ / "raw"
    if not all((raw / file).is_file() for file in _FILES):
        _download(kind, title, root, download)
    for file in _FILES:
        if not (raw / file).resolve().is_relative_to(root.resolve()):
            raise ValueError(
                f"{raw / file} leads out of the data folder {root}: "
                "make VAE_LAB_DATA the folder in which the files really are"
            )
        _verify(raw / file, title)
    # Not through the class: it would prefer unverified .pt files, a relic of its first versions.
    train, train_labels, test, test_labels = (
        (mnist.read_image_file if "images" in file else mnist.read_label_file)(str(raw / file))
        for file in _FILES
    )
    return Images(
        title, ImageSet(train.unsqueeze(1), train_labels), ImageSet(test.unsqueeze(1), test_labels)
    )


def _verify(path: Path, title: str) -> None:
    expected = _SHA256[title][list(_FILES).index(path.name)]
    # The size first: what stands in place of a file may be far larger than memory.
    if path.stat().st_size != _FILES[path.name] or (
        hashlib.sha256(path.read_bytes()).hexdigest() != expected
    ):
        raise ValueError(
            f"{path} is not the published file of {title} (size or SHA-256 differ): "
            "delete it, and it will be downloaded again, or put the original in its place"
        )


def _download(kind: Any, title: str, root: Path, download: bool) -> None:
    """Fetch into a scratch folder, verify, and only then move into place, file by file.

    So a broken download is never mistaken for data, two processes may do it at once, and a link
    that stands in place of a file is replaced, never followed.
    """
    raw = Path(kind.__name__) / "raw"
    reason: Exception | str = "downloading was not asked for"
    if download:
        timeout = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                kind(scratch, download=True)
                for file in _FILES:
                    _verify(Path(scratch) / raw / file, title)
                (root / raw).mkdir(parents=True, exist_ok=True)
                for file in _FILES:
                    os.replace(Path(scratch) / raw / file, root / raw / file)
            return
        except (OSError, RuntimeError, ValueError) as error:
            reason = error
        finally:
            socket.setdefaulttimeout(timeout)
    raise FileNotFoundError(
        f"{title} is not in {root / raw} and could not be downloaded through torchvision "
        f"({reason}). Put the four files {', '.join(_FILES)} there, let VAE_LAB_DATA name the "
        'folder that holds them, or use the stand-in that needs no files: "digits".'
    )


def _raw(batch: Tensor) -> Tensor:
    if batch.dtype != torch.uint8:
        raise TypeError(f"expected raw 8-bit images (uint8), got {batch.dtype}")
    return batch


def scale(raw: Tensor) -> Tensor:
    """x = raw/255 in [0, 1]: for ``DecoderCategorical``, to which it names the level, and for
    ``DecoderContinuousBernoulli``, whose support [0, 1] is.

    Under a Gaussian these are 256 points, not a density: its likelihood is without bound.
    """
    return _raw(raw) / 255


def dequantize(raw: Tensor) -> Tensor:
    """x = (raw + u)/256 with u ~ U(0, 1), drawn anew each time: for ``DecoderGaussian``.

    u has 16 bits, about what float32 can tell apart between neighbouring levels. On a CPU the last
    8 are shared by the pixels of a data point.

    The uniform noise makes 8-bit levels a density on [0, 1]; the mean log-density in nats, less
    D log 256, then bounds the log-probability of the levels (Theis et al. 2016, section 3.1).
    """
    return _noise(_raw(raw)).mul_(2**-8).add_(raw).mul_(2**-8)


def binarize(raw: Tensor) -> Tensor:
    """x ~ Bernoulli(raw/255), drawn anew each time: for ``DecoderBernoulli``.

    "Dynamic binarisation" (Salakhutdinov & Murray 2008): grey values are probabilities of ink,
    here to the nearest multiple of 2⁻¹⁶, and exactly at 0 and 1. The noise is that of
    ``dequantize``.
    """
    return _noise(_raw(raw)).sub_(raw, alpha=256 / 255).lt_(0)


def _noise(raw: Tensor) -> Tensor:
    """Uniform between 0 and 256, in the shape of ``raw``; float32.

    A CPU draws one number after the other, so there every random word is cut into eight bytes, each
    a pixel's whole part. The fraction, of 8 bits, is drawn once for a data point: two of its pixels
    correlate by 2⁻¹⁶, and the variance of a sum over D of them grows by the factor 1 + D 2⁻¹⁶.
    """
    if raw.device.type != "cpu":
        return torch.rand(raw.shape, device=raw.device, dtype=torch.float32).mul_(256)
    words = torch.empty(-(-raw.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    whole = words.view(torch.uint8)[: raw.numel()].view(raw.shape)
    fraction = torch.randint(256, raw.shape[:1] + (1,) * (raw.ndim - 1))
    return fraction.float().add_(0.5).mul_(2**-8) + whole


# --------------------------------------------------------------------------------- networks


class Reshape(nn.Module):
    """Give each data point the shape ``shape``, which may be (), unlike in ``nn.Unflatten``."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *any)`` → ``(B, *shape)``."""
        return x.reshape(len(x), *self.shape)

    def extra_repr(self) -> str:  # noqa: D102
        return str(self.shape)


def mlp(
    inputs: int | Sequence[int], hidden: Sequence[int], outputs: int | Sequence[int]
) -> nn.Sequential:
    """A multilayer perceptron with SiLU between its layers.

    ``inputs`` and ``outputs`` are shapes of one data point (an int is a vector's length), so
    ``mlp((1, 28, 28), [512, 512], 100)`` maps ``(B, 1, 28, 28)`` to ``(B, 100)``.
    """
    start, end = _shape(inputs), _shape(outputs)
    widths = [math.prod(start), *hidden, math.prod(end)]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return _between(start, layers[:-1], end)


class Residual(nn.Sequential):
    """x + f(x) for the layers f, so that the gradient has a way around them (He et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width)`` → ``(B, width)``."""
        return x + super().forward(x)


def residual_mlp(
    inputs: int | Sequence[int], width: int, blocks: int, outputs: int | Sequence[int]
) -> nn.Sequential:
    """A perceptron of ``blocks`` residual blocks x + W₂ SiLU(W₁ x); shapes as in ``mlp``."""
    start, end = _shape(inputs), _shape(outputs)
    body = [
        Residual(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
    ]
    first, last = nn.Linear(math.prod(start), width), nn.Linear(width, math.prod(end))
    return _between(start, [first, *body, nn.SiLU(), last], end)


def _between(
    start: tuple[int, ...], layers: list[nn.Module], end: tuple[int, ...]
) -> nn.Sequential:
    """Layers on vectors, between data points of the shapes ``start`` and ``end``."""
    before = [] if len(start) == 1 else [Reshape([math.prod(start)])]
    return nn.Sequential(*before, *layers, *([] if len(end) == 1 else [Reshape(end)]))


def conv_encoder(shape: Sequence[int], outputs: int, width: int = 16) -> nn.Sequential:
    """Two strided convolutions and a linear layer: ``(B, C, H, W)`` → ``(B, outputs)``."""
    channels, height, width_ = _image_shape(shape)
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (width_ // 4), outputs),
    )


def conv_decoder(inputs: int, shape: Sequence[int], width: int = 16) -> nn.Sequential:
    """The mirror image of ``conv_encoder``: ``(B, inputs)`` → ``(B, C, H, W)``."""
    channels, height, width_ = _image_shape(shape)
    start = (2 * width, height // 4, width_ // 4)
    return nn.Sequential(
        nn.Linear(inputs, math.prod(start)),
        Reshape(start),
        nn.SiLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
    )


def _shape(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise ValueError(f"expected (channels, height, width), both multiples of 4, got {shape}")
    return shape[0], shape[1], shape[2]


# ------------------------------------------------------------------ conditional distributions

# The least scale a network can ask for is about the standard deviation of what dequantize() adds,
# (1/256)/√12 ≈ 0.0011: below it a density would describe the noise. The bound keeps log-densities
# finite on constant data; data far from the magnitude of 1 want to be standardised first.
MIN_SCALE = 1e-3


def _positive(raw: Tensor) -> Tensor:
    return F.softplus(raw) + MIN_SCALE


class Conditional(nn.Module):
    """A network plus a rule that turns its output into a distribution (abstract).

    A subclass is the rule, ``distribution``. While ``precision`` is set, as ``fit`` does, the
    network, and nothing else, computes in it under autocast; the rule always sees float32, or
    float64 where the network is.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.precision: torch.dtype | None = None

    def distribution(self, out: Tensor) -> Distribution:
        """The distribution that the network's output ``(B, ...)`` stands for."""
        raise NotImplementedError

    def forward(self, condition: Tensor) -> Distribution:
        """Condition ``(B, ...)`` → distribution with batch shape ``(B,)``."""
        if self.precision is None:
            return self.distribution(self.net(condition))
        with torch.autocast(condition.device.type, self.precision):
            out = self.net(condition)
        return self.distribution(out.float() if out.dtype == self.precision else out)

    def log_prob(self, value: Tensor, condition: Tensor) -> Tensor:
        """log p(value | condition) in nats, ``(B,)``.

        Raises ``ValueError`` outside the support and ``FloatingPointError`` for NaN or infinity.
        """
        return _log_prob(self(condition), value)


class EncoderGaussian(Conditional):
    """q(z|x) = N(z; μ(x), diag σ²(x)), the variational posterior (Kingma & Welling 2014).

    ``net`` maps x to w, ``(B, 2D)``: the first half is μ, the second gives σ by softplus.
    """

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, 2D)`` → normal with event shape ``(D,)``."""
        if out.ndim != 2 or out.shape[1] % 2:
            raise ValueError(
                f"an encoder's network must give (B, 2D), location and scale; got {_dims(out)}"
            )
        loc, raw_scale = out.chunk(2, dim=1)
        return _independent(Normal(loc, _positive(raw_scale), validate_args=False))


class DecoderGaussian(Conditional):
    """p(x|z) = N(x; μ(z), σ²), the event having the data's shape.

    ``scale=None`` learns one σ shared by all (Rybkin et al. 2021), a float fixes it, and "net"
    takes it from the network, whose output then has twice the channels: μ, then σ.
    """

    fixed_scale: Tensor

    def __init__(self, net: nn.Module, scale: float | Literal["net"] | None = None) -> None:
        super().__init__(net)
        if not (scale is None or scale == "net"):
            if isinstance(scale, str) or not 0 < scale < math.inf:
                raise ValueError(f'scale must be None, "net" or a positive number, got {scale!r}')
            self.register_buffer("fixed_scale", torch.tensor(float(scale)))
        # The learned σ starts near 0.1. Starting too wide drowns the latents in noise for epochs;
        # starting too narrow is corrected within a few steps, the gradient there being steep.
        self.raw_scale = nn.Parameter(torch.tensor(-2.25)) if scale is None else None
        self.scale_from_net = scale == "net"
        self.given_scale = scale

    def extra_repr(self) -> str:  # a checkpoint of another scale is recognised by it
        """The scale as it was asked for."""
        return f"scale={self.given_scale!r}"

    @property
    def scale(self) -> Tensor:
        """The σ shared by all data points, ``()``; not there with ``scale="net"``."""
        return self.fixed_scale if self.raw_scale is None else _positive(self.raw_scale)

    def distribution(self, out: Tensor) -> Distribution:
        """``(B, *event)`` → normal with that event; with "net", ``(B, 2C, ...)`` → ``(C, ...)``."""
        if not self.scale_from_net:
            return _independent(Normal(out, self.scale, validate_args=False))
        if out.ndim < 2 or out.shape[1] % 2:
            raise ValueError(
                f'scale="net" needs (B, 2C, ...), twice the channels; got {_dims(out)}'
            )
        loc, raw_scale = out.chunk(2, dim=1)
        return _independent(Normal(loc, _positive(raw_scale), validate_args=False))


class DecoderBernoulli(Conditional):
    """p(x|z) for x in {0, 1}: the network gives logits, in the data's shape."""

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, *event)`` → Bernoulli with that event."""
        base = Bernoulli(logits=out, validate_args=False)
        return _IndependentBernoulli(base, out.ndim - 1, validate_args=False)


class _IndependentBernoulli(Independent):  # type: ignore[type-arg]  # not generic in PyTorch 2.4
    """``Independent`` of a ``Bernoulli``, whose log-probability takes few logarithms."""

    def log_prob(self, value: Tensor) -> Tensor:
        event = self.reinterpreted_batch_ndims
        pair = torch.broadcast_tensors(self.base_dist.logits, value)
        flat = (t.flatten(-event) if event else t.unsqueeze(-1) for t in pair)
        return _BernoulliLogProb.apply(*flat)


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x l − log(1 + eˡ) over the last dimension, for logits l and x in {0, 1}.

    log(1 + eˡ) = max(l, 0) − log σ(|l|), and σ(|l|) lies in [½, 1]: so the product of up to 64 of
    them cannot underflow, and one logarithm, a slow function on a CPU, does for all of them. How
    many go together depends on the divisors of the event's size: 56 of 784, 64 of 1,024.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        size = logits.shape[-1]
        together = next(n for n in range(64, 0, -1) if size % n == 0)
        factors = logits.abs().sigmoid_().unflatten(-1, (size // together, together))
        wide = torch.promote_types(logits.dtype, torch.float32)  # float16 ends at 2⁻²⁴
        terms = logits.relu().addcmul_(value, logits, value=-1)
        return factors.prod(-1, dtype=wide).log().sum(-1) - terms.sum(-1, dtype=wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, value = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        by_value = grad * logits if ctx.needs_input_grad[1] else None
        return (value - logits.sigmoid()).mul_(grad), by_value


class DecoderContinuousBernoulli(Conditional):
    """p(x|z), a density, for x in [0, 1] (Loaiza-Ganem & Cunningham 2019); the network: logits."""

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, *event)`` → continuous Bernoulli with that event."""
        return _independent(ContinuousBernoulli(logits=out, validate_args=False))


class DecoderCategorical(Conditional):
    """p(x|z) for x in {0, 1/255, …, 1}: a proper distribution over the 256 levels of a pixel.

    A pixel's distribution is a mixture of ``components`` histograms, which all pixels share and
    which are learned with the weights; the network gives the mixture's logits, ``components``
    times the data's channels. So 256 levels cost no more than a few numbers per pixel.
    """

    def __init__(self, net: nn.Module, components: int = 4) -> None:
        super().__init__(net)
        grid = torch.linspace(0, 1, 256)
        # They begin as bumps side by side, narrow ones at black and at white, where pixels gather.
        centres = torch.linspace(0, 1, _at_least_one(components=components)).unsqueeze(1)
        widths = torch.full_like(centres, 1 / components)
        if components > 2:
            widths[[0, -1]] = 1 / 256
        self.histograms = nn.Parameter(-(grid - centres).abs() / widths / _GAIN)

    def distribution(self, out: Tensor) -> Distribution:
        """Logits ``(B, K·C, ...)`` → distribution with event shape ``(C, ...)``."""
        components = len(self.histograms)
        if out.ndim < 2 or out.shape[1] % components:
            raise ValueError(
                f"{components} components need (B, {components}·C, ...), so many times the "
                f"channels; got {_dims(out)}"
            )
        logits = out.unflatten(1, (components, -1)).movedim(1, 0)
        return _independent(_SharedHistograms(logits, _GAIN * self.histograms))


# Rare levels differ from frequent ones by a dozen in their logits, and Adam moves any parameter by
# about the learning rate per step: the histograms take longer steps than the weights.
_GAIN = 10


class _SharedHistograms(Distribution):
    """A mixture, by logits ``(K, *batch)``, of histograms ``(K, L)`` on L levels from 0 to 1."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, logits: Tensor, histograms: Tensor) -> None:
        super().__init__(logits.shape[1:], validate_args=False)
        self.log_weights = logits.log_softmax(0)
        self.log_histograms = histograms.log_softmax(1)
        self.last = histograms.shape[1] - 1

    @property
    def support(self) -> constraints.Constraint:
        return _Levels(self.last)

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.last + 1).to(self.log_weights) / self.last
        means = self.log_histograms.exp() @ levels
        return torch.einsum("k...,k->...", self.log_weights.exp(), means)

    def log_prob(self, value: Tensor) -> Tensor:
        level = (value * self.last).round().long()
        # One component after the other: far faster than a table with the components innermost.
        parts = [
            weight + histogram.index_select(0, level.flatten()).view(level.shape)
            for weight, histogram in zip(self.log_weights, self.log_histograms, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        weights = self.log_weights.movedim(0, -1)
        chosen = Categorical(logits=weights, validate_args=False).sample(sample_shape)
        # A draw from every histogram, of which one is taken.
        draws = Categorical(logits=self.log_histograms, validate_args=False).sample(chosen.shape)
        level = draws.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return level.to(self.log_weights) / self.last


class _Levels(constraints.Constraint):
    """The levels 0, 1/last, …, 1, to rounding."""

    def __init__(self, last: int) -> None:
        self.last = last

    def check(self, value: Tensor) -> Tensor:
        level = value * self.last
        return ((level - level.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)


def _independent(base: Distribution) -> Distribution:
    """All dimensions but the first are one event."""
    return Independent(base, len(base.batch_shape) - 1, validate_args=False)


def _dims(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


_REMEDY = {  # what to do about data outside a decoder's support
    "Boolean": "binarize the data (transform=binarize), or choose a decoder for grey values",
    "Interval": "scale the data into it (transform=scale)",
    "Levels": "scale 8-bit levels to it (transform=scale)",
}


def _log_prob(p: Distribution, value: Tensor) -> Tensor:
    """log p(value), ``(B,)``, after the checks that data deserve where they enter."""
    if p.batch_shape + p.event_shape != value.shape or len(p.batch_shape) != 1:
        raise ValueError(
            f"the data have shape {_dims(value)}, but the distribution describes batch "
            f"{tuple(p.batch_shape)} of events {tuple(p.event_shape)}"
        )
    support: Any = p.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean and torch.compiler.is_compiling():
        # To branch on data would cut the graph in two: NaN now, and words from `_look`.
        value = torch.where(support.check(value), value, math.nan)
    # On the meta device there is nothing to look at.
    elif not value.is_meta and not _holds(support, value):
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise FloatingPointError(f"x holds {bad} values that are NaN or infinite")
        kind = type(support).__name__.strip("_")
        told = str(support) if len(str(support)) < 80 else kind  # bounds may be tensors
        raise ValueError(
            f"data outside the decoder's support, {told}: "
            f"{_REMEDY.get(kind, 'transform the data, or choose another decoder')}"
        )
    return p.log_prob(value)


def _holds(support: Any, value: Tensor) -> bool:
    """Whether all of value lies in the support; on the real line there is nothing to check."""
    if support is constraints.real:
        return True
    if support is constraints.boolean:  # once per training step, so in few passes over memory:
        # x − x² is 0 at 0 and 1 only; NaN is not 0.
        return not torch.addcmul(value, value, value, value=-1).abs_().sum()
    return bool(support.check(value).all())


# ---------------------------------------------------------------------------------- priors


class _Prior(nn.Module):
    """Called without arguments, a prior gives its distribution (abstract)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, ``(B, D)`` → ``(B,)``."""
        log_p: Tensor = self().log_prob(z)
        return log_p


class PriorGaussian(_Prior):
    """p(z) = N(0, I); its tensors are buffers, so that it moves with the model."""

    loc: Tensor
    unit: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(_at_least_one(dim=dim)))
        self.register_buffer("unit", torch.ones(dim))

    def forward(self) -> Distribution:
        """() → standard normal with event shape ``(D,)``."""
        return Independent(Normal(self.loc, self.unit, validate_args=False), 1, validate_args=False)


class PriorMixture(_Prior):
    """p(z) = Σₖ πₖ N(z; μₖ, diag σₖ²), all of it learned."""

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        shape = (_at_least_one(components=components), _at_least_one(dim=dim))
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Distribution:
        """() → mixture with event shape ``(D,)``."""
        return MixtureSameFamily(
            Categorical(logits=self.logits, validate_args=False),
            _independent(Normal(self.loc, _positive(self.raw_scale), validate_args=False)),
            validate_args=False,
        )


class PriorVamp(_Prior):
    """p(z) = 1/K Σₖ q(z|uₖ): a mixture of the encoder's own posteriors (Tomczak & Welling 2018).

    The pseudo-inputs u are learned. They begin as ``x``, ``(K, ...)``, data in model space. It
    keeps the encoder that it was given: where the VAE's is exchanged, make a new prior too.
    """

    def __init__(self, encoder: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.pseudo_inputs = nn.Parameter(x.clone())

    def forward(self) -> Distribution:
        """() → mixture with event shape ``(D,)``."""
        q = self.encoder(self.pseudo_inputs)
        uniform = Categorical(logits=q.mean.new_zeros(len(q.mean)), validate_args=False)
        return MixtureSameFamily(uniform, q, validate_args=False)


class PriorAutoregressive(_Prior):
    """p(z) = Π p(z_d | z_1 … z_d−1), each factor a mixture of Gaussians, all of it learned.

    One masked network gives the parameters of all factors at once (MADE, Germain et al. 2015),
    so a log-probability costs one pass; a sample costs D.
    """

    first_mask: Tensor
    last_mask: Tensor

    def __init__(self, dim: int, hidden: int = 256, components: int = 4) -> None:
        super().__init__()
        self.dim, self.components = _at_least_one(dim=dim), _at_least_one(components=components)
        outputs = dim * 3 * components
        self.first = nn.Linear(dim, _at_least_one(hidden=hidden))
        self.last = nn.Linear(hidden, outputs)
        # Hidden unit h sees z_1 … z_seen(h); a factor sees the hidden units that know less than it.
        # Where there are few hidden units, they lie evenly among the dimensions.
        step = max(0, dim - 2) // hidden + 1
        seen = torch.arange(hidden) * step % max(1, dim - 1) + 1
        self.register_buffer("first_mask", (seen[:, None] > torch.arange(dim)).float())
        factor = torch.arange(outputs) // (3 * components)
        self.register_buffer("last_mask", (factor[:, None] >= seen).float())
        with torch.no_grad():  # near a wide mixture that does not depend on the others
            self.last.weight *= 0.3
            self.last.bias.view(dim, 3, components)[:, 1] = torch.linspace(-1, 1, components)

    def factors(self, z: Tensor) -> Distribution:
        """z ``(*, D)`` → p(z_d | z_1 … z_d−1), batch shape ``(*, D)``."""
        hidden = F.silu(F.linear(z, self.first.weight * self.first_mask, self.first.bias))
        out = F.linear(hidden, self.last.weight * self.last_mask, self.last.bias)
        logits, loc, raw_scale = out.unflatten(-1, (self.dim, 3, self.components)).unbind(-2)
        return MixtureSameFamily(
            Categorical(logits=logits, validate_args=False),
            Normal(loc, _positive(raw_scale), validate_args=False),
            validate_args=False,
        )

    def forward(self) -> Distribution:
        """() → distribution with event shape ``(D,)``."""
        return _Autoregressive(self)


class _Autoregressive(Distribution):
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, prior: PriorAutoregressive) -> None:
        super().__init__(event_shape=torch.Size([prior.dim]), validate_args=False)
        self.prior = prior

    def log_prob(self, value: Tensor) -> Tensor:
        return self.prior.factors(value).log_prob(value).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z = self.prior.first.weight.new_zeros(*sample_shape, self.prior.dim)
        with torch.no_grad():
            for d in range(self.prior.dim):
                z[..., d] = self.prior.factors(z).sample()[..., d]
        return z


def _at_least_one(**value: int) -> int:
    ((name, number),) = value.items()
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")
    return number


# ----------------------------------------------------------------------------------- model


class Elbo(NamedTuple):
    """The two terms of the evidence lower bound, per data point, in nats."""

    log_likelihood: Tensor
    """log p(x|z) at one z ~ q(z|x), ``(B,)``."""
    kl: Tensor
    """KL(q(z|x) ‖ p(z)), exact or its single-sample estimate, ``(B,)``."""

    @property
    def value(self) -> Tensor:
        """The ELBO itself, ``(B,)``: β plays no part in it."""
        return self.log_likelihood - self.kl


class VAE(nn.Module):
    """A variational autoencoder: q(z|x), p(x|z) and p(z), each to be exchanged at any time.

    ``encoder(x)`` and ``decoder(z)`` return a ``Distribution`` with batch shape ``(B,)``, and so
    does ``prior()`` with an empty one: any module that does so will do. ``beta`` weights the KL
    term in the loss (β-VAE, Higgins et al. 2017), and nothing else.

    The KL term is exact where PyTorch knows the pair of distributions, else, or with
    ``analytic_kl=False``, log q(z|x) − log p(z) at the sample, whose gradient is taken along the
    path of z alone (Roeder et al. 2017): unbiased, and without variance where q is the posterior.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        beta: float = 1.0,
        *,
        analytic_kl: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.beta = beta
        self.analytic_kl = analytic_kl

    @property
    def beta(self) -> float:
        """The weight of the KL term in the loss, at least 0."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < math.inf
        ):
            raise ValueError(f"beta must be a finite number of at least 0, got {value!r}")
        self._beta = float(value)

    def forward(self, x: Tensor) -> Elbo:
        """The same as ``elbo``: what a wrapper such as ``DistributedDataParallel`` calls.

        After ``compile()`` it is compiled, and grey pixels under a Bernoulli give NaN here. But
        ``elbo`` stays as it is, and so do the errors of ``fit``.
        """
        return self.elbo(x)

    def elbo(self, x: Tensor) -> Elbo:
        """Both terms of the ELBO at one reparametrised sample, for x in model space ``(B, ...)``.

        Raises ``TypeError`` for integer data and ``ValueError`` where shapes do not fit together
        or data lie outside the decoder's support.
        """
        q = self._posterior(x)
        z = q.rsample()
        return Elbo(_log_prob(self.decoder(z), x), self._kl(q, z))

    def loss(self, x: Tensor) -> Tensor:
        """The scalar to minimise: the mean over the batch of −log p(x|z) + β KL, in nats."""
        log_likelihood, kl = self.elbo(x)
        return (self.beta * kl - log_likelihood).mean()

    @torch.no_grad()
    def sample(self, n: int, mean: bool = False) -> Tensor:
        """Draw ``n`` times z ~ p(z), then x ~ p(x|z), or with ``mean`` its mean, ``(n, ...)``."""
        p = self.decoder(self.prior().sample((_at_least_one(n=n),)))
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, mean: bool = True) -> Tensor:
        """Encode and decode: with ``mean``, the means of q and p; else a sample of each."""
        q = self._posterior(x)
        p = self.decoder(q.mean if mean else q.sample())
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def log_marginal(self, x: Tensor, n_samples: int, chunk: int = 2048) -> Tensor:
        """Importance-weighted estimate of log p(x) in nats, ``(B,)`` (Burda et al. 2016, eq. 8).

        log 1/K Σ p(x|zₖ) p(zₖ) / q(zₖ|x) over K = ``n_samples`` draws from q: in expectation a
        lower bound that rises with K, from the ELBO at K = 1. No more than ``chunk`` latent
        points are decoded at once, so memory does not depend on K.
        """
        _at_least_one(n_samples=n_samples), _at_least_one(chunk=chunk)
        if len(x) > chunk:
            return torch.cat([self.log_marginal(part, n_samples, chunk) for part in x.split(chunk)])
        q = self._posterior(x)
        prior = self._prior_for(q)
        total = x.new_full((len(x),), -math.inf)
        step = min(n_samples, max(1, chunk // max(1, len(x))))
        repeated = x.expand(step, *x.shape).flatten(0, 1)
        for start in range(0, n_samples, step):
            z = q.sample((min(step, n_samples - start),))  # (S, B, D)
            p, target = self.decoder(z.flatten(0, 1)), repeated[: len(z) * len(x)]
            # The data stay the same, so they are checked but once.
            log_likelihood = p.log_prob(target) if start else _log_prob(p, target)
            log_weight = log_likelihood.view(z.shape[:2]) + prior.log_prob(z) - q.log_prob(z)
            total = torch.logaddexp(total, log_weight.logsumexp(0))
        return total - math.log(n_samples)

    def _posterior(self, x: Tensor) -> Distribution:
        if not x.is_floating_point():
            raise TypeError(
                f"data of {x.dtype} are not in the model's space: transform them with scale, "
                "dequantize or binarize, whichever the decoder's likelihood asks for"
            )
        q = self.encoder(x)
        if q.batch_shape != x.shape[:1]:
            raise ValueError(
                f"the encoder must return one distribution per data point, batch {_dims(x)[:1]}; "
                f"got batch {tuple(q.batch_shape)}, event {tuple(q.event_shape)}"
            )
        return q

    def _prior_for(self, q: Distribution) -> Distribution:
        p: Distribution = self.prior()
        if p.event_shape != q.event_shape:
            raise ValueError(
                f"the prior's event {tuple(p.event_shape)} is not the encoder's "
                f"{tuple(q.event_shape)}"
            )
        return p

    def _kl(self, q: Distribution, z: Tensor) -> Tensor:
        p = self._prior_for(q)
        if self.analytic_kl:
            with contextlib.suppress(NotImplementedError):
                return kl_divergence(q, p)
        return _constant(q).log_prob(z) - p.log_prob(z)


def _constant(q: Distribution) -> Distribution:
    """q with its tensors, and those of the distributions in it, cut out of the graph.

    What else a foreign q may hold, a learned transform for instance, stays in: the gradient is
    unbiased also then, but keeps some of the variance.
    """
    twin = copy.copy(q)
    for name, value in vars(q).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.detach())
        elif isinstance(value, Distribution):
            setattr(twin, name, _constant(value))
    return twin


# -------------------------------------------------------------------------------- training

Precision = Literal["auto", "float32", "bfloat16"]
Transform = Callable[[Tensor], Tensor]


def _none() -> np.ndarray:
    return np.empty(0)


@dataclass(eq=False, repr=False)
class History:
    """Every data point's −ELBO in every epoch, in nats, and what follows from it.

    A training point's value is what the training pass itself computed for it, so the average
    belongs to the middle of its epoch, k − ½. The test set is evaluated before the first epoch and
    at the end of each, always with the same noise. Points keep the order of their data set; where
    ``fit`` was given ``cloud``, they are a fixed random sample of it, the averages being over all.
    """

    train: np.ndarray = field(default_factory=_none)
    """−ELBO of the training points, float32 ``(epochs, N_train)``."""
    test: np.ndarray = field(default_factory=_none)
    """−ELBO of the test points, float32 ``(epochs + 1, N_test)``."""
    train_mean: np.ndarray = field(default_factory=_none)
    """Averages over all data points, ``(epochs,)``; of ``test_mean``, ``(epochs + 1,)``."""
    train_se: np.ndarray = field(default_factory=_none)
    """Standard errors of the averages, in the same shapes."""
    test_mean: np.ndarray = field(default_factory=_none)
    test_se: np.ndarray = field(default_factory=_none)
    seconds: np.ndarray = field(default_factory=_none)
    """Duration of each epoch, its evaluation included, ``(epochs,)``."""
    train_points: int = 0
    test_points: int = 0
    """How many points the data set has, of which ``cloud`` may have kept a part."""

    def extended(
        self, cloud: int | None = None, seconds: float | None = None, **rows: Tensor
    ) -> History:
        """This history and, per split, one more row of −ELBO for all its points, ``(N,)``."""
        new = dict(vars(self))
        for split, row in rows.items():
            values = row.cpu().numpy().astype(np.float64)
            n, points = len(values), values.astype(np.float32)
            if cloud is not None and cloud < n:
                # A private generator: the same sample in each epoch, and no stream is disturbed.
                points = points[np.sort(np.random.default_rng(0).choice(n, cloud, False))]
            new[split] = np.stack([*new[split], points])
            new[f"{split}_mean"] = np.append(new[f"{split}_mean"], values.mean())
            error = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
            new[f"{split}_se"] = np.append(new[f"{split}_se"], error)
            new[f"{split}_points"] = n
        if seconds is not None:
            new["seconds"] = np.append(new["seconds"], seconds)
        return History(**new)

    def __len__(self) -> int:
        return len(self.seconds)

    def __repr__(self) -> str:
        if not len(self):
            return "History of 0 epochs"
        return (
            f"{len(self)} epochs in {self.seconds.sum():.0f} s: −ELBO train "
            f"{_nats(self.train_mean[-1])} ± {self.train_se[-1]:.2f}, test "
            f"{_nats(self.test_mean[-1])} ± {self.test_se[-1]:.2f} nats per data point"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of plain arrays."""
        with open(path, "wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what ``save`` wrote, executing nothing; ``ValueError`` if it is something else."""
        try:
            # Opened here, since NumPy leaves a file open that turns out to be broken.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                if set(arrays) != set(cls.__dataclass_fields__):
                    raise ValueError(f"it holds {', '.join(arrays)}")
                return cls(**{name: array[()] for name, array in arrays.items()})
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(f"{path} is not a history that History.save wrote") from error

    def convergence(self) -> Convergence:
        """Has the test curve come to rest? ``ValueError`` before 4 epochs or with 1 test point."""
        epochs = len(self)
        if epochs < 4 or self.test_points < 2:
            raise ValueError(
                f"{epochs} epochs and {self.test_points} test points say nothing of convergence: "
                "4 epochs and 2 points are the least"
            )
        start = epochs - max(2, math.ceil(epochs / 4))
        # The least-squares slope of each test point's own curve. Their spread tells how well the
        # average slope is known, because a point meets the same noise in every epoch.
        centred = np.arange(start, epochs + 1) - (start + epochs) / 2
        gain = -(centred / (centred**2).sum()) @ self.test[start:].astype(np.float64)
        return Convergence(
            first_epoch=start,
            last_epoch=epochs,
            improvement=float(gain.mean()),
            improvement_se=float(gain.std() / math.sqrt(len(gain))),
            test_se=float(self.test_se[-1]),
            gap=float(self.test_mean[-1] - self.train_mean[-1]),
            gap_se=float(np.hypot(self.test_se[-1], self.train_se[-1])),
            best_epoch=int(self.test_mean.argmin()),
        )


@dataclass(frozen=True)
class Convergence:
    """What the last quarter of a test curve says; in nats per data point."""

    first_epoch: int
    last_epoch: int
    improvement: float
    """How much the test −ELBO falls per epoch over the last quarter."""
    improvement_se: float
    """Its standard error over the test points, each compared with itself."""
    test_se: float
    """Standard error of the final test −ELBO: how well so many test points determine it."""
    gap: float
    """Test minus train −ELBO in the last epoch."""
    gap_se: float
    """Its standard error, both averages being of images drawn at random."""
    best_epoch: int
    """The epoch from which nothing better came."""

    @property
    def verdict(self) -> Literal["converged", "still improving", "past its best"]:
        """Converged: one more epoch moves the average by less than ``test_se``, and not upwards."""
        if self.improvement > self.test_se:
            return "still improving"
        return "past its best" if self.improvement < -2 * self.improvement_se else "converged"

    def __repr__(self) -> str:
        return (
            f"{self.verdict}: over epochs {self.first_epoch}–{self.last_epoch} the test −ELBO fell "
            f"by {_nats(self.improvement, 3)} ± {self.improvement_se:.3f} nats per epoch, against "
            f"its own standard error of {self.test_se:.2f}; test − train = {_nats(self.gap)} ± "
            f"{self.gap_se:.2f}; best at epoch {self.best_epoch}"
        )


def _nats(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def fit(
    model: VAE,
    train: Tensor | Dataset[Any],
    test: Tensor | Dataset[Any],
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    schedule: Literal["one-cycle", "constant"] = "one-cycle",
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    cloud: int | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[History], None] = True,
) -> History:
    """Train ``model`` on its objective with Adam; return every data point's −ELBO in every epoch.

    ``train`` and ``test`` are tensors, or map-style or iterable datasets that know their length;
    of a tuple ``(x, y)`` only x is used. ``transform`` takes a batch into the model's space, on the
    device. Under ``torch.distributed`` each process trains on its share of every batch.

    =============  =========================================================================
    lr, schedule   peak learning rate; "one-cycle" warms up to it and anneals to zero
    device         by default CUDA, then MPS, then CPU; the model stays there
    precision      "auto" computes the networks of the lab's own encoders and decoders in bfloat16
                   where the hardware is fast at it; log-probabilities and KL are float32 always
                   (float64 where the model is)
    seed           of order, noise and transform; the global generators are left as they were
    cloud          how many points of each split ``History`` keeps, all by default
    workers        processes that load a dataset which is not in memory
    checkpoint     file written after each epoch, from which the same call continues, bit for bit;
                   it holds the history, whose size ``cloud`` bounds
    progress       a bar, or a function that is called with the history after each epoch
    =============  =========================================================================

    ``model.compile(options={"fallback_random": True})`` beforehand may make steps faster, after
    seconds of compiling; the option keeps the noise, so only rounding differs. Ctrl-C returns the
    history so far. The model is left in evaluation mode. Raises ``ValueError`` where settings or
    data make no sense or the checkpoint is of another run, ``TypeError`` for integer data without a
    transform, ``FloatingPointError`` for a term that is not finite.
    """
    _at_least_one(epochs=epochs)
    _at_least_one(batch_size=batch_size)
    if cloud is not None:
        _at_least_one(cloud=cloud)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if not 0 < lr < math.inf or schedule not in ("one-cycle", "constant"):
        raise ValueError(
            f'lr must be positive and schedule "one-cycle" or "constant"; got {lr!r}, {schedule!r}'
        )
    device = _pick_device(device)
    dtype = _net_dtype(precision, device)
    training = _Source(train, "train", device, transform, workers)
    held_out = _Source(test, "test", device, transform, workers)
    rank, world = _process()
    model.to(device)
    replica: nn.Module = model
    if world > 1:
        # Gradients that share a bucket are packed anew after the first step, which changes the
        # order of their sums: a continued run would differ in the last bit.
        bucket = 0 if device.type == "cpu" else None
        replica = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket)
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=device.type in ("cpu", "cuda"))
    settings = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed,
        "transform": _name(transform), "precision": precision, "cloud": cloud,
        "train points": len(training), "test points": len(held_out),
        "beta": model.beta, "analytic_kl": model.analytic_kl, "model": repr(model),
        "parameters": str({name: _dims(t) for name, t in model.state_dict().items()}),
    }  # fmt: skip
    kept = _Checkpoint(checkpoint, settings, model, optimizer)
    history = kept.resume()
    steps = len(training.shares(batch_size, rank, world, seed=(seed, 0)))
    with _networks_in(model, dtype), _bar(progress is True and rank == 0, epochs * steps) as bar:
        bar.update(len(history) * steps)
        try:
            if not len(history.test):
                elbo = _evaluate(model, held_out, seed, "test set, before training")
                history = history.extended(cloud, test=-elbo.value)
                kept.save(history)
            for epoch in range(len(history) + 1, epochs + 1):
                start, row = time.perf_counter(), torch.zeros(len(training), device=device)
                shares = training.shares(batch_size, rank, world, seed=(seed, epoch))
                batches = training.batches(shares)
                done = (epoch - 1 + np.arange(steps) / steps) / epochs
                rates = lr * (_one_cycle(done) if schedule == "one-cycle" else np.ones(steps))
                model.train()
                with _seeded(seed, epoch, 1 + rank), contextlib.closing(batches):
                    _train(replica, model.beta, optimizer, batches, rates, row, epoch, bar)
                elbo = _evaluate(model, held_out, seed, f"test set, epoch {epoch}")
                history = history.extended(
                    cloud, time.perf_counter() - start, train=_gathered(row), test=-elbo.value
                )
                bar.set_postfix_str(
                    f"−ELBO train {history.train_mean[-1]:.2f}, test {history.test_mean[-1]:.2f}"
                )
                kept.save(history)
                if callable(progress) and rank == 0:
                    progress(history)
        except KeyboardInterrupt:
            print(f"interrupted: the history holds {len(history)} of {epochs} epochs")
    model.eval()
    return history


def _train(
    replica: nn.Module,
    beta: float,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, float, Tensor]],
    rates: np.ndarray,
    row: Tensor,
    epoch: int,
    bar: Any,
) -> None:
    """One epoch, which writes the −ELBO of each point into its place of ``row`` ``(N,)``."""
    parameters = list(replica.parameters())
    for step, (share, weight, x) in enumerate(batches):
        elbo = _checked(replica, x, f"epoch {epoch}, step {step + 1}")
        objective = (beta * elbo.kl - elbo.log_likelihood).sum() * weight
        for parameter in parameters:  # optimizer.zero_grad() takes longer over it
            parameter.grad = None
        objective.backward()
        optimizer.param_groups[0]["lr"] = float(rates[step])
        optimizer.step()
        row.index_copy_(0, share, -elbo.value.detach().float())
        bar.update()


def evaluate(
    model: VAE,
    data: Tensor | Dataset[Any],
    *,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    seed: int = 0,
) -> Elbo:
    """Both terms of the ELBO for every point of ``data``, ``(N,)``, as ``fit`` evaluates them.

    The model is moved to the device and left in evaluation mode; errors as in ``fit``.
    """
    device = _pick_device(device)
    model.to(device)
    with _networks_in(model, _net_dtype(precision, device)):
        return _evaluate(model, _Source(data, "data", device, transform, 0), seed, "evaluation")


# Large enough for full speed, small enough to stay in the caches of a CPU.
_EVALUATION_BATCH = 1000


def _evaluate(model: VAE, source: _Source, seed: int, where: str) -> Elbo:
    rank, world = _process()
    own = next((p.dtype for p in model.parameters()), torch.float32)
    dtype = torch.promote_types(own, torch.float32)
    terms = torch.zeros(2, len(source), dtype=dtype, device=source.device)
    for buffer in model.buffers() if world > 1 else ():  # such as running averages of batches
        dist.broadcast(buffer, 0)
    model.eval()
    batches = source.batches(source.shares(_EVALUATION_BATCH, rank, world))
    with torch.no_grad(), _seeded(seed, 0, 1 + rank), contextlib.closing(batches):
        for share, _, x in batches:
            terms[:, share] = torch.stack(_checked(model, x, where)).to(dtype)
    return Elbo(*_gathered(terms))


def _checked(model: nn.Module, x: Tensor, where: str) -> Elbo:
    """model(x), or an error that says where and what is wrong with it."""
    try:
        elbo: Elbo = model(x)
        _look(model, x, elbo)
    except (ValueError, FloatingPointError) as error:
        kind = ValueError if isinstance(error, ValueError) else FloatingPointError
        raise kind(f"{where}: {error}") from error
    return elbo


def _look(model: nn.Module, x: Tensor, elbo: Elbo) -> None:
    """Raise an error that names the term which is not finite, or its cause."""
    # One look at the sum of all: it is finite only if every term of every point is.
    if math.isfinite(elbo.value.detach().sum()):
        return
    for term, values in (("x", x), ("log_likelihood", elbo.log_likelihood), ("kl", elbo.kl)):
        bad = int((~values.reshape(len(x), -1).isfinite()).any(1).sum())
        if bad:
            wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
            plain: Any = model.module if wrapped else model
            with torch.no_grad():  # what a compiled model says with NaN, this says in words
                plain.elbo(x)
            raise FloatingPointError(f"{term} is not finite for {bad} of {len(x)} data points")


class _Source:
    """Batches in model space from a tensor, a map-style or an iterable dataset."""

    def __init__(
        self, data: Any, name: str, device: torch.device, transform: Transform | None, workers: int
    ) -> None:
        if getattr(type(data), "__getitem__", None) is TensorDataset.__getitem__:
            data = data.tensors[0]  # unless a subclass makes other items of its tensors
        try:
            self.length = len(data)
        except TypeError as error:
            raise ValueError(f"{name} must know its length: give the dataset a __len__") from error
        if self.length < 1:
            raise ValueError(f"{name} holds no data points")
        if isinstance(data, Tensor) and (
            device.type != "cuda" or 2 * data.nbytes < torch.cuda.mem_get_info(device)[0]
        ):
            data = data.to(device)  # resident, so that a step moves nothing but indices
        self.data, self.name, self.device = data, name, device
        self.transform, self.workers = transform, workers

    def __len__(self) -> int:
        return self.length

    def shares(
        self, batch_size: int, rank: int, world: int, seed: tuple[int, ...] | None = None
    ) -> list[tuple[Tensor, float]]:
        """This process's part of every batch, and the weight of a point in the batch's mean."""
        order = torch.arange(len(self))
        if isinstance(self.data, IterableDataset):
            if world > 1:
                raise ValueError(f"{self.name}: several processes need a dataset with indices")
        elif seed is not None:
            order = torch.randperm(
                len(self), generator=torch.Generator().manual_seed(_mixed(*seed))
            )
        batches = list(order.to(self.device).split(batch_size))
        if len(batches[-1]) < world and len(batches) > 1:  # no process goes without
            batches[-2:] = [torch.cat(batches[-2:])]
        if seed is not None and len(batches[0]) < world:
            raise ValueError(f"{world} processes cannot share batches of {len(batches[0])}")
        # DistributedDataParallel averages over processes, hence the factor.
        return [(b[rank::world], world / len(b)) for b in batches if len(b) > rank]

    def batches(
        self, shares: list[tuple[Tensor, float]]
    ) -> Generator[tuple[Tensor, float, Tensor], None, None]:
        """(indices, weight, x) for each share; to be closed, so that workers end then.

        Else they would live until the last traceback that knows them is forgotten.
        """
        parts = loaded = self._load(shares)
        if isinstance(self.data, IterableDataset):
            parts = _cut(loaded, [len(share) for share, _ in shares])
        announced = f"{self.name} did not give the {len(self)} points that it announced"
        try:
            for share, weight in shares:
                x = next(parts, None)
                if x is None or len(x) != len(share):
                    raise ValueError(announced)
                x = x.to(self.device, non_blocking=True)
                yield share, weight, self.transform(x) if self.transform else x
            if next(parts, None) is not None:
                raise ValueError(announced)
        finally:
            getattr(loaded, "_shutdown_workers", lambda: None)()

    def _load(self, shares: list[tuple[Tensor, float]]) -> Iterator[Tensor]:
        if isinstance(self.data, Tensor):
            # Whole rows: copied far faster than by a general index.
            return (self.data.index_select(0, share.to(self.data.device)) for share, _ in shares)
        kind: dict[str, Any] = {"batch_sampler": (share.tolist() for share, _ in shares)}
        if isinstance(self.data, IterableDataset):
            kind = {"batch_size": len(shares[0][0])}
        return iter(
            DataLoader(
                self.data,
                collate_fn=_inputs,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                **kind,
            )
        )


def _inputs(batch: Any) -> Tensor:
    """x of a batch that a dataset gave item by item (a list) or, from ``__getitems__``, at once."""
    if isinstance(batch, list):
        batch = default_collate([b[0] if isinstance(b, (tuple, list)) else b for b in batch])
    return torch.as_tensor(batch[0] if isinstance(batch, tuple) else batch)


def _cut(parts: Iterator[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """A stream in parts of these sizes, then the rest: each worker ends with a part of its own."""
    rest = torch.empty(0)
    for size in sizes:
        while len(rest) < size and (part := next(parts, None)) is not None:
            rest = torch.cat([rest, part]) if len(rest) else part
        yield rest[:size]
        rest = rest[size:]
    if len(rest):
        yield rest
    yield from parts


def _one_cycle(done: np.ndarray) -> np.ndarray:
    """Learning rate after a fraction of the run: linear up, cosine to 0 (Smith & Topin 2019)."""
    warm_up = 0.1
    cosine = 0.5 + 0.5 * np.cos(np.pi * (done - warm_up) / (1 - warm_up))
    return np.where(done < warm_up, (done + 0.01) / (warm_up + 0.01), cosine)


def _mixed(*key: int) -> int:
    """One seed from several numbers: independent streams for neighbouring keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """PyTorch's generators seeded by ``key``; those of CPU and CUDA are given back as they were."""
    # manual_seed reaches every CUDA device, so the state of every one is kept. To count devices
    # where there are none leaves garbage behind each time.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_mixed(*key))
        yield


def _pick_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{torch.cuda.current_device()}"
    return torch.device(device)


def _net_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast for the networks; None is none."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f'precision must be "auto", "float32" or "bfloat16", got {precision!r}')
    fast = precision == "bfloat16"
    if precision == "auto" and device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    if precision == "auto" and device.type == "cpu":
        # Older versions of PyTorch cannot tell: there, float32 it is. Intel's AVX-512 has bfloat16,
        # but without AMX its products take twice the time of float32; on AMD a third.
        able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        vectors = able.get("avx512_bf16") and "Intel" not in able.get("cpu_name", "")
        fast = bool(able.get("amx_bf16") or vectors)
    return torch.bfloat16 if fast else None


@contextlib.contextmanager
def _networks_in(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    parts = [module for module in model.modules() if isinstance(module, Conditional)]
    try:
        for part in parts:
            part.precision = dtype
        yield
    finally:
        for part in parts:
            part.precision = None


def _bar(shown: bool, total: int) -> Any:
    # The notebook's kind of bar does not hear TQDM_DISABLE by itself.
    hidden = not shown or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, unit="step", leave=False, disable=hidden)


def _process() -> tuple[int, int]:
    """(rank, number of processes) of ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gathered(row: Tensor) -> Tensor:
    """What all processes wrote into their own places of a row of zeros."""
    if _process()[1] > 1:
        dist.all_reduce(row)
    return row.cpu()


def _name(transform: Transform | None) -> str:
    return getattr(transform, "__qualname__", type(transform).__name__)


class _Checkpoint:
    """A file that holds a run after each epoch; without a path, nothing is kept.

    Learning rate, order and noise follow from the settings and the number of the epoch, so that
    neither a schedule's state nor a generator's has to be kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        model: VAE,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.model, self.optimizer = settings, model, optimizer

    def save(self, history: History) -> None:
        """Write so that at every moment the file is the old one or the new one, whole."""
        if self.path is None or _process()[0] > 0:
            return
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": {name: torch.as_tensor(value) for name, value in vars(history).items()},
        }
        content = io.BytesIO()  # torch.save into a file would hide what the disk says
        torch.save(state, content)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint {self.path} could not be written ({error}); the model in memory "
                f"is usable, trained for {len(history)} epochs"
            ) from error

    def resume(self) -> History:
        """The history so far, model and optimizer being put into the state that belongs to it."""
        if self.path is None:
            return History()
        # As the first process sees the file: the others may be on machines without it.
        rank, world = _process()
        saved = [self.path.read_bytes() if rank == 0 and self.path.exists() else None]
        if world > 1:
            dist.broadcast_object_list(saved)
        if saved[0] is None:
            return History()
        try:
            # torch.load looks at no checksum, and those of its zip file do not cover the headers.
            content, digest = saved[0][:-32], saved[0][-32:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("the checksum does not fit")
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            begun = dict(state["settings"])
            history = History(**{name: t.numpy()[()] for name, t in state["history"].items()})
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(
                f"{self.path} is not a readable checkpoint (truncated or corrupted?): it was left "
                "as it is; move it away to start anew"
            ) from error
        differences = [
            f"{key} ({begun.get(key)} there, {here} here)" if len(str(here)) < 40 else key
            for key, here in self.settings.items()
            if begun.get(key) != here
        ]
        if differences:
            raise ValueError(
                f"{self.path} is the checkpoint of another run, which differs in "
                f"{', '.join(differences)}: go on with that run's arguments, or give another file"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return history


# ----------------------------------------------------------------------------- diagnostics


class LatentUnits(NamedTuple):
    """What each latent dimension carries, over a data set."""

    mean: Tensor
    """The posterior means, ``(N, D)``."""
    variance: Tensor
    """Variance of the posterior mean over the data, ``(D,)``."""
    kl: Tensor
    """Average KL from N(0, 1) in nats, ``(D,)``: what the encoder says through it."""

    @property
    def active(self) -> Tensor:
        """Which units vary with the data: variance > 0.01 (Burda et al. 2016), ``(D,)``."""
        return self.variance > 0.01


def latent_units(model: VAE, x: Tensor) -> LatentUnits:
    """Means, activity and KL of the latent dimensions of a Gaussian encoder for x ``(N, ...)``.

    Warns where most units are dead (posterior collapse).
    """
    with torch.no_grad():
        parts = [model.encoder(part) for part in x.split(_EVALUATION_BATCH)]
    mean = torch.cat([q.mean for q in parts])
    variance = torch.cat([q.variance for q in parts])
    kl = (0.5 * (mean**2 + variance - variance.log() - 1)).mean(0)
    units = LatentUnits(mean, mean.var(0), kl)
    dead = int((~units.active).sum())
    if 2 * dead > mean.shape[1]:
        warnings.warn(
            f"posterior collapse: {dead} of {mean.shape[1]} latent units ignore the data; "
            "a smaller beta or fewer latents may help",
            stacklevel=2,
        )
    return units


def bits_per_dim(nats: float, dims: int, levels: int = 1) -> float:
    """Negative log-probability in nats per data point → bits per dimension.

    For a density on [0, 1] of data dequantised from ``levels`` levels, a level is a bin of width
    1/levels: −log P = −log p + dims · log levels, which is bounded from above by Jensen's
    inequality (Theis et al. 2016).
    """
    return (nats / dims + math.log(levels)) / math.log(2)


# --------------------------------------------------------------------------------- figures

# Okabe & Ito's palette: told apart by the colour-blind, and the same in all figures.
TRAIN_COLOR = "#0072B2"
TEST_COLOR = "#D55E00"
_INK, _GREY = "#222222", "#666666"
_CLOUD = 10_000  # points drawn per epoch and series; more would only make it darker
_STYLE: Any = {
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "svg.hashsalt": "vae-lab",  # the same figure gives the same file
    "svg.fonttype": "none",
}


_DOTS: Any = {"marker": ".", "mew": 0, "ls": "", "rasterized": True}  # clouds, not vectors


def new_figure(*args: Any, **options: Any) -> tuple[Figure, Any]:
    """``plt.subplots`` in the lab's style; a figure is shown only where it is handed out."""
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(*args, **options)
    plt.close(figure)
    return figure, axes


def _note(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=9, color=_GREY)


def plot_learning_curve(history: History, ax: Axes | None = None, points: bool = True) -> Axes:
    """Average −ELBO of train and test by epoch, over the cloud of every data point's own.

    The train series stands at k − ½, where its averages belong, the test series at k, from 0, so
    that the clouds do not mix. The axis covers the bulk of the clouds; the figure says what lies
    beyond it, how many points were drawn, and what ``history.convergence()`` makes of the end.
    """
    from matplotlib import patheffects, ticker

    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to draw")
    ax = new_figure(figsize=(8, 5))[1] if ax is None else ax
    epochs = len(history)
    series = {
        "train": (np.arange(epochs) + 0.5, history.train, history.train_mean, TRAIN_COLOR),
        "test": (np.arange(epochs + 1.0), history.test, history.test_mean, TEST_COLOR),
    }
    low = min(np.quantile(cloud[-1], 0.001) for _, cloud, _, _ in series.values())
    high = max(np.quantile(cloud[-1], 0.98) for _, cloud, _, _ in series.values())
    high = max(high, history.test_mean[1])
    room = (high - low) or 1.0
    ax.set(xlim=(-0.5, epochs + 0.3), ylim=(low - 0.03 * room, high + 0.13 * room))
    halo = [patheffects.withStroke(linewidth=4.5, foreground="white")]
    rng = np.random.default_rng(0)  # private: drawing must not disturb an experiment
    for name, (epoch, cloud, mean, color) in series.items():
        if points:
            kept = rng.permutation(cloud.shape[1])[:_CLOUD]
            x = epoch[:, None] + rng.uniform(-0.2, 0.2, (len(epoch), len(kept)))
            # The fewer points there are, the more each of them has to show.
            alpha = min(0.6, 600 / len(kept))
            ax.plot(x.ravel(), cloud[:, kept].ravel(), color=color, ms=1.6, alpha=alpha, **_DOTS)
        # Both halos lie below both lines: neither line may erase the other.
        ax.plot(epoch, mean, color="white", lw=4.5, zorder=2)
        ax.plot(epoch, mean, color=color, lw=2, zorder=3, label=name)
    _label_ends(ax, {n: (e[-1], m[-1], c) for n, (e, _, m, c) in series.items()}, halo)
    if points:
        _note_cloud(ax, history)
    if epochs >= 4 and history.test_points > 1:
        _mark_convergence(ax, history.convergence(), history.test_mean, halo)
    ax.set(xlabel="epoch", ylabel="−ELBO (nats per image)")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.spines[["top", "right"]].set_visible(False)
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.10g}"))
    return ax


def _label_ends(ax: Axes, ends: dict[str, tuple[float, float, str]], halo: list[Any]) -> None:
    """Name and final value of each line at its right end, kept one line of text apart."""
    apart = 0.055 * np.diff(ax.get_ylim()).item()
    (upper, lower) = sorted(ends, key=lambda name: -ends[name][1])
    shift = max(0.0, apart - (ends[upper][1] - ends[lower][1])) / 2
    for name, sign in ((upper, 1), (lower, -1)):
        _, y, color = ends[name]
        ax.annotate(
            f"{name} {_nats(y, 1)}",
            (ax.get_xlim()[1], y + sign * shift),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=12,
            fontweight="bold",
            path_effects=halo,
            annotation_clip=False,
        )


def _note_cloud(ax: Axes, history: History) -> None:
    low, high = ax.get_ylim()
    clouds = history.train, history.test
    train, test = (min(_CLOUD, cloud.shape[1]) for cloud in clouds)
    beyond = sum(int(((cloud < low) | (cloud > high)).sum()) for cloud in clouds)
    share = 100 * beyond / sum(cloud.size for cloud in clouds)
    _note(
        ax,
        f"a dot is an image · shown: {train:,} of {history.train_points:,} train and "
        f"{test:,} of {history.test_points:,} test; {share:.2g} % lie beyond",
    )


def _mark_convergence(ax: Axes, found: Convergence, mean: np.ndarray, halo: list[Any]) -> None:
    first, last = found.first_epoch, found.last_epoch
    ax.axvspan(first, last, color="#000000", alpha=0.05, lw=0, zorder=0)
    best = found.best_epoch
    ax.plot(best, mean[best], "o", color="white", mec=TEST_COLOR, mew=2, zorder=4)
    ax.annotate(
        f"{found.verdict}\nlast quarter: {_nats(-found.improvement)} ± "
        f"{found.improvement_se:.2f} nats per epoch",
        (last, 0.985),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="top",
        color=_INK,
        fontsize=10,
        path_effects=halo,
    )


def plot_images(rows: dict[str, Tensor], captions: dict[str, list[str]] | None = None) -> Figure:
    """Rows of images ``(n, C, H, W)`` with values in [0, 1], named at the left, captioned below."""
    columns = max(len(images) for images in rows.values())
    size = (0.8 * columns + 1.1, (1.0 if captions else 0.82) * len(rows))
    figure, axes = new_figure(len(rows), columns, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for (name, images), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        for column, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if column < len(images):
                picture = images[column].detach().cpu().clamp(0, 1).permute(1, 2, 0).squeeze(-1)
                ax.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1)
                if captions:
                    ax.set_xlabel(captions[name][column], fontsize=9, color=_GREY, labelpad=1)
    return figure


def plot_latents(z: Tensor, labels: Tensor, ax: Axes | None = None) -> Axes:
    """Points ``(N, 2)`` of the latent plane, coloured by label and named where their median is."""
    import matplotlib.pyplot as plt
    from matplotlib import patheffects

    ax = new_figure(figsize=(6.4, 6))[1] if ax is None else ax
    colors = plt.get_cmap("tab10")
    halo = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    for label in labels.unique().tolist():
        points = z[labels == label].cpu()
        ax.plot(*points.T, color=colors(label % 10), ms=3, alpha=0.35, **_DOTS)
        x, y = points.median(0).values.tolist()
        ax.text(x, y, str(label), fontsize=15, fontweight="bold", color=colors(label % 10),
                ha="center", va="center", path_effects=halo)  # fmt: skip
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    return ax


def plot_units(units: LatentUnits, ax: Axes | None = None) -> Axes:
    """KL per latent dimension, largest first, the active ones in colour."""
    ax = new_figure(figsize=(9, 2.8))[1] if ax is None else ax
    order = units.kl.argsort(descending=True)
    colors = [TRAIN_COLOR if active else "#BBBBBB" for active in units.active[order].tolist()]
    ax.bar(np.arange(1, len(order) + 1), units.kl[order].tolist(), color=colors)
    ax.set(xlabel="latent dimension, sorted", ylabel="KL (nats per image)")
    told = f"{int(units.active.sum())} of {len(order)} units are active"
    _note(ax, f"{told}, {float(units.kl.sum()):.1f} nats in all")
    return ax


_BULK = 2.5  # within it lie nearly 99 % of a standard normal


def plot_manifold(model: VAE, ax: Axes | None = None, side: int = 18) -> Axes:
    """The decoder's means over a grid of the latent plane, for a model with D = 2 on images."""
    ax = new_figure(figsize=(6, 6))[1] if ax is None else ax
    half = _BULK * side / (side - 1)
    picture = _mosaic(_decoded_plane(model, _BULK, side), side)
    ax.imshow(picture.numpy(), cmap="gray_r", extent=(-half, half, -half, half))
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


@torch.no_grad()
def _decoded_plane(model: VAE, limit: float, side: int) -> Tensor:
    """Means ``(side², H, W)`` over [−limit, limit]², read as a page: z₁ to the right, z₂ down."""
    line = torch.linspace(-limit, limit, side)
    grid = torch.cartesian_prod(-line, line).flip(1).to(next(model.parameters()))
    means: Tensor = model.decoder(grid).mean
    return means[:, 0].cpu()


def _mosaic(tiles: Tensor, columns: int) -> Tensor:
    """Images ``(n, H, W)`` in rows of ``columns``, the last row filled up with zeros."""
    n, height, width = tiles.shape
    rows = -(-n // columns)
    full = torch.cat([tiles, tiles.new_zeros(rows * columns - n, height, width)])
    return full.view(rows, columns, height, width).transpose(1, 2).flatten(2).flatten(0, 1)


def plot_rate_distortion(points: dict[float, tuple[float, float]], ax: Axes | None = None) -> Axes:
    """(rate, distortion) in nats by β, and the diagonals of equal sum, which is the −ELBO."""
    ax = new_figure(figsize=(6.4, 4.6))[1] if ax is None else ax
    betas = sorted(points)
    rate, distortion = np.array([points[beta] for beta in betas]).T
    right, top = 1.12 * rate.max() + 2, 1.08 * distortion.max()
    best = (rate + distortion).min()
    for total in best * np.array([1, 1.25, 1.5, 1.75, 2]):
        lw = 1.6 if total == best else 0.6
        ax.plot([0, total], [total, 0], color="#AAAAAA", lw=lw, zorder=0)
    ax.annotate(f"−ELBO = {best:.0f}", (0, best), xytext=(3, -17), textcoords="offset points",
                color=_GREY, fontsize=9)  # fmt: skip
    ax.plot(rate, distortion, "o-", color=TEST_COLOR, lw=2, ms=6)
    for beta, x, y in zip(betas, rate, distortion, strict=True):
        ax.annotate(f"β = {beta:g}", (x, y), xytext=(8, 4), textcoords="offset points", fontsize=10)
    ax.set(xlim=(0, right), ylim=(0.9 * distortion.min() - 2, top))
    ax.set(xlabel="rate: KL (nats per image)", ylabel="distortion: −log p(x|z) (nats per image)")
    return ax


def save_figure(figure: Figure, name: str, alt: str, folder: Path | None = None) -> Any:
    """Write ``name`` as PNG (200 dpi) and SVG, and return the picture with its alternative text.

    The folder is by default ``VAE_LAB_FIGURES``, else ``build/figures``, so that a trial run does
    not touch the figures that belong to the report.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image

    folder = folder or Path(os.environ.get("VAE_LAB_FIGURES", "build/figures"))
    folder.mkdir(parents=True, exist_ok=True)
    inline = io.BytesIO()
    with plt.rc_context(_STYLE):
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        figure.savefig(folder / f"{name}.svg", dpi=200, metadata={"Date": None, "Creator": None})
        figure.savefig(inline, dpi=150, format="png", metadata={"Software": None})
    return Image(inline.getvalue(), format="png", width=int(100 * figure.get_figwidth()), alt=alt)


# The explorer's grid: fine enough for a hand, and well below a megabyte of 28 × 28 images.
_EXPLORER_SIDE = 41


def explore_plane(model: VAE, x: Tensor, labels: Tensor) -> Any:
    """An explorer of the latent plane that needs neither kernel nor network, as ``HTML``.

    For a model with D = 2, images ``(N, 1, H, W)`` in its space and their integer labels ``(N,)``.
    It shows the codes of the images, and the decoder's means on a grid of the plane, in 8 bits;
    where no script runs, the grid stands as a picture. Of codes beyond ±2.5, up to 2 % of all,
    the furthest are left out. Raises ``ValueError`` for other data or another D, and
    ``FileNotFoundError`` where its page, ``explorer.html``, does not lie beside this module.
    """
    from IPython.display import HTML
    from matplotlib.colors import TABLEAU_COLORS

    x = x.to(next(model.parameters()).device)
    if x.ndim != 4 or x.shape[1] != 1 or labels.shape != x.shape[:1]:
        raise ValueError(
            "the explorer shows images (N, 1, H, W) and their labels (N,); "
            f"got {_dims(x)} and {_dims(labels)}"
        )
    elbo = evaluate(model, x, device=x.device, precision="float32")
    with torch.no_grad():
        z = model.encoder(x).mean.cpu()
    if z.shape[1:] != (2,):
        raise ValueError(f"the explorer shows a latent plane, D = 2; got D = {z.shape[1]}")
    # A few codes lie so far out that the others would shrink to a blot.
    extent = z.abs().amax(1)
    limit = max(_BULK, extent.quantile(0.98).item())
    near = extent <= limit
    x, labels = x[near.to(x.device)], labels.cpu()[near]
    numbers = torch.column_stack([z, -elbo.log_likelihood.cpu(), elbo.kl.cpu()])[near]
    columns = math.isqrt(len(x)) + 1
    content = {
        "limit": limit,
        "side": _EXPLORER_SIDE,
        "tile": x.shape[2:],
        "columns": columns,
        "colors": list(TABLEAU_COLORS.values()),
        "points": [
            [round(z1, 3), round(z2, 3), label, round(distortion, 3), round(rate, 3)]
            for (z1, z2, distortion, rate), label in zip(
                numbers.tolist(), labels.tolist(), strict=True
            )
        ],
        "images": _png(_mosaic(x[:, 0].cpu(), columns)),
        "reconstructions": _png(_mosaic(model.reconstruct(x)[:, 0].cpu(), columns)),
    }
    given = {
        "@CONTENT@": json.dumps(content, separators=(",", ":")),
        "@PLANE@": _png(_mosaic(_decoded_plane(model, limit, _EXPLORER_SIDE), _EXPLORER_SIDE)),
        "@ALT@": f"What the decoder draws on a grid of the latent plane, from −{limit:.1f} to "
        f"{limit:.1f} along z₁ and z₂, {_EXPLORER_SIDE} points each way.",
    }
    page = Path(__file__).with_name("explorer.html")
    if not page.exists():
        raise FileNotFoundError(f"{page.name} is missing: it belongs beside {Path(__file__).name}")
    template = page.read_text(encoding="utf-8")
    return HTML(re.sub("@[A-Z]+@", lambda mark: html.escape(given[mark[0]]), template))


def _png(picture: Tensor) -> str:
    """Ink in [0, 1], ``(H, W)`` → address of an 8-bit picture, dark on white."""
    from PIL import Image

    file = io.BytesIO()
    grey = (255 * (1 - picture.clamp(0, 1))).round().to(torch.uint8)
    Image.fromarray(grey.numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
