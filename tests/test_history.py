"""The history: what it holds, its line, its file."""

import io
import math
import pickle

import numpy as np
import pytest
import torch

from tools import Executed, history_of
from vae_kit.history import Curve, History


def noise(rows, points):
    return np.random.default_rng(0).normal(-800, 50, (rows, points))


def test_rows_averages_and_standard_errors_are_those_of_the_points():
    test, train, end = noise(4, 30), noise(3, 40) - 100, noise(1, 40)[0] - 200
    history = history_of(test, train, end)
    for curve, truth in (
        (history.test, test),
        (history.train, train),
        (history.train_end, end[None]),
    ):
        assert np.array_equal(curve.values, truth.astype(np.float32))
        assert curve.values.dtype == np.float32
        assert np.allclose(curve.mean, truth.mean(1), rtol=1e-12)
        assert np.allclose(curve.se, truth.std(1, ddof=1) / math.sqrt(truth.shape[1]), rtol=1e-12)
        assert (len(curve), curve.points) == truth.shape
        assert np.array_equal(curve.index, np.arange(curve.points))
        assert curve.index.dtype == np.int64
    assert len(history) == 3
    assert history.lr.tolist() == pytest.approx([0.001, 0.002, 0.003])
    assert history.clipped.tolist() == [0, 1, 2]
    assert history.seconds.tolist() == [0.5] * 3
    assert history.kl.shape == (4,)


def test_averages_are_of_float64_though_the_values_are_of_float32():
    values = noise(2, 20_000).astype(np.float32)
    curve = Curve(20_000)
    for row in values:
        curve.append(torch.from_numpy(row))
    exact = values.astype(np.float64)
    assert np.allclose(curve.mean, exact.mean(1), rtol=1e-12)
    assert np.allclose(curve.se, exact.std(1, ddof=1) / math.sqrt(20_000), rtol=1e-12)


@pytest.mark.parametrize("keep_points", [7, 1, 99, 100, 1000, None])
def test_a_sample_of_points_is_kept_in_order_and_the_averages_are_of_all(keep_points):
    kept = min(100, keep_points or 100)
    places = np.arange(100.0)  # each point's value tells its place, and epochs apart
    history = history_of([places + 1000 * epoch for epoch in range(4)], keep_points=keep_points)
    for curve, first in ((history.test, 0), (history.train, 1)):
        assert curve.values.shape == (4 - first, kept)
        assert np.array_equal(curve.index, np.unique(curve.index))  # ascending, none twice
        assert curve.index[0] >= 0 and curve.index[-1] < 100
        assert np.array_equal(curve.values, curve.index + 1000 * np.arange(first, 4)[:, None])
        assert np.allclose(curve.mean, 49.5 + 1000 * np.arange(first, 4))
        assert np.allclose(curve.se, np.std(np.arange(100), ddof=1) / 10)
        assert curve.points == 100
        assert keep_points != 7 or 20 < curve.index.mean() < 80  # not the first ones


def test_its_line_tells_epochs_time_and_both_ends():
    history = history_of(np.full((3, 4), -1212.25), np.full((2, 4), -13.75))
    expected = (
        "2 epochs in 1 s: -ELBO train -13.75 +/- 0.00, test -1,212.25 +/- 0.00 nats per data "
        "point; gradient clipped in 1 step"
    )
    assert repr(history) == expected
    assert history._repr_markdown_() == expected.replace("+/-", "±").replace("-", "−")
    assert "train -20.00 " in repr(history_of(np.zeros((3, 4)), end=np.full(4, -20.0)))
    assert repr(history_of(np.zeros((1, 4)))) == "History of 0 epochs"
    assert np.isnan(history_of([[3.0], [2.0]]).test.se).all(), "of a single point there is none"
    assert "clipped" not in repr(history_of(np.zeros((2, 4))))
    assert repr(history_of(np.zeros((4, 4)))).endswith("clipped in 3 steps")
    last = history_of([[1.0], [2.0], [-1234.567]], [[5.0], [4.25]]).last()
    assert last == "-ELBO train 4.25, test -1,234.57"
    for encoding in ("ascii", "cp1252", "cp437"):
        print(history, file=io.TextIOWrapper(io.BytesIO(), encoding))


@pytest.mark.parametrize(
    "history",
    [
        history_of(noise(1, 4)),
        history_of(noise(9, 30), keep_points=7, epochs=12, lr=0.5, seed=3),
        history_of(noise(3, 5), end=noise(1, 5)[0], identity={"transform": "scale"}),
    ],
    ids=["empty", "cut short", "ended"],
)
def test_what_is_saved_is_loaded_again(history, tmp_path):
    path = tmp_path / "a run"
    history.save(path)
    loaded = History.load(path)
    for name, value in history.state().items():
        assert np.array_equal(loaded.state()[name], value, equal_nan=name.endswith(("kl", "se")))
        assert np.asarray(loaded.state()[name]).dtype == np.asarray(value).dtype
    assert (loaded.settings, loaded.identity) == (history.settings, history.identity)
    assert repr(loaded) == repr(history)


def hostile_files(trace):
    pickled = np.array([Executed(trace)], dtype=object)
    rows = history_of(noise(3, 4)).state()
    return {
        "a pickle": lambda file: pickle.dump(Executed(trace), file),
        "an array of pickles": lambda file: np.save(file, pickled, allow_pickle=True),
        "pickles in an archive": lambda file: np.savez(file, **(rows | {"train_values": pickled})),
        "one array": lambda file: np.save(file, np.zeros(3)),
        "too few arrays": lambda file: np.savez(file, **{"settings": rows["settings"]}),
        "nothing": lambda file: None,
    }


@pytest.mark.parametrize("kind", hostile_files(None))
def test_what_is_no_history_is_refused_by_name_and_not_executed(kind, tmp_path):
    path, trace = tmp_path / "history.npz", tmp_path / "executed"
    with open(path, "wb") as file:
        hostile_files(trace)[kind](file)
    with pytest.raises(ValueError, match=r"history\.npz is not a history"):
        History.load(path)
    assert not trace.exists()


def test_a_truncated_file_is_refused_and_a_missing_one_is_the_usual_error(tmp_path):
    path = tmp_path / "history.npz"
    history_of(noise(3, 4)).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a history"):
            History.load(path)
    with pytest.raises(FileNotFoundError):
        History.load(tmp_path / "none.npz")
