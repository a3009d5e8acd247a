"""What a data set may be, how it is served in batches, and the seeds, checks and devices below."""

import contextlib
import gc
import multiprocessing
import os
import random
import re
from types import SimpleNamespace

import numpy as np
import pandas
import psutil
import pytest
import scipy.sparse
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from tools import generator_states, run, tiny_vae
from vae_kit import batches as batches_module
from vae_kit.batches import Batches
from vae_kit.checks import error_prefix, positive_number, whole_number
from vae_kit.devices import autocast, data_dtype, pick_device
from vae_kit.evaluation import evaluate
from vae_kit.seeds import seed_from, seeded

CPU = torch.device("cpu")
# Eighths: the same numbers in every floating type. One of them occurs once.
POINTS = torch.randint(-30, 30, (20, 6), generator=torch.Generator().manual_seed(0)).double() / 8
POINTS[3, 2] = RARE = -31 / 8


class Items(Dataset):  # a dataset whose items are made of its points, one at a time, by a function
    def __init__(self, item=lambda row: row, points=POINTS):
        self.item, self.points = item, points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.item(self.points[index])


class Whole(Items):  # one that serves whole index lists as a batch, with labels
    def __getitems__(self, index):
        return self.points[index], index


class Shifted(TensorDataset):  # a TensorDataset that gives other items than its tensors hold
    def __getitem__(self, i):
        return (self.tensors[0][i] + 1,)


class View(np.ndarray):  # a dense array with a method that sparse ones have
    def toarray(self):
        return np.asarray(self)


def source(data, name="train", dtype=torch.float32, transform=None, workers=0):
    return Batches(data, name, CPU, dtype, transform, workers)


def served(data, **options):  # all points in order, in the model's space
    batches = source(data, **options)
    x = torch.cat([batch.x for batch in batches.load(batches.indices(7))])
    batches.close()
    return x


def masked(x, at=()):
    """A masked array, or a MaskedTensor of a tensor, of which one place is missing."""
    mask = np.zeros(x.shape, bool)
    if at:
        mask[at] = True
    if isinstance(x, torch.Tensor):
        return torch.masked.masked_tensor(x.clone(), torch.from_numpy(~mask))
    return np.ma.array(np.where(mask, -9999, x), mask=mask)


def frame(x, dtype=float):
    return pandas.DataFrame(x.numpy(), columns=list("abcdef")).astype(dtype)


TAKEN = {
    "half precision": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "a tensor with a graph": lambda x: nn.Parameter(x) * 1,
    "an array in long double": lambda x: x.numpy().astype(np.longdouble),
    "an array of the other byte order": lambda x: x.numpy().astype(">f4"),
    "an array that is read-only": lambda x: np.frombuffer(x.numpy().tobytes()).reshape(x.shape),
    "an array backwards": lambda x: x.flip(0).numpy()[::-1],
    "columns backwards": lambda x: x.flip(1).numpy()[:, ::-1],
    "one column after the other": lambda x: np.asfortranarray(x.numpy()),
    "a dense array with toarray": lambda x: x.numpy().view(View),
    "a masked array without a gap": lambda x: masked(x.numpy()),
    "a MaskedTensor without a gap": masked,
    "rows in lists": lambda x: x.tolist(),
    "images in lists of lists": lambda x: x.view(20, 2, 3).tolist(),
    "a list of tensors": lambda x: [row.half() for row in x],
    "a list of arrays": lambda x: list(x.numpy()),
    "a list of pairs": lambda x: [(row, 7) for row in x],
    "a DataFrame": frame,
    "columns of several widths": lambda x: frame(x, {"a": "float32", "b": "float16"}),
    "nullable columns": lambda x: frame(x, "Float64"),
    "polars": lambda x: pytest.importorskip("polars").DataFrame(x.numpy()),
    "xarray": lambda x: pytest.importorskip("xarray").DataArray(x.numpy()),
    "another library's table": lambda x: SimpleNamespace(to_numpy=x.numpy),
    "a TensorDataset with labels": lambda x: TensorDataset(x, torch.arange(len(x))),
    "its subclass": lambda x: Shifted(x - 1),
    "a dataset": lambda x: Items(points=x),
    "a dataset with labels": lambda x: Items(lambda row: (row, 3), x),
    "a dataset of lists": lambda x: Items(lambda row: [row, 3], x),
    "a dataset of lists of numbers": lambda x: Items(lambda row: row.tolist(), x),
    "a dataset of arrays": lambda x: Items(lambda row: (row.numpy(), "a name"), x),
    "whole batches": lambda x: Whole(points=x),
    "a subset": lambda x: Subset(Items(points=x), range(20)),
}


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("kind", TAKEN)
def test_data_that_have_one_meaning_are_taken_by_it(kind):
    data = TAKEN[kind](POINTS)
    for dtype in (torch.float32, torch.float64):
        x = served(data, dtype=dtype)
        assert (x.dtype, x.requires_grad) == (dtype, False)
        assert torch.equal(x.view(20, 6), POINTS.to(dtype))


