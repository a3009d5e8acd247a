"""Data sets: the real ones where they are, synthetic IDX files for all that may go wrong."""

import contextlib
import gzip
import hashlib
import inspect
import io
import math
import os
import pickle
import re
import shutil
import socket
import struct
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset
from torchvision import datasets

import vae_data
from tools import Executed, figures, quick_processes, run, tiny_vae, within
from vae_data import binarize, dequantize, load_images, scale
from vae_helpers import (
    DecoderBernoulli,
    DecoderCategorical,
    DecoderContinuousBernoulli,
    DecoderGaussian,
)
from vae_networks import mlp

DATA = Path(os.environ.get("VAE_LAB_DATA", "data")).resolve()
TRAIN_IMAGES = "train-images-idx3-ubyte"


def idx(array):
    """An array of bytes as an IDX file (http://yann.lecun.com/exdb/mnist, archived)."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def digests(files):
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def files(monkeypatch):
    """Four small IDX files that the module takes for the published ones."""
    rng = np.random.default_rng(0)
    made = {}
    for split, n in (("train", 12), ("t10k", 5)):
        made[f"{split}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 4, 6)))
        made[f"{split}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n))
    monkeypatch.setattr(vae_data, "MNIST_SHA256", digests(made))
    monkeypatch.setattr(vae_data, "FASHION_MNIST_SHA256", digests(made))
    return made


def write(raw, files):
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)


@pytest.fixture
def root(tmp_path, files):
    """A data folder that holds the small files as MNIST."""
    folder = tmp_path / "data"
    write(folder / "MNIST" / "raw", files)
    return folder


@pytest.fixture
def downloads(monkeypatch, files):
    """What a download gives; each call of it is counted in the list returned."""
    calls = []

    def download(self):
        calls.append(self.raw_folder)
        write(Path(self.raw_folder), files)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    return calls


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize(
    ("name", "title", "first_labels"),
    [
        ("mnist", "MNIST", [5, 0, 4, 1, 9]),
        ("fashion-mnist", "Fashion-MNIST", [9, 0, 0, 3, 0]),
    ],
)
def test_the_published_files_are_loaded_whole(name, title, first_labels):
    if not (DATA / title.replace("-", "") / "raw" / TRAIN_IMAGES).is_file():
        pytest.skip(f"{title} is not in {DATA} (VAE_LAB_DATA)")
    images = load_images(name, DATA, download=False)
    assert images.name == title
    assert images.train.images.shape == (60_000, 1, 28, 28)
    assert images.test.images.shape == (10_000, 1, 28, 28)
    assert images.train.images.dtype == torch.uint8
    assert images.train.labels[:5].tolist() == first_labels
    assert images.test.labels.bincount().shape == (10,)
    assert repr(images) == f"{title}: 60,000 train + 10,000 test images, 1 × 28 × 28"


def test_digits_are_always_there():
    images = load_images("digits", root="/nowhere", download=False)
    assert images.name == "digits"
    assert images.train.images.shape == (1500, 1, 8, 8)
    assert images.test.images.shape == (297, 1, 8, 8)
    assert images.train.images.dtype == torch.uint8
    assert (images.train.images.min(), images.train.images.max()) == (0, 255)
    assert images.train.labels.dtype == torch.int64


def test_digits_are_scikit_learn_s_seventeen_levels_each_the_nearest_of_256():
    levels = torch.from_numpy(load_digits().images).unsqueeze(1)
    images = load_images("digits")
    ours = torch.cat([images.train.images, images.test.images])
    assert (ours - levels * 255 / 16).abs().max() <= 0.5
    assert torch.equal(
        torch.cat([images.train.labels, images.test.labels]),
        torch.from_numpy(load_digits().target).long(),
    )


def test_small_idx_files_are_read_byte_for_byte(root, files):
    images = load_images("mnist", root, download=False)
    for split, name in ((images.train, "train"), (images.test, "t10k")):
        pixels, labels = (
            torch.frombuffer(bytearray(files[f"{name}-{kind}-ubyte"][header:]), dtype=torch.uint8)
            for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
        )
        assert torch.equal(split.images.flatten(), pixels)
        assert split.images.shape[1:] == (1, 4, 6)
        assert torch.equal(split.labels, labels.long())
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


def test_a_split_gives_items_lists_of_items_and_default_batches():
    split = load_images("digits").test
    image, label = split[3]
    assert image.shape == (1, 8, 8)
    several = split.__getitems__([3, 0, 3])
    assert all(torch.equal(several[i][0], image) and several[i][1] == label for i in (0, 2))
    batch, labels = next(iter(DataLoader(split, batch_size=7)))
    assert torch.equal(batch, split.images[:7])
    assert torch.equal(labels, split.labels[:7])
    halves = next(iter(DataLoader(Subset(split, [5, 2]), batch_size=2)))[0]
    assert torch.equal(halves, split.images[[5, 2]])


def test_the_last_images_of_a_split_are_held_out():
    whole = load_images("digits").train
    train, validation = whole.split(400)
    assert (len(train), len(validation)) == (1100, 400)
    assert torch.equal(torch.cat([train.images, validation.images]), whole.images)
    assert torch.equal(torch.cat([train.labels, validation.labels]), whole.labels)
    assert validation.images.data_ptr() == whole.images[1100:].data_ptr()  # nothing is copied
    assert len(validation.split(1)[1]) == 1


@pytest.mark.parametrize("last", [0, -1, 1500, 10_000])
def test_neither_part_of_a_split_is_empty(last):
    with pytest.raises(ValueError, match=r"between 1 and 1,499 images, not"):
        load_images("digits").train.split(last)


def test_the_environment_names_data_set_and_folder(root, monkeypatch):
    monkeypatch.setenv("VAE_LAB_DATA", str(root))
    assert load_images("mnist", download=False).train.images.shape == (12, 1, 4, 6)
    assert load_images(download=False).name == "MNIST"
    monkeypatch.setenv("VAE_LAB_DATASET", "digits")
    assert load_images().name == "digits"
    assert load_images("mnist").name == "MNIST"  # what is asked for outright wins


@pytest.mark.parametrize("name", ["cifar", " ", "MNIST", "../mnist"])
def test_an_unknown_name_is_refused_with_the_known_ones(name, monkeypatch):
    with pytest.raises(ValueError, match=r"mnist.*fashion-mnist.*digits"):
        load_images(name)
    monkeypatch.setenv("VAE_LAB_DATASET", name)
    with pytest.raises(ValueError, match=r"mnist.*fashion-mnist.*digits"):
        load_images()


# -------------------------------------------------------------------------- no network


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_without_network_one_error_names_folder_files_and_stand_in(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        load_images(name, tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message
    assert all(file in message for file in vae_data.MNIST_SHA256)
    assert '"digits"' in message
    assert "through torchvision (" in message  # and then what it said
    assert not [*tmp_path.rglob("*-ubyte*")]


@pytest.mark.usefixtures("no_network")
def test_without_network_auto_is_the_digits_and_says_so_loudly(tmp_path):
    with pytest.warns(UserWarning, match="NOT MNIST") as warned:
        images = load_images("auto", tmp_path)
    assert images.name == "digits"
    assert [warning.filename for warning in warned] == [__file__]  # the caller's line is shown


def test_nothing_is_downloaded_where_that_is_not_wanted(tmp_path, downloads):
    with pytest.raises(FileNotFoundError, match="not asked for"):
        load_images("mnist", tmp_path / "data", download=False)
    assert not downloads
    assert not (tmp_path / "data").exists()


def test_what_is_on_disk_is_not_downloaded_again(root, downloads):
    load_images("mnist", root)
    assert not downloads


# ------------------------------------------------------------------------- downloading


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_a_download_leaves_the_four_files_and_nothing_else(tmp_path, downloads, name, folder):
    images = load_images(name, tmp_path / "new" / "data")
    assert images.train.images.shape == (12, 1, 4, 6)
    found = {path for path in (tmp_path / "new" / "data").rglob("*") if path.is_file()}
    assert found == {
        tmp_path / "new" / "data" / folder / "raw" / file for file in vae_data.MNIST_SHA256
    }
    assert len(downloads) == 1


@pytest.mark.parametrize("complete", [0, 2, 3])
@pytest.mark.parametrize(
    "reason", [URLError("cut off"), RuntimeError("cut off"), OSError("cut off")]
)
def test_a_download_that_breaks_off_leaves_nothing(tmp_path, files, monkeypatch, complete, reason):
    def download(self):
        names = list(files)
        write(Path(self.raw_folder), {name: files[name] for name in names[:complete]})
        (Path(self.raw_folder) / names[complete]).write_bytes(files[names[complete]][:9])
        raise reason

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(FileNotFoundError, match="cut off"):
        load_images("mnist", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_download_of_something_else_is_not_taken_for_the_data(tmp_path, downloads, files):
    files[TRAIN_IMAGES] = files[TRAIN_IMAGES][:-1] + b"?"
    with pytest.raises(FileNotFoundError, match="not the published file"):
        load_images("mnist", tmp_path)
    assert len(downloads) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


RACES = 20


@contextlib.contextmanager
def mirror(packed):
    """The address of a server that answers two at a time: both ask for a file before one has it."""
    together = threading.Barrier(2, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            together.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(packed[self.path[1:]])

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def download_again_and_again(address, files, packed, folder, pipe):
    """In a process of its own, whose only folder is this one; tells the pixels it gets."""
    os.chdir(folder)
    os.environ.update(HOME=str(folder), TMPDIR=str(folder), TQDM_DISABLE="1", no_proxy="*")
    vae_data.MNIST_SHA256 = digests(files)
    datasets.MNIST.mirrors = [address]
    datasets.MNIST.resources = [
        (name, hashlib.md5(content).hexdigest()) for name, content in packed.items()
    ]
    for race in range(RACES):
        pipe.send(load_images("mnist", f"data {race}").train.images.numpy().tobytes())


def test_two_processes_that_download_into_one_folder_at_once_both_get_the_data(tmp_path, files):
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    context = quick_processes()
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    with mirror(packed) as address:
        processes = [
            context.Process(
                target=download_again_and_again, args=(address, files, packed, tmp_path, pipe)
            )
            for _, pipe in pipes
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    got = [heard.recv() for heard, _ in pipes for _ in range(RACES)]
    assert got == [files[TRAIN_IMAGES][16:]] * (2 * RACES)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    figures["downloads at once"] = f"{RACES} by two processes each, {len(got)} whole data sets"
    assert left == {f"data {race}/MNIST/raw/{name}" for race in range(RACES) for name in files}


@pytest.mark.usefixtures("downloads")
def test_a_folder_that_cannot_be_written_is_an_error_that_says_so(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(30, "Read-only file system")

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        load_images("mnist", tmp_path / "file" / "data")
    monkeypatch.setattr("os.mkdir", refuse)  # root may write anywhere: simulated
    with pytest.raises(FileNotFoundError, match="Read-only file system"):
        load_images("mnist", tmp_path / "data")


@pytest.mark.parametrize("breaks", [False, True])
def test_a_silent_server_is_given_up_and_the_time_limit_of_other_connections_left_alone(
    tmp_path, monkeypatch, files, breaks
):
    limits = []

    def download(self):
        limits.append(socket.getdefaulttimeout())
        if breaks:
            raise URLError("cut off")
        write(Path(self.raw_folder), files)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77.5)
    try:
        with pytest.raises(FileNotFoundError) if breaks else contextlib.nullcontext():
            load_images("mnist", tmp_path)
        assert socket.getdefaulttimeout() == 77.5
    finally:
        socket.setdefaulttimeout(before)
    assert len(limits) == 1
    assert 5 <= limits[0] <= 60  # seconds


# -------------------------------------------------------------------------- hostile files


def mutate(content, rng):
    """A cut, a longer, a file with another header, or one with a few bits flipped."""
    data = bytearray(content)
    match rng.integers(4):
        case 0:
            return bytes(data[: rng.integers(len(data))])
        case 1:
            return content + rng.bytes(rng.integers(1, 50))
        case 2:
            spot = rng.integers(8)
            data[spot] ^= rng.integers(1, 256)
        case _:
            for spot in set(rng.integers(len(data), size=rng.integers(1, 4)).tolist()):
                data[spot] ^= 1 << rng.integers(8)
    return bytes(data)


def test_a_thousand_mutated_files_are_refused_by_name(root, files):
    rng = np.random.default_rng(0)
    mutated = refused = 0
    for _ in range(1000):
        name = str(rng.choice(list(files)))
        path = root / "MNIST" / "raw" / name
        path.write_bytes(mutate(files[name], rng))
        with pytest.raises(ValueError, match="not the published file") as error:
            load_images("mnist", root)
        refused += str(path) in str(error.value) and "delete it" in str(error.value)
        path.write_bytes(files[name])
        mutated += 1
    assert refused == mutated
    assert load_images("mnist", root).name == "MNIST"  # the files were to blame, nothing else
    figures["mutated IDX files"] = f"{mutated:,}, of which {refused:,} refused with name and remedy"


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_an_altered_file_is_an_error_and_no_reason_to_take_other_data(root, name):
    (root / "MNIST" / "raw" / TRAIN_IMAGES).write_bytes(b"")
    with pytest.raises(ValueError, match=TRAIN_IMAGES):
        load_images(name, root)


def test_one_data_set_in_place_of_the_other_is_refused(root, files, monkeypatch):
    write(root / "FashionMNIST" / "raw", files)
    assert load_images("fashion-mnist", root).name == "Fashion-MNIST"
    monkeypatch.setattr(vae_data, "FASHION_MNIST_SHA256", dict.fromkeys(files, "0" * 64))
    assert load_images("mnist", root).name == "MNIST"
    with pytest.raises(ValueError, match="FashionMNIST"):
        load_images("fashion-mnist", root)


def test_a_gzip_bomb_is_neither_unpacked_nor_read(root):
    bomb = gzip.compress(bytes(50_000_000))
    (root / "MNIST" / "raw" / TRAIN_IMAGES).write_bytes(bomb)
    (root / "MNIST" / "raw" / f"{TRAIN_IMAGES}.gz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(ValueError, match=TRAIN_IMAGES):
        load_images("mnist", root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_huge_file_is_refused_before_it_is_read(root):
    with open(root / "MNIST" / "raw" / TRAIN_IMAGES, "r+b") as file:
        file.truncate(10**12)  # sparse: it takes no space
    with pytest.raises(ValueError, match=TRAIN_IMAGES):
        load_images("mnist", root)


@pytest.mark.parametrize("linked", ["", "MNIST", "MNIST/raw", f"MNIST/raw/{TRAIN_IMAGES}"])
def test_files_and_folders_may_lie_on_a_linked_disk(root, tmp_path, linked, downloads):
    shutil.move(root / linked, tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    assert load_images("mnist", root).train.images.shape == (12, 1, 4, 6)
    assert not downloads


def test_what_a_link_leads_to_is_verified(root, tmp_path, files):
    path = root / "MNIST" / "raw" / TRAIN_IMAGES
    (tmp_path / "elsewhere").write_bytes(files[TRAIN_IMAGES][:-1] + b"?")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=TRAIN_IMAGES):
        load_images("mnist", root)


def test_a_download_into_a_linked_folder_stays_on_its_disk(tmp_path, downloads, monkeypatch):
    """Moving a file between disks is no renaming, and ``os.replace`` refuses it."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    (root / "MNIST").mkdir(parents=True)
    (root / "MNIST" / "raw").symlink_to(elsewhere)
    replace = os.replace

    def on_one_disk(source, target):
        disks = {elsewhere in Path(path).resolve().parents for path in (source, target)}
        assert len(disks) == 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_one_disk)
    assert load_images("mnist", root).name == "MNIST"
    assert downloads
    assert {path.name for path in elsewhere.iterdir()} == set(vae_data.MNIST_SHA256)


