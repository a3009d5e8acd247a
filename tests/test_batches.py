"""What a data set may be, what is said of anything else, and how it is served in batches."""

import os
import random
import re

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vae_batches
import vae_helpers as lab
from tools import generator_states, run, tiny_vae
from vae_batches import Batches, as_numbers
from vae_runtime import seeded

CPU = torch.device("cpu")
POINTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


class Items(Dataset):
    """A dataset whose items are made of its points by a function."""

    def __init__(self, item=lambda row: row, points=POINTS):
        self.item, self.points = item, points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.item(self.points[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(POINTS)


FRAME = pandas.DataFrame(POINTS.numpy(), columns=list("abcdef"))

# What is refused, what is said, and the remedy that is named, applied to the very data.
REFUSED = {
    "a DataLoader": (
        DataLoader(TensorDataset(POINTS)), r"DataLoader.*loader\.dataset", lambda d: d.dataset,
    ),
    "a dict": (
        {"images": POINTS, "labels": None}, r"is a dict.*train\['images'\]", lambda d: d["images"],
    ),
    "an empty dict": ({}, "is a dict: give one of its values", None),
    "a tuple": ((POINTS, torch.arange(20)), r"tuple of 2.*train\[0\]", lambda d: d[0]),
    "a sparse matrix": (
        scipy.sparse.csr_matrix(POINTS.numpy()), r"sparse csr_matrix.*train\.toarray\(\)",
        lambda d: d.toarray(),
    ),
    "a sparse array": (
        scipy.sparse.coo_array(POINTS.numpy()), r"sparse coo_array.*train\.toarray\(\)",
        lambda d: d.toarray(),
    ),
    "a set": (set(POINTS), r"is a set.*list\(train\)", list),
    "an iterator": (iter(list(POINTS)), r"list_iterator.*list\(train\)", None),
    "a stream": (Stream(), r"Stream.*list\(train\)", list),
    "a number": (7, "train is a int: what is needed is a tensor, an array, or a dataset", None),
    "None": (None, "train is a NoneType: what is needed", None),
    "items that are dicts": (
        Items(lambda row: {"label": 3, "x": row}),
        r"items are dicts with the keys 'label', 'x'.*\[item\['x'\] for item in dataset\]",
        lambda d: [item["x"] for item in d],
    ),
    "items that are strings": (
        Items(lambda row: "a word"), "items give a list: each must be", None,
    ),
    "items that begin with strings": (
        Items(lambda row: ("a word", row)), "items give a list: each must be", None,
    ),
    "strings": (["one", "two"], "items give a list: each must be", None),
    "a string": ("words", "items give a list: each must be", None),
    "an array of objects": (
        POINTS.numpy().astype(object), r"array of object.*astype\('float32'\)",
        lambda d: d.astype("float32"),
    ),
    "an array of text": (
        POINTS.numpy().astype(str), r"array of <U\d+.*astype\('float32'\)",
        lambda d: d.astype("float32"),
    ),
    "an array of dates": (
        np.arange(20).astype("datetime64[D]"), r"datetime64\[D\] holds no real numbers", None,
    ),
    "complex numbers": (POINTS.numpy() + 1j, "complex64 holds no real numbers", None),
    "a DataFrame with text": (
        FRAME.assign(name="a", place="b"), r"columns name, place .*select_dtypes\('number'\)",
        lambda d: d.select_dtypes("number"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_no_data_set_is_named_and_its_remedy_works(split, kind):
    data, words, remedy = REFUSED[kind]
    splits = {"train": POINTS, "test": POINTS} | {split: data}
    with pytest.raises(TypeError) as error:
        run(tiny_vae(), splits["train"], test=splits["test"])
    assert re.search(words.replace("train", split), str(error.value)), str(error.value)
    if remedy:
        splits[split] = remedy(data)
        assert len(run(tiny_vae(), splits["train"], test=splits["test"])) == 1


@pytest.mark.parametrize("kind", REFUSED)
def test_evaluate_says_the_same_of_its_data(kind):
    data, words, _ = REFUSED[kind]
    with pytest.raises(TypeError) as error:
        lab.evaluate(tiny_vae(), data, device="cpu")
    assert re.search(words.replace("train", "data"), str(error.value)), str(error.value)


def dict_of(row):
    return {"x": row}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_items_is_told_of_the_split_also_by_workers(workers):
    source = Batches(Items(dict_of), "test", CPU, torch.float32, workers=workers)
    with pytest.raises(TypeError, match=r"(?s)^test: .*items are dicts with the keys 'x'"):
        list(source.load(source.indices(20)))  # one batch, so that nothing is left behind
    source.close()


@pytest.mark.parametrize(
    "data",
    [
        POINTS.double(),
        POINTS.half(),
        POINTS.bfloat16(),
        POINTS.numpy().astype(np.float64),
        POINTS.numpy().astype(np.float16),
        FRAME.astype("float64"),
        FRAME["a"],
        FRAME.round().astype("int64"),
        list(POINTS.double().numpy()),
        [row.half() for row in POINTS],
        [1.0, 2.0, 3.0],
        list(np.arange(3.0)),
        Items(lambda row: row.double().numpy()),
        Items(lambda row: (row.half(), 0)),
    ],
    ids=lambda data: f"{type(data).__name__} {getattr(data, 'dtype', '')}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_of_any_width_become_the_model_s(dtype, data):
    source = Batches(data, "train", CPU, dtype)
    (batch,) = source.load(source.indices(100))
    values = data.to_numpy() if hasattr(data, "to_numpy") else data
    rows = [values[i][0] if isinstance(values[i], tuple) else values[i] for i in range(len(data))]
    expected = np.array([row.double() if isinstance(row, torch.Tensor) else row for row in rows])
    assert batch.x.dtype == dtype
    assert np.array_equal(batch.x, torch.from_numpy(expected).to(dtype))


def test_whole_numbers_stay_what_they_are_for_a_transform_to_see():
    seen = []

    def spy(x):
        seen.append(x.dtype)
        return x.double()

    for data in (np.arange(4, dtype=np.uint8), np.arange(4), [1, 2], np.arange(4) > 2):
        source = Batches(data, "train", CPU, torch.float32, spy)
        (batch,) = source.load(source.indices(9))
        assert batch.x.dtype == torch.float32
    assert seen == [torch.uint8, torch.int64, torch.int64, torch.bool]


def test_a_transform_may_return_an_array_and_must_return_every_point():
    source = Batches(POINTS, "train", CPU, torch.float32, lambda x: 2 * x.numpy())
    (batch,) = source.load(source.indices(100))
    assert torch.equal(batch.x, 2 * POINTS)
    for wrong, words in (
        (lambda x: x[1:], "train: the transform made 19 of 20 points"),
        (lambda x: x.tolist(), "train: the transform must return a tensor, got <class 'list'>"),
        (lambda x: None, "train: the transform must return a tensor, got <class 'NoneType'>"),
    ):
        source = Batches(POINTS, "train", CPU, torch.float32, wrong)
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            list(source.load(source.indices(100)))


def test_an_array_is_not_copied_and_not_changed():
    array = POINTS.numpy().copy()
    assert as_numbers(array).data_ptr() == array.ctypes.data
    before = array.copy()
    run(tiny_vae(), array)
    assert np.array_equal(array, before)


# ------------------------------------------------------------------------ order and batches


def test_batches_hold_each_row_once_in_order_or_shuffled_by_the_whole_key():
    source = Batches(POINTS, "train", CPU, torch.float32)
    assert [share.tolist() for share in source.indices(7)] == [
        list(range(7)), list(range(7, 14)), list(range(14, 20))
    ]  # fmt: skip
    orders = {key: torch.cat(source.indices(7, key)).tolist() for key in ((0, 1), (0, 2), (1, 1))}
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert torch.cat(source.indices(20, (0, 1))).tolist() == orders[0, 1]
    assert list(range(20)) not in orders.values()


def test_a_batch_says_which_rows_it_holds():
    for data in (POINTS, Items()):
        source = Batches(data, "train", CPU, torch.float32)
        for batch in source.load(source.indices(6, (3, 1))):
            assert torch.equal(batch.x, POINTS[batch.rows])
            assert batch.share == 1


@pytest.mark.parametrize(
    ("points", "batch_size", "sizes"),
    [(20, 6, [6, 6, 6, 2]), (19, 6, [6, 6, 7]), (7, 6, [7]), (1, 6, [1]), (3, 1, [1, 2])],
)
def test_a_last_batch_of_one_joins_the_one_before_for_training(points, batch_size, sizes):
    source = Batches(POINTS[:points], "train", CPU, torch.float32)
    assert [len(share) for share in source.indices(batch_size, (0, 1))] == sizes
    alone = [len(share) for share in source.indices(batch_size)]
    assert alone[-1] == points % batch_size or batch_size
    assert torch.cat(source.indices(batch_size, (0, 1))).sort().values.tolist() == [*range(points)]


@pytest.mark.parametrize("points", [13, 7])
def test_batch_norm_trains_whatever_is_left_for_the_last_batch(points):
    vae = tiny_vae()
    vae.encoder.net.insert(1, nn.BatchNorm1d(8))
    history = run(vae, POINTS[:points], batch_size=6, epochs=2)
    assert history.train.shape == (2, points)
    assert np.isfinite(history.train).all()


@pytest.mark.parametrize("share", [(0, 2), (1, 2), (0, 3), (2, 3)])
def test_a_process_s_share_is_weighted_by_its_size(share, monkeypatch):
    monkeypatch.setattr(vae_batches, "process", lambda: share)
    rank, world = share
    source = Batches(POINTS[:17], "train", CPU, torch.float32)
    shares = source.indices(6, (0, 1))
    batches = list(source.load(shares))
    for whole, batch in zip(shares, batches, strict=True):
        assert batch.rows.tolist() == whole.tolist()[rank::world]
        # Averaged over the processes, share × mean of the part is the mean over the batch.
        assert batch.share == pytest.approx(world * len(batch.rows) / len(whole))


def test_a_first_look_is_at_points_at_random_the_same_for_a_seed():
    source = Batches(POINTS, "train", CPU, torch.float32, lambda x: x + torch.rand_like(x))
    first, again, other = (source.first(8, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    places = ((first[:, None] - POINTS).abs().amax(-1) < 1).nonzero()
    assert len(first) == 8 and places[:, 1].unique().numel() >= 8


# ---------------------------------------------------------------------- randomness of the data


def draw(x):
    return x + torch.rand(()) + np.random.rand() + random.random()


def only_numpy(x):
    return x + np.random.rand()


def only_python(x):
    return x + random.random()


@pytest.mark.parametrize(
    ("item", "transform"),
    [(None, only_numpy), (None, only_python), (None, draw), (only_numpy, None), (draw, None)],
)
def test_a_seed_governs_what_numpy_and_python_draw_in_transforms_and_data(item, transform):
    data = Items(item) if item else POINTS
    histories = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(elsewhere), random.seed(elsewhere)
        torch.manual_seed(0)
        vae = tiny_vae()
        before = generator_states()
        history = run(vae, data, epochs=2, batch_size=6, seed=seed, transform=transform)
        assert generator_states() == before
        histories.append(history)
    first, again, other = histories
    assert np.array_equal(first.train, again.train) and np.array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


class Noted(Items):
    """A dataset whose items are nothing but what was drawn for them, of each generator."""

    def __getitem__(self, index):
        drawn = [np.random.rand(), random.random(), torch.rand(()).item()]
        return torch.tensor([index, *drawn], dtype=torch.float64)


def drawn_with(workers, seed=0):
    """What was drawn for each item, in two epochs: ``(2, 20, 3)``."""
    source = Batches(Noted(), "train", CPU, torch.float64, workers=workers)
    epochs = []
    for epoch in (1, 2):
        with seeded(seed, epoch):
            x = torch.cat([batch.x for batch in source.load(source.indices(6, (seed, epoch)))])
        epochs.append(x[x[:, 0].argsort(), 1:])
    source.close()
    return torch.stack(epochs)


def test_workers_draw_the_same_whatever_their_number_and_never_twice():
    one = drawn_with(1)
    assert torch.equal(one, drawn_with(2))
    assert torch.equal(one, drawn_with(0))
    assert not torch.equal(one, drawn_with(1, seed=1))
    before = generator_states()
    source = Batches(Items(), "train", CPU, torch.float32)
    list(source.load(source.indices(6)))
    assert generator_states() == before
    for generator in one.unbind(-1):
        assert generator.unique().numel() == 40


# ------------------------------------------------------------------------ what identifies data


def fingerprint(data):
    return Batches(data, "train", CPU, torch.float32).fingerprint()


def test_a_dataset_is_told_by_items_from_all_over_it_and_by_its_length():
    points = torch.randn(100, 6)
    first = fingerprint(Items(points=points))
    assert first == fingerprint(Items(points=points.clone()))
    assert re.fullmatch(r"100 points of Items [0-9a-f]{16}", first)
    others = [points.clone() for _ in range(3)]
    for other, place in zip(others, (0, 52, 99), strict=True):  # 52 lies in the eighth of 16 looks
        other[place] += 1
    found = {first, *(fingerprint(Items(points=other)) for other in others)}
    assert len(found) == 4
    assert fingerprint(Items(points=points[:99])) not in found
    assert fingerprint(points) != fingerprint(100 * points) != first


def test_a_dataset_of_random_items_is_the_same_in_each_look_and_repeats_with_its_seed():
    counter = iter(range(1000))

    def seeded_noise(row):
        return row + torch.rand(())

    assert fingerprint(Items(seeded_noise)) == fingerprint(Items(seeded_noise))
    # Items that no seed governs identify nothing, so their digest is left out.
    assert fingerprint(Items(lambda row: row + next(counter))) == "20 points of Items"


def test_to_identify_data_disturbs_no_generator():
    before = generator_states()
    fingerprint(Items(draw))
    assert generator_states() == before


# --------------------------------------------------------------------------------- workers


class Pids(Items):
    """A dataset whose items tell which process fetched them."""

    def __getitem__(self, index):
        return torch.tensor([float(os.getpid())], dtype=torch.float64)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_start_once_for_all_epochs_of_a_fit(workers):
    pids = set()

    def note(x):
        pids.update(x.flatten().tolist())
        return x * 0

    vae = tiny_vae((1,)).double()
    run(vae, Pids(), test=torch.zeros(4, 1), epochs=4, batch_size=5, workers=workers,
        transform=note)  # fmt: skip
    fetched = pids - {0.0, float(os.getpid())}
    assert len(fetched) == workers
    assert (float(os.getpid()) in pids) == (workers == 0)