def test_points_that_are_single_numbers_or_pairs_of_them():
    dummies = pandas.get_dummies(pandas.Series(["a", "b", "a"]))["b"]
    for data in ([1.0, 0.0], list(np.arange(3.0)), pandas.Series([1.0, 2]), [True, False], dummies):
        assert served(data).tolist() == [float(number) for number in data]
    assert served([(1.5, 7), (2.5, 8)]).tolist() == [1.5, 2.5], "with labels"
    for rows in ([[0.0, 1e6], [2.0, 3.0]], Items(lambda row: row.tolist(), POINTS[:3, :2])):
        assert served(rows).shape == (len(rows), 2), "a list is a row"


def test_truth_values_are_zeros_and_ones_alone_and_beside_numbers():
    positive = POINTS > 0
    for data in (positive.numpy(), frame(positive, bool), frame(positive, "boolean")):
        assert torch.equal(served(data), positive.float())
    truth = torch.cat([positive[:, :1].double(), POINTS[:, 1:]], 1)
    assert torch.equal(served(frame(truth).astype({"a": bool}), dtype=torch.float64), truth)


MISSING = {
    "a masked array": lambda x: masked(x.numpy(), (3, 2)),
    "a masked array of whole numbers": lambda x: masked((8 * x).numpy().astype(int), (3, 2)),
    "a MaskedTensor": lambda x: masked(x, (3, 2)),
    "nullable numbers": lambda x: frame(x, "Float64").mask(frame(x) == RARE),
    "nullable whole numbers": lambda x: frame(8 * x, "Int64").mask(frame(x) == RARE),
    "items": lambda x: [masked(row.numpy(), 2 if i == 3 else ()) for i, row in enumerate(x)],
}


@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.parametrize("kind", MISSING)
def test_masked_values_are_missing_values_and_refused_where_nothing_models_them(kind):
    data = MISSING[kind](POINTS)
    x, gap = served(data, dtype=torch.float64), POINTS == RARE
    assert torch.equal(x.isnan(), gap)
    assert torch.equal(x[~gap] / (8 if "whole" in kind else 1), POINTS[~gap])
    with pytest.raises(FloatingPointError, match=r"x .* 1 of 20"):
        evaluate(tiny_vae(), data, device="cpu")


def test_whole_numbers_stay_what_they_are_for_a_transform_to_see():
    seen = []

    def spy(x):
        seen.append(x.dtype)
        return x.double()

    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for data in (pixels, pandas.DataFrame(pixels), pixels.astype(int), [1, 2], [True], [[1], [2]]):
        assert torch.equal(served(data, transform=spy), torch.tensor(np.array(data)).float())
    served(POINTS.half(), dtype=torch.float64, transform=spy)
    whole = [torch.uint8, torch.uint8, torch.int64, torch.int64, torch.bool, torch.int64]
    assert seen == [*whole, *[torch.float64] * 3], "but floats have the model's width"
    # Columns of a table are numbers whatever type they have; of bytes alone they may be images.
    for types in ({}, {0: "uint8"}, {0: float}):
        table = pandas.DataFrame(pixels.astype(int)).astype(types)
        assert torch.equal(served(table), torch.from_numpy(pixels).float())


