"""Data sets of images, and the transforms from 8-bit levels to what a decoder describes."""

import hashlib
import os
import socket
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

__all__ = ["ImageSet", "Images", "binarize", "dequantize", "load_images", "scale"]

# Of the four files, one after the other: torchvision only looks whether there are any.
SHA256 = {
    "MNIST": "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
    "Fashion-MNIST": "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
}


class ImageSet(TensorDataset):
    """A split, a map-style dataset of ``(image, label)``.

    ``images`` has all images, uint8, ``(N, C, H, W)``; ``labels`` all labels, int64, ``(N,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)
        self.images, self.labels = images, labels

    def __getitems__(self, index: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """The items of a whole index list at once, which is how a ``DataLoader`` asks first."""
        chosen = torch.as_tensor(index)
        return list(zip(self.images[chosen], self.labels[chosen], strict=True))

    def split(self, last: int) -> tuple["ImageSet", "ImageSet"]:
        """Hold out the ``last`` images, to validate on: all the others, and these."""
        sizes = [len(self) - last, last]
        images, labels = self.images.split(sizes), self.labels.split(sizes)
        return ImageSet(images[0], labels[0]), ImageSet(images[1], labels[1])


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

    Raises ``ValueError`` for an unknown name and for a file that is not the published one,
    ``FileNotFoundError`` where a data set is neither on disk nor to be downloaded.
    """
    if name == "auto":
        name = os.environ.get("VAE_LAB_DATASET") or "auto"
    if name == "digits":
        return _load_digits()
    titles = {title.lower(): title for title in SHA256} | {"auto": "MNIST"}
    if name not in titles:
        raise ValueError(f"expected mnist, fashion-mnist, digits or auto, got {name!r}")
    title, root = titles[name], Path(root or os.environ.get("VAE_LAB_DATA", "data")).expanduser()
    folder = root / title.replace("-", "") / "raw"
    try:
        return _load_published(title, folder, download)
    except (OSError, RuntimeError, HTTPException) as error:
        said = f"{title} is not in {folder} and was not downloaded ({error}): "
        said += "put train-images-idx3-ubyte and the other three files there"
        if name != "auto":
            raise FileNotFoundError(said) from error
    said = f"NOT MNIST: the 8 × 8 digits of scikit-learn stand in for it.\n{said}"
    warnings.warn(f"\n{'!' * 78}\n{said}\n{'!' * 78}", stacklevel=2)
    return _load_digits()


def _load_digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 17 grey levels, 0 … 16, spread over the 8-bit range that the transforms expect.
    images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    # The test images are the last: other writers than the training images.
    train, test = ImageSet(images, torch.from_numpy(digits.target).long()).split(297)
    return Images("digits", train, test)


def _load_published(title: str, folder: Path, download: bool) -> Images:
    from torchvision.datasets import mnist

    source = getattr(mnist, title.replace("-", ""))
    paths = [folder / Path(archive).stem for archive, _ in source.resources]
    if not all(path.is_file() for path in paths):
        if not download:
            raise FileNotFoundError("download=False")
        _download(source, paths)
    if hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest() != SHA256[title]:
        raise ValueError(
            f"the files in {folder} are not those of {title} as published: "
            "delete them, and they are downloaded again"
        )
    images, test_images = (mnist.read_image_file(str(path))[:, None] for path in paths[::2])
    labels, test_labels = (mnist.read_label_file(str(path)) for path in paths[1::2])
    return Images(title, ImageSet(images, labels), ImageSet(test_images, test_labels))


def _download(source: type, paths: list[Path]) -> None:
    """Fetch the files into a scratch folder, then move them into place.

    A download that breaks off leaves no file there, and several processes may do it at once.
    """
    folder, timeout = paths[0].parent, socket.getdefaulttimeout()
    folder.mkdir(parents=True, exist_ok=True)
    socket.setdefaulttimeout(10)  # seconds of silence before the next address is tried
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fetched = source(scratch, download=True).raw_folder
            for path in paths:
                os.replace(Path(fetched, path.name), path)
    finally:
        socket.setdefaulttimeout(timeout)


def scale(raw: Tensor) -> Tensor:
    """x = raw/255 in [0, 1]: for ``DecoderCategorical`` and ``DecoderContinuousBernoulli``.

    Not for a Gaussian: the density that it can give to 256 points has no bound.
    """
    _check_levels(raw)
    return raw.float() / 255


def dequantize(raw: Tensor) -> Tensor:
    """x = (raw + u)/256 with u ~ U[0, 1), drawn anew each time: for ``DecoderGaussian``.

    The uniform noise makes 8-bit levels a density on [0, 1]; the mean log-density in nats, less
    D log 256, then bounds the log-probability of the levels (Theis et al. 2016, section 3.1).
    """
    _check_levels(raw)
    return (raw + _uniform_like(raw)) / 256


def binarize(raw: Tensor) -> Tensor:
    """x ~ Bernoulli(raw/255), drawn anew each time: for ``DecoderBernoulli``.

    "Dynamic binarisation" (Salakhutdinov & Murray 2008): grey values are probabilities of ink.
    """
    _check_levels(raw)
    u = _uniform_like(raw)
    return u.lt_(raw.float() / 255)  # 1 where u < raw/255, else 0


def _check_levels(raw: Tensor) -> None:
    """Refuse what is no batch of 8-bit images, and warn where no pixel is above 16."""
    if raw.dtype != torch.uint8:
        raise TypeError(
            f"expected 8-bit images (uint8), got {raw.dtype}: convert levels from 0 to 255 to "
            "uint8, and pass anything else as floats, without a transform"
        )
    largest = int(raw.max()) if raw.numel() else 0
    if largest == 1:
        raise ValueError(
            "expected levels from 0 to 255, got 0 and 1: pass them as floats, without a transform"
        )
    if 1 < largest <= 16:
        warnings.warn(f"the largest value of these images is {largest}, not 255", stacklevel=3)


def _uniform_like(raw: Tensor) -> Tensor:
    """Uniform noise in [0, 1), in the shape of ``raw``, float32.

    A CPU draws one number after the other: there each byte of a random word gives one pixel its
    upper 8 bits. The lower 8 are drawn once for a data point: two of its pixels correlate by 2⁻¹⁶.
    """
    if raw.device.type != "cpu":
        return torch.rand(raw.shape, device=raw.device, dtype=torch.float32)
    words = torch.empty(-(-raw.numel() // 8), dtype=torch.int64, device=raw.device)
    upper = words.random_(-(2**63), None).view(torch.uint8)[: raw.numel()].view(raw.shape)
    lower = torch.randint(256, raw.shape[:1] + (1,) * (raw.ndim - 1), device=raw.device)
    return lower.float().add_(0.5).mul_(2**-8).add(upper).mul_(2**-8)
