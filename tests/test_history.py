"""The history: what it holds, its line, its file."""

import io
import math
import pickle

import numpy as np
import pytest
import torch

import vae_helpers as lab
from tools import Executed, history_of, run, tiny_vae


def noise(rows, points):
    return np.random.default_rng(0).normal(-800, 50, (rows, points))


# ---------------------------------------------------------------------------- what it holds


def test_rows_averages_and_standard_errors_are_those_of_the_points():
    rng = np.random.default_rng(0)
    test, train = rng.normal(-800, 50, (4, 30)), rng.normal(-900, 50, (3, 40))
    history = history_of(test, train)
    assert np.array_equal(history.train, train.astype(np.float32))
    assert np.array_equal(history.test, test.astype(np.float32))
    assert np.allclose(history.train_mean, train.mean(1), rtol=1e-12)
    assert np.allclose(history.test_mean, test.mean(1), rtol=1e-12)
    assert np.allclose(history.test_se, test.std(1, ddof=1) / math.sqrt(30), rtol=1e-12)
    assert np.allclose(history.train_se, train.std(1, ddof=1) / math.sqrt(40), rtol=1e-12)
    assert len(history) == 3


def test_averages_are_of_float64_though_the_values_are_of_float32():
    test = (np.random.default_rng(0).normal(-800, 50, (2, 20_000))).astype(np.float32)
    history, exact = history_of(test), test.astype(np.float64)
    assert np.allclose(history.test_mean, exact.mean(1), rtol=1e-12)
    assert np.allclose(history.test_se, exact.std(1, ddof=1) / math.sqrt(20_000), rtol=1e-12)


@pytest.mark.parametrize("keep_points", [7, 1, 100, 1000, None])
def test_a_sample_of_points_is_kept_in_order_and_the_averages_are_of_all(keep_points):
    columns = min(100, keep_points or 100)
    places = np.arange(100.0)  # each point's value tells its place, and epochs apart
    history = history_of([places + 1000 * epoch for epoch in range(4)], None, keep_points)
    assert history.test.shape == (4, columns)
    assert history.train.shape == (3, columns)
    chosen = history.test_index
    assert np.array_equal(history.train_index, chosen)
    assert np.array_equal(chosen, np.unique(chosen))  # ascending, none twice
    assert chosen[0] >= 0 and chosen[-1] < 100
    assert np.array_equal(history.test, chosen + 1000 * np.arange(4)[:, None])
    assert np.allclose(history.test_mean, 49.5 + 1000 * np.arange(4))
    assert np.allclose(history.test_se, np.std(np.arange(100), ddof=1) / 10)
    assert (history.train_points, history.test_points) == (100, 100)


def test_a_sample_is_random_and_the_same_in_each_history():
    first, second = (history_of(np.zeros((2, 1000)), None, 100).test_index for _ in range(2))
    assert np.array_equal(first, second)
    assert 400 < first.mean() < 600  # not the first hundred


def test_what_happened_in_an_epoch_is_kept():
    history = history_of(noise(4, 5))
    assert history.lr.tolist() == pytest.approx([0.001, 0.002, 0.003])
    assert history.bounded.tolist() == [0, 1, 2]
    assert history.seconds.tolist() == [0.5] * 3


def test_a_history_may_end_before_the_epochs_that_were_planned():
    history = history_of(noise(4, 5), epochs=9)
    assert (len(history), history.train.shape, history.test.shape) == (3, (3, 5), (4, 5))
    assert history.train_mean.shape == (3,)


def test_training_with_a_thinned_cloud_gives_the_averages_of_the_whole():
    data = torch.randn(30, 6)
    torch.manual_seed(0)
    whole, thin = (run(tiny_vae_again(), data, epochs=2, keep_points=n) for n in (None, 5))
    assert (thin.train.shape, thin.test.shape) == ((2, 5), (3, 5))
    for name in ("train_mean", "train_se", "test_mean", "test_se"):
        assert np.array_equal(getattr(whole, name), getattr(thin, name))
    assert np.isin(thin.train, whole.train).all()


def tiny_vae_again():
    torch.manual_seed(0)
    return tiny_vae()


def test_its_line_tells_epochs_time_and_both_curves():
    history = history_of(np.full((3, 4), -1212.25), np.full((2, 4), -13.75))
    expected = (
        "2 epochs in 1 s: -ELBO train -13.75 +/- 0.00, test -1,212.25 +/- 0.00 nats per data "
        "point; gradient bounded in 1 step"
    )
    assert repr(history) == expected
    shown = expected.replace("+/-", "±").replace("-", "−")
    assert history._repr_markdown_() == shown  # what Jupyter shows
    assert repr(history_of(np.zeros((1, 4)))) == "History of 0 epochs"
    assert "bounded" not in repr(history_of(np.zeros((2, 4))))
    assert repr(history_of(np.zeros((4, 4)))).endswith("; gradient bounded in 3 steps")


def test_its_last_words_are_of_the_last_epoch():
    history = history_of([[1.0], [2.0], [-1234.567]], [[5.0], [4.25]])
    assert history.last() == "-ELBO train 4.25, test -1,234.57"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_every_console_can_print_it(encoding):
    print(history_of(noise(3, 4)), file=io.TextIOWrapper(io.BytesIO(), encoding))


# -------------------------------------------------------------------------------- its file


@pytest.mark.parametrize(
    "history",
    [history_of(noise(1, 4)), history_of(noise(9, 30), keep_points=7, epochs=12)],
    ids=["empty", "cut short"],
)
def test_what_is_saved_is_loaded_again(history, tmp_path):
    path = tmp_path / "a run"
    history.save(path)
    loaded = lab.History.load(path)
    for name, value in history.state().items():
        assert np.array_equal(loaded.state()[name], value)
        assert np.asarray(loaded.state()[name]).dtype == np.asarray(value).dtype
    assert loaded.settings == history.settings
    assert repr(loaded) == repr(history)


def hostile_files(trace):
    pickled = np.array([Executed(trace)], dtype=object)
    rows = history_of(noise(3, 4)).state()
    return {
        "a pickle": lambda file: pickle.dump(Executed(trace), file),
        "an array of pickles": lambda file: np.save(file, pickled, allow_pickle=True),
        "pickles in an archive": lambda file: np.savez(file, **(rows | {"train": pickled})),
        "one array": lambda file: np.save(file, np.zeros(3)),
        "other arrays": lambda file: np.savez(file, weights=np.zeros(3)),
        "arrays that are too few": lambda file: np.savez(file, train=rows["train"]),
        "nothing": lambda file: None,
        "text": lambda file: file.write(b"epoch 1"),
    }


@pytest.mark.parametrize("kind", hostile_files(None))
def test_what_is_no_history_is_refused_by_name_and_not_executed(kind, tmp_path):
    path, trace = tmp_path / "history.npz", tmp_path / "executed"
    with open(path, "wb") as file:
        hostile_files(trace)[kind](file)
    with pytest.raises(ValueError, match=r"history\.npz is not a history"):
        lab.History.load(path)
    assert not trace.exists()


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "history.npz"
    history_of(noise(3, 4)).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a history"):
            lab.History.load(path)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        lab.History.load(tmp_path / "none.npz")