REFUSED = {  # data, and a word of what is said
    "a DataLoader": (DataLoader(TensorDataset(POINTS)), "loader.dataset"),
    "a dict": ({"x": POINTS}, "dict"),
    "a tuple": ((POINTS, torch.arange(20)), "tuple of 2"),
    "a sparse matrix": (scipy.sparse.csr_matrix(POINTS.numpy()), "toarray"),
    "a sparse tensor": (POINTS.to_sparse(), "to_dense"),
    "a set": (set(POINTS), "__getitem__"),
    "a stream": (type("Stream", (IterableDataset,), {"__iter__": iter})(), "Stream"),
    "a number": (7, "int"),
    "None": (None, "NoneType"),
    "items that are dicts": (Items(lambda row: {"label": 3, "x": row}), "'label', 'x'"),
    "items that are words": (Items(lambda row: "word"), "str"),
    "items that begin with words": (Items(lambda row: ("word", row)), "str"),
    "items that are tuples of numbers": ([tuple(row) for row in POINTS.tolist()], "numpy.array"),
    "items that are complex": (Items(lambda row: row + 1j), "view_as_real"),
    "an array of objects": (POINTS.numpy().astype(object), "object"),
    "dates": (np.arange(20).astype("datetime64[D]"), "datetime64"),
    "durations": (np.arange(20).astype("timedelta64[s]"), "timedelta64"),
    "complex numbers": (torch.complex(POINTS, POINTS), "view_as_real"),
    "a complex array": (POINTS.numpy() + 1j, "array.imag"),
    "a structured array": (np.zeros(20, "f4, f4"), "structured_to_unstructured"),
    "words": (frame(POINTS).assign(name="a", place="b"), "name, place"),
    "waits": (frame(POINTS).assign(wait=pandas.to_timedelta(range(20), "D")), "wait"),
    "categories": (frame(POINTS, {"a": "category", "c": "category"}), "a, c"),
    "bytes without a transform": (POINTS.byte(), "transform"),
    "whole numbers without a transform": (POINTS.long(), "int64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_data_set_is_refused_for_its_split(kind):
    data, word = REFUSED[kind]
    with pytest.raises(TypeError) as error:
        served(data, name="test")
    assert str(error.value).startswith("test: ") and word in str(error.value)


@pytest.mark.parametrize("data", [{}, Items(lambda row: {"x": row}), torch.zeros(0, 6)], ids=type)
def test_fit_and_evaluate_name_the_split(data):
    for split in ("train", "test"):
        given = {"train": POINTS, "test": POINTS} | {split: data}
        with pytest.raises((TypeError, ValueError), match=f"^{split}: "):
            run(tiny_vae(), given["train"], test=given["test"])
    with pytest.raises((TypeError, ValueError), match="data: "):
        evaluate(tiny_vae(), data, device="cpu")


def test_items_of_unequal_size_are_named_with_both_sizes():
    images = [torch.zeros(3, 8, 8 + (i == 17)) for i in range(20)]
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"(?s)test: .*item 17 .*\(3, 8, 9\).*\(3, 8, 8\)"):
            served(images, name="test", workers=workers)
    with pytest.raises(ValueError, match="train: "):
        served([[1.0, 2.0], [3.0]])


def test_a_transform_may_return_an_array_and_must_return_every_point_in_floats():
    assert torch.equal(served(POINTS, transform=lambda x: 2 * x.numpy()), 2 * POINTS.float())
    wrong = {"6 of 7": lambda x: x[1:], "NoneType": lambda x: None}
    wrong |= {"transform": torch.Tensor.byte, "int64": torch.Tensor.long}
    for word, transform in wrong.items():
        with pytest.raises((TypeError, ValueError), match=f"^train: .*{word}"):
            served(POINTS, transform=transform)


@pytest.mark.parametrize("way", [np.s_[:], np.s_[::-1], np.s_[:, ::-1]], ids=str)
def test_windows_over_a_series_are_never_copied_whole(way):
    series = np.random.default_rng(0).normal(size=30_000).astype("float32")
    windows = sliding_window_view(series, 1024)[way]  # read-only; 120 MB, did they take any
    process, most = psutil.Process(), 0
    before, batches = process.memory_info().rss, source(windows)
    batches.fingerprint()
    for k, batch in enumerate(batches.load(batches.indices(1000))):
        most = max(most, process.memory_info().rss - before)
        np.testing.assert_array_equal(batch.x[:2], windows[1000 * k :][:2])
    assert most < 40e6


class OnDisk:  # rows are read in increasing order only, as by h5py; no len(), as of zarr
    dtype = np.dtype(float)

    def __init__(self, rows):
        self.rows, self.reads, self.shape = rows, [], rows.shape

    def __getitem__(self, index):
        assert isinstance(index, list) and index == sorted(set(index))
        self.reads.append(len(index))
        return self.rows[index]


@pytest.mark.parametrize("kind", ["a stand-in", "h5py"])
def test_rows_of_a_file_are_read_once_a_batch_and_in_order(kind, tmp_path):
    file = OnDisk(POINTS.numpy())
    if kind == "h5py":
        h5py = pytest.importorskip("h5py")
        file = h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=POINTS.numpy())
    batches = source(file)
    for batch in batches.load(batches.indices(6, (0, 1))):
        assert torch.equal(batch.x, POINTS[batch.rows].float())
    assert kind == "h5py" or file.reads == [6, 6, 6, 2]
    run(tiny_vae(), file, test=POINTS, batch_size=10)