def test_a_dangling_link_is_replaced_and_never_written_through(root, tmp_path, downloads):
    path = root / "MNIST" / "raw" / TRAIN_IMAGES
    path.unlink()
    path.symlink_to(tmp_path / "target")
    assert load_images("mnist", root).name == "MNIST"
    assert downloads
    assert not path.is_symlink()
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("hostile", [False, True])
def test_the_processed_files_of_old_torchvision_are_never_read(root, tmp_path, hostile):
    processed = root / "MNIST" / "processed"
    processed.mkdir()
    trace = tmp_path / "executed"
    other = io.BytesIO()
    torch.save((torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(3).long()), other)
    content = pickle.dumps(Executed(trace)) if hostile else other.getvalue()
    for name in ("training.pt", "test.pt"):
        (processed / name).write_bytes(content)
    assert load_images("mnist", root).train.images.shape == (12, 1, 4, 6)
    assert not trace.exists()


# --------------------------------------------------------------------------- transforms

RAW = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_scale_divides_by_255():
    assert torch.equal(scale(RAW).flatten(), torch.arange(256) / 255)


def test_a_transform_reads_like_its_formula_and_keeps_to_it_exactly():
    """With one seed, black images show the noise u that both random transforms draw."""
    raw = torch.randint(256, (500, 1, 16, 16), dtype=torch.uint8)
    u = drawn(dequantize, torch.zeros_like(raw)).double() * 256
    assert torch.equal(drawn(dequantize, raw), ((raw + u) / 256).float())
    # In whole numbers, since 2¹⁷ u is one: no rounding decides between ink and paper.
    n, probability = (u * 2**17).long(), raw.long() * 2**17
    assert torch.equal(u * 2**17, n.double())
    assert torch.equal(drawn(binarize, raw), (255 * n < probability).float())


