"""The history: what it holds, its file, and the verdict on convergence."""

import math
import pickle

import numpy as np
import pytest
import torch
from conftest import Executed, run, tiny_vae

import vae_helpers as lab


def history_of(test, train=None):
    """A history whose rows are given, as ``fit`` builds it."""
    history = lab.History().extended(test=torch.as_tensor(test[0]))
    rows = test[1:] if train is None else train
    for train_row, test_row in zip(rows, test[1:], strict=True):
        history = history.extended(
            seconds=0.5, train=torch.as_tensor(train_row), test=torch.as_tensor(test_row)
        )
    return history


def curves(slopes, start=0, epochs=20, n=400, level=100.0, noise=0.0):
    """Test rows of n points that change by their own slopes from epoch ``start`` on."""
    rng = np.random.default_rng(0)
    offset = rng.normal(level, 20, n)
    time = np.maximum(np.arange(epochs + 1)[:, None], start)
    return offset + time * np.broadcast_to(slopes, n) + noise * rng.normal(size=(epochs + 1, n))


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


def test_extending_leaves_the_history_before_as_it_was():
    first = history_of(np.zeros((2, 3)))
    second = first.extended(test=torch.ones(3))
    assert (len(first.test), len(second.test)) == (2, 3)


@pytest.mark.parametrize(("cloud", "kept"), [(7, 7), (1, 1), (100, 100), (1000, 100), (None, 100)])
def test_a_thinned_cloud_keeps_one_sample_of_points_and_the_averages_of_all(cloud, kept):
    places = torch.arange(100.0)  # each point's value tells its place, and epochs apart
    history = lab.History()
    for epoch in range(4):
        history = history.extended(cloud, test=places + 1000 * epoch)
    assert history.test.shape == (4, kept)
    chosen = history.test[0]
    assert len(set(chosen.tolist())) == kept
    assert set(chosen.tolist()) <= set(places.tolist())
    assert np.array_equal(history.test - history.test[0], [[1000 * e] * kept for e in range(4)])
    assert np.allclose(history.test_mean, 49.5 + 1000 * np.arange(4))
    assert np.allclose(history.test_se, np.std(np.arange(100), ddof=1) / 10)
    assert (history.train_points, history.test_points) == (0, 100)


def test_training_with_a_thinned_cloud_gives_the_averages_of_the_whole():
    data = torch.randn(30, 6)
    torch.manual_seed(0)
    whole, thin = (run(tiny_vae_again(), data, epochs=2, cloud=cloud) for cloud in (None, 5))
    assert (thin.train.shape, thin.test.shape) == ((2, 5), (3, 5))
    for name in ("train_mean", "train_se", "test_mean", "test_se"):
        assert np.array_equal(getattr(whole, name), getattr(thin, name))
    assert np.isin(thin.train, whole.train).all()


def tiny_vae_again():
    torch.manual_seed(0)
    return tiny_vae()


def test_its_line_tells_epochs_time_and_both_curves():
    history = history_of(np.full((3, 4), -12.25), np.full((2, 4), -13.75))
    expected = "2 epochs in 1 s: −ELBO train −13.75 ± 0.00, test −12.25 ± 0.00 nats per data point"
    assert repr(history) == expected
    assert repr(lab.History()) == "History of 0 epochs"


# -------------------------------------------------------------------------------- its file


@pytest.mark.parametrize(
    "history", [lab.History(), history_of(curves(-1.0))], ids=["empty", "full"]
)
def test_what_is_saved_is_loaded_again(history, tmp_path):
    path = tmp_path / "a run"
    history.save(path)
    loaded = lab.History.load(path)
    for name, value in vars(history).items():
        assert np.array_equal(getattr(loaded, name), value)
        assert np.asarray(getattr(loaded, name)).dtype == np.asarray(value).dtype
    assert repr(loaded) == repr(history)


def hostile_files(trace):
    pickled = np.array([Executed(trace)], dtype=object)
    rows = vars(history_of(curves(-1.0)))
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
    history_of(curves(-1.0)).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a history"):
            lab.History.load(path)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        lab.History.load(tmp_path / "none.npz")


# --------------------------------------------------------------------------- convergence


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_fewer_than_four_epochs_say_nothing_of_convergence(epochs):
    history = history_of(np.zeros((epochs + 1, 5)))
    with pytest.raises(ValueError, match=f"{epochs} epochs"):
        history.convergence()


def test_one_test_point_says_nothing_of_convergence():
    with pytest.raises(ValueError, match="1 test points"):
        history_of(np.zeros((9, 1))).convergence()