@pytest.mark.parametrize(("kind", "workers"), [("mapped", 0), ("mapped", 2), ("items", 2)])
def test_where_the_points_lie_makes_no_difference(kind, workers, tmp_path):
    np.save(tmp_path / "points.npy", POINTS.numpy())
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    assert isinstance(source(mapped).data, np.memmap), "left on the disk"
    found = []
    for data, n in ((mapped if kind == "mapped" else Items(), workers), (POINTS, 0)):
        torch.manual_seed(0)
        model = tiny_vae()
        history = run(model, data, test=POINTS, epochs=2, batch_size=6, workers=n)
        found.append([history.train.values, *map(torch.Tensor.detach, model.parameters())])
    assert all(map(np.array_equal, *found))


def test_batches_hold_each_row_once_in_order_or_shuffled_by_the_whole_key():
    batches = source(POINTS)
    rows = list(range(20))
    assert [batch.tolist() for batch in batches.indices(7)] == [rows[:7], rows[7:14], rows[14:]]
    orders = {k: torch.cat(batches.indices(7, k)).tolist() for k in ((0, 1), (0, 2), (1, 1))}
    assert all(sorted(order) == rows != order for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert torch.cat(batches.indices(20, (0, 1))).tolist() == orders[0, 1]
    for data in (POINTS, Items()):
        batches = source(data)
        for batch in batches.load(batches.indices(6, (3, 1))):
            assert torch.equal(batch.x, POINTS[batch.rows].float())
            assert batch.share == 1


def test_a_last_batch_of_one_joins_the_one_before_for_training():
    for points, size, sizes in (
        (20, 6, [6, 6, 6, 2]), (19, 6, [6, 6, 7]), (7, 6, [7]), (1, 6, [1]), (3, 1, [1, 2]),
    ):  # fmt: skip
        batches, left = source(POINTS[:points]), points % size
        assert [len(batch) for batch in batches.indices(size, (0, 1))] == sizes
        plain = [size] * (points // size) + [left] * (left > 0)
        assert [len(batch) for batch in batches.indices(size)] == plain
    vae = tiny_vae()
    vae.encoder.net.insert(1, nn.BatchNorm1d(8))  # which fails on a batch of one
    assert np.isfinite(run(vae, POINTS[:13], batch_size=6).train.values).all()


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (0, 3), (2, 3)])
def test_a_process_s_part_of_a_batch_is_weighted_by_its_size(rank, world, monkeypatch):
    monkeypatch.setattr(batches_module, "rank_and_size", lambda: (rank, world))
    batches = source(POINTS[:17])
    whole = batches.indices(6, (0, 1))
    for indices, batch in zip(whole, batches.load(whole), strict=True):
        assert batch.rows.tolist() == indices.tolist()[rank::world]
        # Averaged over the processes, share * mean of the part is the mean over the batch.
        assert batch.share == pytest.approx(world * len(batch.rows) / len(indices))
    # A last batch of fewer points than processes joins; evaluation leaves a process without.
    joined = source(POINTS[:14]).indices(6, (0, 1))
    assert [len(batch) for batch in joined] == ([6, 6, 2] if world == 2 else [6, 8])
    alone = source(POINTS[:1])
    assert len(list(alone.load(alone.indices(6)))) == (rank == 0)
    with pytest.raises(ValueError, match=f"{world} processes"):
        batches.indices(world - 1, (0, 1))
    assert len(batches.indices(world, (0, 1))[0]) == world