def drawn(transform, raw):
    torch.manual_seed(0)
    return transform(raw)


@pytest.mark.parametrize(("transform", "said"), [(scale, "/ 255"), (dequantize, "(raw + u) / 256")])
def test_the_source_of_a_transform_shows_the_formula(transform, said):
    assert said in inspect.getsource(transform)
    assert transform.__module__ == "vae_data"
    assert pickle.loads(pickle.dumps(transform)) is transform


def test_dequantize_adds_uniform_noise_within_every_level():
    x = dequantize(RAW.expand(2000, -1, -1, -1))
    u = (x.double() * 256 - RAW).flatten()
    assert (u.min() >= 0, u.max() <= 1) == (True, True)  # 1 itself by rounding to float32
    assert within(u, 0.5)
    assert within((u - 0.5) ** 2, 1 / 12)
    # Eight neighbours may come from one random word, and must not show it.
    assert np.abs(np.corrcoef(u.view(-1, 8).T) - np.eye(8)).max() < 5 / math.sqrt(len(u) / 8)


def test_dequantize_draws_all_sixteen_bits_the_last_eight_once_for_a_data_point():
    black = torch.zeros(20_000, 9, dtype=torch.uint8)
    drawn = (dequantize(black).double() * 2**24).floor()  # 2²⁴ x lies in [0, 2¹⁶)
    whole, fraction = drawn // 256, drawn % 256
    assert torch.equal(fraction, fraction[:, :1].expand_as(fraction))
    for part in (whole // 16, whole % 16, fraction // 16, fraction % 16):
        assert within((part[:, :1] == torch.arange(16)).double(), 1 / 16)
    # Nor do bytes of neighbouring words correlate.
    assert np.abs(np.corrcoef(whole.T) - np.eye(9)).max() < 5 / math.sqrt(len(whole))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_noise_has_its_precision_whatever_the_default_dtype(dtype):
    white = torch.full((1000, 64), 255, dtype=torch.uint8)
    expected = [scale(RAW), drawn(dequantize, RAW), drawn(binarize, RAW)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        x = binarize(white)
        found = [scale(RAW), drawn(dequantize, RAW), drawn(binarize, RAW)]
    finally:
        torch.set_default_dtype(before)
    assert (x.dtype, x.min()) == (torch.float32, 1)
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (5,), ()])
def test_random_transforms_take_any_shape(shape):
    raw = torch.zeros(shape, dtype=torch.uint8)
    assert dequantize(raw).shape == binarize(raw).shape == shape