@pytest.mark.parametrize(
    ("epochs", "first"), [(4, 2), (5, 3), (8, 6), (9, 6), (20, 15), (60, 45), (61, 45)]
)
def test_the_verdict_is_on_the_last_quarter(epochs, first):
    # Until then every point falls by 10 nats an epoch, afterwards by 0.25.
    time = np.arange(epochs + 1)[:, None]
    rows = 100 - 10.0 * np.minimum(time, first) - 0.25 * np.maximum(time - first, 0)
    found = history_of(rows + np.linspace(-1, 1, 50)).convergence()
    assert (found.first_epoch, found.last_epoch) == (first, epochs)
    assert found.improvement == pytest.approx(0.25, rel=1e-4)


def test_improvement_and_its_error_are_those_of_the_points_own_slopes():
    slopes = np.random.default_rng(3).normal(-0.4, 0.2, 400)
    found = history_of(curves(slopes, noise=0.5)).convergence()
    rows = history_of(curves(slopes, noise=0.5)).test[15:].astype(float)
    fitted = -np.polyfit(np.arange(15, 21), rows, 1)[0]
    assert found.improvement == pytest.approx(fitted.mean(), rel=1e-6)
    assert found.improvement_se == pytest.approx(fitted.std() / 20, rel=1e-6)
    assert abs(found.improvement - 0.4) < 5 * found.improvement_se


@pytest.mark.parametrize(
    ("slope", "spread", "verdict"),
    [
        # Points vary by 20 nats and there are 400: the test average is known to ± 1 nat.
        (-3.0, 0.1, "still improving"),
        (-1.5, 0.1, "still improving"),
        (-0.5, 0.1, "converged"),
        (0.0, 0.1, "converged"),
        (0.005, 0.1, "converged"),  # risen by one standard error of the slope, 0.1/20
        (0.02, 0.1, "past its best"),  # by four
        (3.0, 0.1, "past its best"),
        (3.0, 60.0, "converged"),  # one standard error again
    ],
)
def test_every_verdict_follows_from_slope_and_errors(slope, spread, verdict):
    # Slopes with exactly this average and spread, half of the points above and half below.
    slopes = slope + spread * np.repeat([1.0, -1.0], 200)
    offsets = 20 * np.tile([1.0, -1.0], 200) + 100
    rows = offsets + (np.arange(21)[:, None] - 20) * slopes
    found = history_of(rows).convergence()
    assert found.verdict == verdict
    assert repr(found).startswith(verdict)
    assert found.improvement == pytest.approx(-slope, abs=1e-4)
    assert found.test_se == pytest.approx(1.0, rel=0.01)


def test_the_other_numbers_are_gap_and_best_epoch():
    falls, rises = np.arange(10, 4, -1.0), np.arange(5.0, 8.0)
    test = np.concatenate([falls, rises])[:, None] + np.linspace(-1, 1, 21)
    train = np.linspace(9, 2, 8)[:, None] + np.linspace(-2, 2, 21)
    found = history_of(test, train).convergence()
    error = np.linspace(-1, 1, 21).std(ddof=1) / math.sqrt(21)
    assert found.gap == pytest.approx(7 - 2)
    assert found.gap_se == pytest.approx(math.sqrt(5) * error)
    assert found.best_epoch == 5
    assert found.verdict == "past its best"


def test_the_line_on_convergence_has_numbers_units_and_true_minus_signs():
    line = repr(history_of(curves(0.5)).convergence())
    assert "over epochs 15–20" in line
    assert "−0.500 ± 0.000 nats per epoch" in line
    assert "best at epoch 0" in line
    assert "-" not in line


# ----------------------------------------------------------------- what belongs to curves


@pytest.mark.parametrize(
    ("nats", "dims", "levels", "bits"),
    [
        (math.log(2), 1, 1, 1.0),  # a fair coin
        (28 * 28 * math.log(256), 784, 1, 8.0),  # uniform over 256 levels, as a mass
        (0.0, 784, 256, 8.0),  # and as a density on [0, 1]
        (-784 * math.log(256), 784, 256, 0.0),  # a density of 256 on one bin: certainty
    ],
)
def test_bits_per_dim(nats, dims, levels, bits):
    assert lab.bits_per_dim(nats, dims, levels) == pytest.approx(bits)


def test_latent_units_know_which_of_them_vary_with_the_data(linear):
    x = linear.data(3000)
    units = lab.latent_units(linear.vae(), x)
    mean = (x.numpy() - linear.b) @ linear.gain.T
    assert np.allclose(units.mean, mean)
    assert np.allclose(units.variance, mean.var(0, ddof=1))
    kl = 0.5 * (mean**2 + linear.variance - np.log(linear.variance) - 1)
    assert np.allclose(units.kl, kl.mean(0))
    assert units.active.tolist() == [True, True]


def test_latent_units_warn_of_posterior_collapse():
    vae = tiny_vae(latents=3)
    with torch.no_grad():
        vae.encoder.net[-1].weight[1:] = 0  # one mean of three still varies
        vae.encoder.net[-1].weight[0] *= 10
    with pytest.warns(UserWarning, match="posterior collapse: 2 of 3"):
        units = lab.latent_units(vae, torch.randn(200, 6))
    assert units.active.tolist() == [True, False, False]