def draw(x):
    return x + torch.rand(()) + np.random.rand() + random.random()


@pytest.mark.parametrize(("item", "transform"), [(lambda row: row, draw), (draw, None)])
def test_a_seed_governs_what_transforms_and_data_draw(item, transform):
    found = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(elsewhere), random.seed(elsewhere)
        torch.manual_seed(0)
        vae, before = tiny_vae(), generator_states()
        given = {"epochs": 2, "batch_size": 6, "seed": seed, "transform": transform}
        history = run(vae, Items(item), **given)
        assert generator_states() == before
        found.append([history.train.values, history.test.values])
    assert all(map(np.array_equal, *found[:2]))
    assert not any(map(np.array_equal, *found[1:]))


class Noted(Items):
    """A dataset whose items are what was drawn for them, of each generator, and by whom."""

    def __getitem__(self, index):
        drawn = [np.random.rand(), random.random(), torch.rand(()).item()]
        return torch.tensor([index, *drawn, os.getpid()], dtype=torch.float64)


def drawn_with(workers, seed=0):  # what was drawn for each item, in two epochs: ``(2, 20, 3)``
    batches, epochs = source(Noted(), dtype=torch.float64, workers=workers), []
    for epoch in (1, 2):
        with seeded(seed, epoch):
            x = torch.cat([b.x for b in batches.load(batches.indices(6, (seed, epoch)))])
        epochs.append(x[x[:, 0].argsort(), 1:])
    batches.close()
    found = torch.stack(epochs)
    # Workers start once for all epochs.
    processes = set(found[..., 3].flatten().tolist())
    assert len(processes) == max(1, workers)
    assert (os.getpid() in processes) == (workers == 0)
    return found[..., :3]


def test_workers_draw_the_same_whatever_their_number_and_never_twice():
    before = generator_states()
    one = drawn_with(1)
    assert torch.equal(one, drawn_with(2))
    assert torch.equal(one, drawn_with(0))
    assert not torch.equal(one, drawn_with(0, seed=1))
    assert generator_states() == before
    for generator in one.unbind(-1):
        assert generator.unique().numel() == 40


def test_a_dataset_is_told_by_items_from_all_over_it_and_by_its_length():
    def fingerprint(data):
        return source(data).fingerprint()

    points, before = torch.randn(100, 6), generator_states()
    first = fingerprint(Items(points=points))
    assert first == fingerprint(Items(points=points.clone()))
    others = [points.clone() for _ in range(3)]
    for other, place in zip(others, (0, 52, 99), strict=True):  # 52 lies in the eighth of 16 looks
        other[place] += 1
    found = {first, *(fingerprint(Items(points=other)) for other in others)}
    found |= {fingerprint(Items(points=points[:99])), fingerprint(Whole(points=points))}
    found |= {fingerprint(points), fingerprint(100 * points), fingerprint(points[:99])}
    assert len(found) == 9
    # Items drawn from global generators identify; those of a generator of their own are told.
    assert fingerprint(Items(draw)) == fingerprint(Items(draw))
    assert generator_states() == before
    counter = iter(range(1000))
    own = Items(lambda row: row + next(counter))
    with pytest.warns(UserWarning, match="train.*differ"):
        first = fingerprint(own)
    with pytest.warns(UserWarning, match="differ") as told:
        run(tiny_vae(), Items(lambda row: row + next(counter) / 1e6), test=POINTS)
    assert all("/tests/" in w.filename for w in told), "the caller's line, not one in between"
    with pytest.warns(UserWarning, match="differ"):
        assert fingerprint(own) == first, "what no seed governs identifies nothing"