def test_binarize_draws_ink_with_the_grey_value_as_probability():
    x = binarize(RAW.expand(4000, -1, -1, -1))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert within(x.double(), RAW[0].double() / 255)


@pytest.mark.parametrize("transform", [dequantize, binarize])
def test_random_transforms_draw_anew_each_time(transform):
    assert not torch.equal(transform(RAW), transform(RAW))


@pytest.mark.parametrize("transform", [scale, dequantize, binarize])
def test_a_transform_stays_on_its_device(transform):
    result = transform(torch.zeros(2, 3, dtype=torch.uint8, device="meta"))
    assert (result.device.type, result.shape, result.dtype) == ("meta", (2, 3), torch.float32)


# ------------------------------------------- the remedies that a transform's errors name


GREY = torch.randint(256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0))
POINTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
NO_RAW_IMAGES = {
    "floats 0 … 255": GREY.float(),
    "float64 0 … 255": GREY.double(),
    "int64 0 … 255": GREY,
    "int32 0 … 255": GREY.int(),
    "grey floats, as ToTensor gives them": GREY / 255,
    "grey floats in half precision": (GREY / 255).bfloat16(),
    "any floats in [0, 1]": POINTS.sigmoid(),
    "booleans": GREY > 127,
    "bits as int64": (GREY > 127).long(),
    "bits as floats": (GREY > 127).float(),
    "standardised": POINTS,
    "counts beyond 255": GREY + GREY // 255,
    "whole numbers, some negative": GREY - 100,
    "grey floats, one missing": (GREY / 255).index_fill(0, torch.tensor([3]), math.nan),
}


