"""Data sets of images: ``load_images`` gives raw 8-bit ``Images``, each split an ``ImageSet``;
``scale``, ``dequantize`` or ``binarize`` turns a batch of them into what a decoder describes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

__all__ = ["ImageSet", "Images", "binarize", "dequantize", "load_images", "scale"]

# SHA-256 of the published files: torchvision only looks whether there are any.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


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

    def split(self, last: int) -> tuple[ImageSet, ImageSet]:
        """Hold out the ``last`` images, to validate on: all the others, and these."""
        if not 0 < last < len(self):
            raise ValueError(f"hold out between 1 and {len(self) - 1:,} images, not {last:,}")
        return ImageSet(*self[:-last]), ImageSet(*self[-last:])


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
    if name == "fashion-mnist":
        return _load_published("Fashion-MNIST", FASHION_MNIST_SHA256, folder, download)
    if name not in ("mnist", "auto"):
        raise ValueError(f"unknown data set {name!r}: known are mnist, fashion-mnist, digits, auto")
    try:
        return _load_published("MNIST", MNIST_SHA256, folder, download)
    except FileNotFoundError as error:
        if name == "mnist":
            raise
        line = "!" * 78 + "\n"
        said = f"NOT MNIST: the 8 × 8 digits of scikit-learn stand in for it.\n{error}\n"
        warnings.warn(f"\n{line}{said}{line}", stacklevel=2)
        return _load_digits()


def _load_digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 … 16, spread over the 8-bit range that the transforms expect.
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    # The test images are the last: other writers than the training images.
    train, test = ImageSet(images, torch.from_numpy(digits.target).long()).split(297)
    return Images("digits", train, test)


def _load_published(title: str, sha256: dict[str, str], root: Path, download: bool) -> Images:
    raw = root / title.replace("-", "") / "raw"  # the names that torchvision gives them
    if not all((raw / file).is_file() for file in sha256):
        _download(title, sha256, raw, download)
    images, labels, test_images, test_labels = (_read(raw / file, sha256[file]) for file in sha256)
    return Images(title, ImageSet(images, labels), ImageSet(test_images, test_labels))


def _read(path: Path, sha256: str) -> Tensor:
    """Images ``(N, 1, H, W)`` or labels ``(N,)`` of an IDX file, if it is the published one."""
    too_large = path.stat().st_size > 50_000_000  # perhaps even for the memory
    content = np.fromfile(path, np.uint8, 0 if too_large else -1)
    if hashlib.sha256(content.data).hexdigest() != sha256:
        raise ValueError(
            f"{path} is not the published file (its SHA-256 differs): "
            "delete it, and it will be downloaded again, or put the original in its place"
        )
    start = 4 + 4 * int(content[3])  # the fourth byte counts the dimensions, whose sizes follow
    array = torch.from_numpy(content[start:].reshape(content[4:start].view(">i4")))
    return array.unsqueeze(1) if array.ndim == 3 else array.long()


def _download(title: str, sha256: dict[str, str], raw: Path, download: bool) -> None:
    """Fetch into a scratch folder, verify, and only then move into place, file by file.

    So a broken download is never mistaken for data, two processes may do it at once, and a link
    that stands in place of a file is replaced, never written through.
    """
    from torchvision import datasets

    reason: Exception | str = "downloading was not asked for"
    timeout = socket.getdefaulttimeout()
    try:
        if download:
            socket.setdefaulttimeout(20)  # seconds of silence before the next mirror is tried
            raw.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=raw) as scratch:
                getattr(datasets, raw.parent.name)(scratch, download=True)
                fetched = Path(scratch, *raw.parts[-2:])
                for file in sha256:
                    _read(fetched / file, sha256[file])
                for file in sha256:
                    os.replace(fetched / file, raw / file)
            return
    except (OSError, RuntimeError, ValueError) as error:
        reason = error
    finally:
        socket.setdefaulttimeout(timeout)
    raise FileNotFoundError(
        f"{title} is not in {raw} and could not be downloaded through torchvision "
        f"({reason}). Put the four files {', '.join(sha256)} there, let VAE_LAB_DATA name the "
        'folder that holds them, or use the stand-in that needs no files: "digits".'
    )


def _of_raw_images(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The transform, which refuses all but raw 8-bit images and says what to do instead."""

    @functools.wraps(transform)
    def checked(raw: Tensor) -> Tensor:
        if raw.dtype != torch.uint8:
            said = f"{transform.__name__} takes raw 8-bit images (uint8), not {raw.dtype}"
            raise TypeError(f"{said}: {_remedy(transform.__name__, raw)}")
        return transform(raw)

    return checked