class Failing(Items):
    def __getitem__(self, index):
        if index == 15:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


def children():
    return [p for p in psutil.Process().children() if "forkserver" not in " ".join(p.cmdline())]


@pytest.mark.parametrize("end", ["finished", "interrupted", "failed", "not finite"])
def test_workers_shut_down(end):
    before, at_work = len(children()), []

    def look(history):
        if end == "interrupted":
            raise KeyboardInterrupt

    def count(x):
        at_work.append(len(children()) - before)
        return x / 0 if end == "not finite" and torch.is_grad_enabled() else x

    data = Failing() if end == "failed" else Items()
    given = {"test": POINTS, "workers": 2, "transform": count, "epochs": 2, "progress": look}
    error = {"failed": OSError, "not finite": FloatingPointError}.get(end)
    with pytest.raises(error) if error else contextlib.nullcontext() as caught:
        run(tiny_vae(), data, **given)
    if end == "failed":  # its traceback leads through the loader, which holds the workers
        del caught
        gc.collect()
    assert end == "failed" or max(at_work) >= 2, "there were workers"
    assert len(children()) == before
    assert not multiprocessing.active_children()


def test_a_key_seeds_every_generator_and_each_has_its_old_state_afterwards():
    before, found = generator_states(), {}
    assert len({seed_from(a, b) for a in range(60) for b in range(60)}) == 3600
    for key in ((0, 1), (0, 1), (1, 0), (0, 2), (0,), (2**40, 1), (2**64 - 1,)):
        with seeded(*key):
            again = torch.rand(()).item(), np.random.rand(), random.random()
        assert generator_states() == before
        assert found.setdefault(key, again) == again
    assert all(len(set(drawn)) == len(found) for drawn in zip(*found.values(), strict=True))
    with contextlib.suppress(RuntimeError), seeded(0, 1):
        draw(0)
        raise RuntimeError
    assert generator_states() == before


def test_numbers_of_numpy_and_pytorch_are_numbers_and_anything_else_is_refused_by_name():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert whole_number("n", value) == positive_number("n", value) == 3
        assert (type(whole_number("n", value)), type(positive_number("n", value))) == (int, float)
    for value in (0, -1, 1.0, np.float64(2), True, np.bool_(True), "3", None):
        with pytest.raises(ValueError, match=rf"^n .*at least 1.*{re.escape(repr(value))}"):
            whole_number("n", value)
    assert whole_number("n", 0, least=0) == 0
    for value in (0, -1e-9, np.inf, np.nan, "3", None, True, 1j):
        with pytest.raises(ValueError, match=r"^here: n "), error_prefix("here"):
            positive_number("n", value)


def test_auto_takes_bfloat16_where_the_cpu_is_fast_at_it(monkeypatch):
    def computed_in(precision):
        with autocast(precision, CPU):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    amx, avx = {"amx_bf16": True, "avx512_bf16": True}, {"avx512_bf16": True, "amx_bf16": False}
    intel, amd = {"cpu_name": "Intel Xeon"}, {"cpu_name": "AMD EPYC"}
    for cpu, fast in (({}, False), (amx | intel, True), (avx | intel, False), (avx | amd, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda cpu=cpu: cpu, raising=False)
        for around in (contextlib.nullcontext(), torch.autocast("cpu", torch.float16)):
            with around:
                assert computed_in("auto") == (torch.bfloat16 if fast else torch.float32)
                assert computed_in("float32") == torch.float32
                assert computed_in("bfloat16") == torch.bfloat16


def test_the_fastest_device_is_picked_and_data_have_the_weights_width(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for cuda, mps, picked in ((True, True, "cuda:1"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device(None) == torch.device(picked)
        assert pick_device("cpu") == pick_device(CPU) == CPU
    for width in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert data_dtype(tiny_vae().to(width)) == max(
            width, torch.float32, key=lambda d: d.itemsize
        )
    whole = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)])
    assert data_dtype(whole) == torch.float32
    assert data_dtype(whole.append(nn.Parameter(torch.zeros(3).double()))) == torch.float64
