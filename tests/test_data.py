"""Data sets: the real ones where they are, and small IDX files for all that may go wrong."""

import hashlib
import os
import re
import socket
import struct
import warnings
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset
from torchvision import datasets

from tools import within
from vae_kit import data
from vae_kit.data import binarize, dequantize, load_images, scale

FOLDER = Path(os.environ.get("VAE_LAB_DATA", "data")).resolve()
FILES = [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]


def idx(array):
    """An array of bytes as an IDX file."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch):
    """Four small files that the module takes for the published ones."""
    shapes, rng = [(12, 4, 6), 12, (5, 4, 6), 5], np.random.default_rng(0)
    made = {name: idx(rng.integers(0, 256, size)) for name, size in zip(FILES, shapes, strict=True)}
    digest = hashlib.sha256(b"".join(made.values())).hexdigest()
    monkeypatch.setattr(data, "SHA256", {"MNIST": digest, "Fashion-MNIST": digest})
    return made


def write(folder, files):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (Path(folder) / name).write_bytes(content)


def found(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(tmp_path, files):
    """A folder that holds the small files as MNIST."""
    write(tmp_path / "data" / "MNIST" / "raw", files)
    return tmp_path / "data"


@pytest.fixture
def downloads(monkeypatch, files):
    """Functions that a download calls once it has written the small files."""
    steps = []

    def download(self):
        write(self.raw_folder, files)
        for step in steps:
            step(self)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    return steps


@pytest.mark.parametrize(("title", "labels"), [("MNIST", [5, 0, 4]), ("Fashion-MNIST", [9, 0, 0])])
def test_the_published_files_are_loaded_whole(title, labels):
    if not (FOLDER / title.replace("-", "") / "raw" / FILES[0]).is_file():
        pytest.skip(f"{title} is not in {FOLDER} (VAE_LAB_DATA)")
    images = load_images(title.lower(), FOLDER, download=False)
    assert repr(images) == f"{title}: 60,000 train + 10,000 test images, 1 × 28 × 28"
    assert images.train.labels[:3].tolist() == labels


def test_digits_are_scikit_learn_s_seventeen_levels_each_the_nearest_of_256():
    images = load_images("digits")
    assert repr(images) == "digits: 1,500 train + 297 test images, 1 × 8 × 8"
    whole = torch.cat([images.train.images, images.test.images])[:, 0]
    assert (whole - torch.from_numpy(load_digits().images) * 255 / 16).abs().max() <= 0.5
    assert images.test.labels.tolist() == load_digits().target[1500:].tolist()


def test_a_split_gives_items_and_batches_and_holds_out_its_last_images():
    split = load_images("digits").train
    several = split.__getitems__([3, 0, 3])
    assert torch.equal(several[2][0], split[3][0]) and several[2][1] == split.labels[3]
    batch = next(iter(DataLoader(Subset(split, [5, 2]), batch_size=2)))
    assert torch.equal(batch[0], split.images[[5, 2]])
    for part, where in zip(split.split(400), (slice(1100), slice(1100, None)), strict=True):
        assert torch.equal(part.images, split.images[where])
        assert torch.equal(part.labels, split.labels[where])
        assert part.images.data_ptr() == split.images[where].data_ptr()  # nothing is copied
    with pytest.raises(RuntimeError, match="non-negative"):
        split.split(1501)


def test_the_environment_names_data_set_and_folder_which_may_be_in_the_home(root, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(root.parent))
    monkeypatch.setenv("VAE_LAB_DATA", "~/data")
    assert load_images(download=False).name == "MNIST"
    folder = re.escape(str(root / "FashionMNIST" / "raw"))
    with pytest.raises(FileNotFoundError, match=f"{folder} .*download=False.*put train-images"):
        load_images("fashion-mnist", Path("~/data"), download=False)
    assert not (root / "FashionMNIST").exists()
    monkeypatch.setenv("VAE_LAB_DATASET", "digits")
    assert load_images().name == "digits"
    assert load_images("mnist").name == "MNIST"  # what is asked for outright wins
    with pytest.raises(ValueError, match="mnist, fashion-mnist, digits or auto, got 'cifar'"):
        load_images("cifar")


def test_a_download_leaves_the_files_which_are_read_byte_for_byte(tmp_path, downloads, files):
    calls = []
    downloads.append(calls.append)
    for _ in range(2):
        images = load_images("fashion-mnist", str(tmp_path / "new"))
        parts = [*images.train.tensors, *images.test.tensors]
        assert [bytes(part.flatten().tolist()) for part in parts] == [
            file[16 if file[3] == 3 else 8 :] for file in files.values()
        ]
        assert images.train.images.shape == (12, 1, 4, 6)
    assert found(tmp_path) == sorted(f"new/FashionMNIST/raw/{file}" for file in FILES)
    assert len(calls) == 1, "what is there is not downloaded again"


def test_two_that_download_at_once_both_get_the_data(tmp_path, downloads, files):
    """The other one begins and ends while this one has a file in pieces."""
    other = []

    def cut_and_let_the_other_load(source):
        downloads.clear()
        write(source.raw_folder, {FILES[0]: b""})
        other.append(load_images("mnist", tmp_path))
        write(source.raw_folder, files)

    downloads.append(cut_and_let_the_other_load)
    assert torch.equal(load_images("mnist", tmp_path).train.images, other[0].train.images)
    assert len(found(tmp_path)) == 4


@pytest.mark.parametrize("reason", [URLError("cut off"), RuntimeError("?"), IncompleteRead(b"")])
def test_a_download_that_breaks_off_leaves_no_file(tmp_path, downloads, reason, monkeypatch):
    def break_off(source):
        raise reason

    downloads.append(break_off)
    limits = []
    monkeypatch.setattr(socket, "setdefaulttimeout", limits.append)
    with pytest.raises(FileNotFoundError, match=re.escape(str(reason))):
        load_images("mnist", tmp_path)
    assert limits == [10, socket.getdefaulttimeout()]  # that of other connections stays as it is
    assert not found(tmp_path)


def test_without_network_auto_is_the_digits_and_says_so_loudly(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.warns(UserWarning, match=r"NOT MNIST(.|\n)*was not downloaded") as warned:
        assert load_images("auto", tmp_path).name == "digits"
    assert [warning.filename for warning in warned] == [__file__]  # the caller's line is shown


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_an_altered_file_is_an_error_and_no_reason_to_take_other_data(root, files, name):
    folder = root / "MNIST" / "raw"
    for file, whole in files.items():
        (folder / file).write_bytes(whole[:-1] + b"?")
        with pytest.raises(ValueError, match=f"{folder} are not those of MNIST.*delete them"):
            load_images(name, root)
        (folder / file).write_bytes(whole)


def test_the_pickles_of_old_torchvision_are_never_read(root):
    write(root / "MNIST" / "processed", {"training.pt": b"hostile", "test.pt": b"hostile"})
    assert load_images("mnist", root).train.images.shape == (12, 1, 4, 6)


RAW = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
GREY = torch.randint(256, (40, 16), generator=torch.Generator().manual_seed(0))
EACH = pytest.mark.parametrize("transform", [scale, dequantize, binarize])


def drawn(transform, raw):
    torch.manual_seed(0)
    return transform(raw)


def test_transforms_keep_to_their_formulas_exactly():
    """With one seed, black images show the noise u that both random transforms draw."""
    raw = torch.randint(256, (500, 1, 16, 16), dtype=torch.uint8)
    u = drawn(dequantize, torch.zeros_like(raw)).double() * 256
    assert u.min() >= 0 and u.max() < 1
    assert torch.equal(drawn(dequantize, raw), ((raw + u) / 256).float())
    assert torch.equal(drawn(binarize, raw), (255 * u < raw).float())
    assert torch.equal(scale(RAW).flatten(), torch.arange(256) / 255)
    assert not torch.equal(binarize(raw), binarize(raw))


def test_random_transforms_have_the_moments_of_their_distributions():
    x = dequantize(RAW.expand(4000, -1, -1, -1)).double()
    assert within(x, (RAW[0] + 0.5) / 256)
    assert within((x - (RAW[0] + 0.5) / 256) ** 2, 1 / 12 / 256**2)
    u = (256 * x - RAW).flatten()
    fine = (u * 2**16).floor()[::256] % 256  # below the 8 bits that a pixel has for itself
    assert within(fine, 127.5) and within(fine**2, 255 * 511 / 6)
    # Several pixels come from one random word, and must not show it.
    neighbours = np.corrcoef(u.view(-1, 16).T)
    assert np.abs(neighbours - np.eye(16)).max() < 5 / (len(u) / 16) ** 0.5
    inked = binarize(RAW.expand(4000, -1, -1, -1)).double()
    assert set(inked.unique().tolist()) == {0.0, 1.0}
    assert within(inked, RAW[0].double() / 255)


@EACH
def test_defaults_change_no_number_and_any_shape_will_do(transform, request):
    expected = drawn(transform, RAW)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        found = drawn(transform, RAW)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    for shape in ((0, 4), (5,), ()):
        assert transform(torch.zeros(shape, dtype=torch.uint8)).shape == shape


@EACH
@pytest.mark.parametrize("raw", [GREY, GREY.double(), GREY / 255, GREY > 127])
def test_what_is_no_batch_of_bytes_is_refused_with_a_remedy(transform, raw):
    with pytest.raises(TypeError, match=f"uint8.*got {raw.dtype}.*without a transform"):
        transform(raw)


@EACH
def test_bits_are_no_grey_levels_and_sixteen_levels_are_doubted(transform):
    bits = (GREY > 127).to(torch.uint8)
    with pytest.raises(ValueError, match="got 0 and 1: pass them as floats"):
        transform(bits)
    for largest in (2, 16):
        with pytest.warns(UserWarning, match=f"largest value of these images is {largest},"):
            transform(bits * largest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for largest in (0, 17, 255):
            transform(bits * largest)