def _remedy(transform: str, data: Tensor) -> str:
    """What turns these very data, which are not uint8, into the data of a model."""
    x = data.double()
    whole, in_unit_interval = bool((x == x.round()).all()), bool(((x >= 0) & (x <= 1)).all())
    as_float = "" if data.is_floating_point() else ".float()"
    if not x.isfinite().all():
        return "first take finite ones, data[data.isfinite().reshape(len(data), -1).all(1)]"
    if whole and in_unit_interval:
        return f"they are 0 and 1 already, so pass data{as_float} without a transform"
    if whole and x.min() >= 0 and x.max() <= 255:
        return "they are whole numbers from 0 to 255, so pass data.to(torch.uint8)"
    if not in_unit_interval:
        return f"pass data{as_float} without a transform to a decoder such as DecoderGaussian"
    if transform == "binarize":
        return "they are probabilities already, so draw from them: transform=torch.bernoulli"
    if transform == "dequantize" and torch.allclose(255 * x, (255 * x).round(), atol=1e-3):
        return "they are 8-bit levels over 255, so pass (255 * data).round().to(torch.uint8)"
    return "they lie in [0, 1] already, so pass them without a transform"


@_of_raw_images
def scale(raw: Tensor) -> Tensor:
    """x = raw/255 in [0, 1]: for ``DecoderCategorical`` and ``DecoderContinuousBernoulli``.

    Not for a Gaussian: the density that it can give to 256 points has no bound.
    """
    return raw.float() / 255


@_of_raw_images
def dequantize(raw: Tensor) -> Tensor:
    """x = (raw + u)/256 with u ~ U(0, 1), drawn anew each time: for ``DecoderGaussian``.

    The uniform noise makes 8-bit levels a density on [0, 1]; the mean log-density in nats, less
    D log 256, then bounds the log-probability of the levels (Theis et al. 2016, section 3.1).
    """
    u = _uniform_like(raw)
    return (raw + u) / 256


@_of_raw_images
def binarize(raw: Tensor) -> Tensor:
    """x ~ Bernoulli(raw/255), drawn anew each time: for ``DecoderBernoulli``.

    "Dynamic binarisation" (Salakhutdinov & Murray 2008): grey values are probabilities of ink.
    """
    u = _uniform_like(raw)
    return u.lt_(scale(raw))  # 1 where u < raw/255, else 0


def _uniform_like(raw: Tensor) -> Tensor:
    """u ~ U(0, 1) in the shape of ``raw``, float32, with 16 bits at least.

    A CPU draws one number after the other, so there each random word is cut into eight bytes, and
    each byte gives one pixel its upper 8 bits. The lower 8 are drawn once for a data point: two of
    its pixels correlate by 2⁻¹⁶, and the variance of a sum over D of them grows by 1 + D 2⁻¹⁶.
    """
    if raw.device.type != "cpu":
        return torch.rand(raw.shape, device=raw.device, dtype=torch.float32)
    words = torch.empty(-(-raw.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    upper = words.view(torch.uint8)[: raw.numel()].view(raw.shape)
    lower = torch.randint(256, raw.shape[:1] + (1,) * (raw.ndim - 1))
    return lower.float().add_(0.5).mul_(2**-8).add(upper).mul_(2**-8)