def as_the_error_says(transform, data):
    """The data and the transform once the error's remedy is applied to both, and the message."""
    with pytest.raises(TypeError, match=f"{transform.__name__} takes raw 8-bit.*uint8") as error:
        transform(data)
    message = str(error.value)
    expressions = re.findall(r"\S*\(255 \* data\)\S+|\bdata[.\[].*\]|\bdata\.\S+", message)
    assert len(expressions) <= 1
    if expressions:
        remedied = eval(expressions[0], {"data": data, "torch": torch})
        assert not torch.equal(remedied, data) or remedied.dtype != data.dtype
        if remedied.dtype == torch.uint8:  # the levels that the data had, none wrapped around
            levels = data.double() * (255 if "255 *" in expressions[0] else 1)
            torch.testing.assert_close(remedied.double(), levels, rtol=0, atol=1e-3)
        data = remedied
    if "without a transform" in message:
        transform = None
    if "transform=torch.bernoulli" in message:
        transform = torch.bernoulli
    return data, transform, message


MATCHING = {
    scale: DecoderContinuousBernoulli,
    dequantize: DecoderGaussian,
    binarize: DecoderBernoulli,
}


@pytest.mark.parametrize("transform", MATCHING)
@pytest.mark.parametrize("kind", NO_RAW_IMAGES)
def test_each_remedy_works_on_the_very_data_that_raised_the_error(transform, kind):
    data, remedied, message = as_the_error_says(transform, NO_RAW_IMAGES[kind])
    if "finite" in message:  # what remains may need another
        data, remedied, message = as_the_error_says(transform, data)
    decoder = DecoderGaussian if "DecoderGaussian" in message else MATCHING[transform]
    history = run(tiny_vae(data.shape[1:], decoder=decoder), data, transform=remedied, epochs=2)
    assert np.isfinite(history.test).all()


def test_a_remedy_keeps_what_the_data_mean():
    raw = RAW.expand(3, -1, -1, -1)
    for transform in MATCHING:
        for data in (raw.float(), raw.double(), raw.long(), raw.short()):
            restored, remedied, _ = as_the_error_says(transform, data)
            assert torch.equal(restored, raw)
            assert remedied is transform
    # Grey levels over 255 keep their likelihood bounded, and stay the levels of a categorical.
    assert torch.equal(as_the_error_says(dequantize, raw / 255)[0], raw)
    data, remedied, _ = as_the_error_says(scale, raw / 255)
    assert remedied is None
    decoder = DecoderCategorical(mlp(2, [8], (2, 16, 16)), 2)
    assert decoder.log_prob(data, torch.zeros(3, 2)).isfinite().all()
    # Probabilities are drawn from, not rounded.
    data, remedied, _ = as_the_error_says(binarize, (RAW / 255).expand(4000, -1, -1, -1))
    assert within(remedied(data).double(), RAW[0].double() / 255)
