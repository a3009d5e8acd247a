"""Figures: what they show is what the history holds, and drawing disturbs nothing."""

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import generator_states, run, tiny_vae

import vae_helpers as lab

mpl.use("Agg")


def history_of(epochs=8, n=200, last=-500.0, gap=0.0, noise=20.0, first=100.0):
    """Curves that come down to ``last``, the test one ``gap`` above the other."""
    rng = np.random.default_rng(0)
    history = lab.History()
    for epoch in range(epochs + 1):
        level = last + (first - last) * np.exp(-epoch)
        rows = torch.from_numpy(level + noise * rng.standard_t(4, (2, n)))
        train = {"train": rows[0], "seconds": 1.0} if epoch else {}
        history = history.extended(test=rows[1] + gap, **train)
    return history


def lines(ax, name):
    """The cloud and the average line of a series."""
    color = {"train": lab.TRAIN_COLOR, "test": lab.TEST_COLOR}[name]
    mine = [line for line in ax.lines if line.get_color() == color]
    return (
        next((line for line in mine if line.get_marker() == "."), None),
        next(line for line in mine if line.get_label() == name),
    )


def texts(ax):
    return [ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)]


# ------------------------------------------------------------------------ learning curve


def test_the_axes_given_are_drawn_on_and_returned():
    figure, ax = lab.new_figure()
    assert lab.plot_learning_curve(history_of(), ax) is ax
    assert lab.plot_learning_curve(history_of()).figure is not figure
    assert not plt.get_fignums()  # nothing is left open to be shown twice


def test_train_averages_stand_at_the_middle_of_their_epoch_and_test_averages_at_its_end():
    history = history_of()
    ax = lab.plot_learning_curve(history)
    for name, epochs, mean in (
        ("train", np.arange(1, 9) - 0.5, history.train_mean),
        ("test", np.arange(9), history.test_mean),
    ):
        _, line = lines(ax, name)
        assert np.array_equal(line.get_xdata(), epochs)
        assert np.array_equal(line.get_ydata(), mean)
        (halo,) = [
            below
            for below in ax.lines
            if below.get_color() == "white" and np.array_equal(below.get_xdata(), epochs)
        ]
        assert halo.get_linewidth() > line.get_linewidth()
        assert halo.get_zorder() < min(lines(ax, n)[1].get_zorder() for n in ("train", "test"))


def test_the_clouds_are_all_points_at_their_epoch_moved_sideways_only():
    history = history_of()
    ax = lab.plot_learning_curve(history)
    for name, rows in (("train", history.train), ("test", history.test)):
        cloud, line = lines(ax, name)
        assert cloud.get_rasterized()
        x, y = (data.reshape(rows.shape) for data in cloud.get_data())
        assert np.array_equal(np.sort(y), np.sort(rows))
        assert np.abs(x - line.get_xdata()[:, None]).max() < 0.25  # the other series' lane begins
    assert lines(lab.plot_learning_curve(history, points=False), "test")[0] is None


def test_a_large_cloud_is_thinned_to_the_same_points_in_each_epoch_and_says_so():
    history = history_of(epochs=2, n=12_000)
    ax = lab.plot_learning_curve(history)
    y = lines(ax, "test")[0].get_ydata().reshape(3, -1)
    assert y.shape == (3, 10_000)
    columns = {tuple(column) for column in history.test.T.tolist()}
    assert {tuple(column) for column in y.T.tolist()} <= columns
    assert "10,000 of 12,000 train and 10,000 of 12,000 test" in ax.get_title(loc="left")


def test_a_history_that_kept_a_part_of_the_points_states_the_size_of_the_data_set(tmp_path):
    history = run(tiny_vae(), torch.randn(1234, 6), test=torch.randn(50, 6), cloud=60)
    history.save(tmp_path / "history.npz")
    for curve in (history, lab.History.load(tmp_path / "history.npz")):
        title = lab.plot_learning_curve(curve).get_title(loc="left")
        assert "60 of 1,234 train and 50 of 50 test" in title


def test_labels_are_right_and_there_is_no_legend():
    ax = lab.plot_learning_curve(history_of())
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel() == "−ELBO (nats per image)"
    assert ax.get_legend() is None
    assert not ax.spines["top"].get_visible()
    assert not ax.spines["right"].get_visible()
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 12, 60])
def test_epochs_have_integer_ticks(epochs):
    ax = lab.plot_learning_curve(history_of(epochs))
    ax.figure.draw_without_rendering()
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert len(labels) >= 2
    assert all(re.fullmatch(r"[−\d]?\d+", label) for label in labels)


@pytest.mark.parametrize(("first", "last"), [(1e6, 100), (700, -800), (3.1, 2.4), (0.3, 0.1)])
def test_ticks_of_the_elbo_are_told_apart_with_true_minus_signs(first, last):
    ax = lab.plot_learning_curve(history_of(first=first, last=last, noise=abs(last) / 30))
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    ticks = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)
    assert not any("-" in tick for tick in ticks)
    assert any(tick.startswith("−") for tick in ticks) == (low < 0 and last < 0)


@pytest.mark.parametrize("gap", [0.0, 1.0, -1.0, 300.0, -300.0])
def test_the_final_values_are_written_at_their_lines_in_their_colours_and_kept_apart(gap):
    history = history_of(gap=gap, noise=5.0)
    ax = lab.plot_learning_curve(history)
    ax.figure.draw_without_rendering()
    boxes = {}
    for name, mean, color in (
        ("train", history.train_mean[-1], lab.TRAIN_COLOR),
        ("test", history.test_mean[-1], lab.TEST_COLOR),
    ):
        (label,) = (text for text in ax.texts if text.get_text().startswith(name))
        assert label.get_text() == f"{name} {mean:.1f}".replace("-", "−")
        assert label.get_color() == color
        box = label.get_window_extent()
        boxes[name] = box
        distance = ax.transData.inverted().transform([(0, (box.y0 + box.y1) / 2)])[0, 1] - mean
        assert abs(distance) < 0.05 * np.diff(ax.get_ylim()).item()
        assert box.x0 >= ax.get_window_extent().x1
        assert box.x1 <= ax.figure.bbox.x1
    upper, lower = sorted(boxes.values(), key=lambda box: -box.y0)
    assert upper.y0 >= lower.y1 - 1  # pixels


def test_the_note_on_the_cloud_stays_within_the_figure_beside_wide_labels():
    ax = lab.plot_learning_curve(history_of(26, 12_000, last=-1100.0, first=3000.0))
    ax.figure.canvas.draw()
    note = ax._left_title.get_window_extent()
    assert ax.figure.bbox.x0 <= note.x0 and note.x1 <= ax.figure.bbox.x1


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_the_share_of_points_beyond_the_axis_is_said_and_right(epochs):
    history = history_of(epochs)
    ax = lab.plot_learning_curve(history)
    low, high = ax.get_ylim()
    values = np.concatenate([history.train.ravel(), history.test.ravel()])
    share = 100 * np.mean((values < low) | (values > high))
    assert share > 0
    (said,) = re.findall(r"([\d.]+) % lie beyond", ax.get_title(loc="left"))
    assert float(said) == pytest.approx(share, rel=0.05)


def test_the_axis_covers_the_averages_from_the_first_epoch_on_and_the_bulk_of_the_last():
    history = history_of()
    low, high = lab.plot_learning_curve(history).get_ylim()
    shown = (history.test[-1] > low) & (history.test[-1] < high)
    assert shown.mean() > 0.99
    assert low < history.test_mean[1:].min()
    assert history.test_mean[1:].max() < high
    assert history.train_mean[1:].max() < high


@pytest.mark.parametrize("epochs", [3, 4, 8])
def test_the_verdict_on_convergence_is_written_into_the_figure(epochs):
    history = history_of(epochs)
    ax = lab.plot_learning_curve(history)
    verdicts = [text for text in texts(ax) if "per epoch" in text]
    if epochs < 4:
        assert not verdicts
    else:
        found = history.convergence()
        assert verdicts[0].startswith(found.verdict)
        assert f"{-found.improvement:.2f}".replace("-", "−") in verdicts[0]
        (mark,) = (line for line in ax.lines if line.get_marker() == "o")
        assert mark.get_xydata().tolist() == [[found.best_epoch, history.test_mean.min()]]


def test_an_empty_history_is_refused():
    for history in (lab.History(), lab.History().extended(test=torch.ones(3))):
        with pytest.raises(ValueError, match="no finished epoch"):
            lab.plot_learning_curve(history)


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_point_and_a_curve_without_spread_are_drawn(n):
    for noise in (1.0, 0.0):
        ax = lab.plot_learning_curve(history_of(n=n, noise=noise))
        ax.figure.draw_without_rendering()
    flat = lab.plot_learning_curve(history_of(n=n, noise=0.0, first=-500.0))
    flat.figure.draw_without_rendering()
    assert flat.get_ylim()[0] < -500 < flat.get_ylim()[1]


# ------------------------------------------------------------------------- other figures

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
UNITS = lab.LatentUnits(
    torch.zeros(9, 3), torch.tensor([0.5, 0.0, 0.02]), torch.tensor([1, 0, 2.0])
)


PLANE = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
MODEL = tiny_vae((1, 8, 8))

FIGURES = {
    "learning curve": lambda: lab.plot_learning_curve(history_of()).figure,
    "images": lambda: lab.plot_images({"data": IMAGES, "fewer": IMAGES[:2]}),
    "captions": lambda: lab.plot_images({"a": IMAGES[:2]}, {"a": ["one", "two"]}),
    "colour": lambda: lab.plot_images({"a": IMAGES.expand(-1, 3, -1, -1)}),
    "latents": lambda: lab.plot_latents(PLANE, torch.arange(50) % 12).figure,
    "units": lambda: lab.plot_units(UNITS).figure,
    "manifold": lambda: lab.plot_manifold(MODEL, side=5).figure,
    "rate–distortion": lambda: (
        lab.plot_rate_distortion({1.0: (20.0, 70.0), 0.1: (60.0, 50.0), 10.0: (3.0, 150.0)}).figure
    ),
}


def test_every_plot_of_the_module_is_among_the_figures_tested():
    plots = {name for name in vars(lab) if name.startswith("plot_")}
    used = {name for make in FIGURES.values() for name in make.__code__.co_names}
    assert plots <= used


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_drawn_twice_is_the_same_file_and_disturbs_no_generator(name, tmp_path):
    contents, before = [], generator_states()
    for _ in range(2):
        lab.save_figure(FIGURES[name](), "it", alt="a picture")
        files = sorted((tmp_path / "figures").iterdir())
        contents.append([path.read_bytes() for path in files])
    assert [path.name for path in files] == ["it.png", "it.svg"]
    assert contents[0] == contents[1]
    assert generator_states() == before
    assert not plt.get_fignums()


def test_a_saved_figure_is_png_and_svg_and_carries_its_alternative_text(tmp_path):
    shown = lab.save_figure(FIGURES["units"](), "units", alt="KL per unit")
    assert (tmp_path / "figures" / "units.svg").read_text().count("<svg") == 1
    png, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "KL per unit"
    assert set(png) == {"image/png"}


def test_images_stand_in_rows_with_names_and_captions():
    figure = lab.plot_images(
        {"data": IMAGES, "fewer": IMAGES[:2]}, {"data": "abcde", "fewer": "fg"}
    )
    axes = figure.axes
    assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == ["data", "fewer"]
    assert "".join(ax.get_xlabel() for ax in axes) == "abcdefg"
    drawn = [ax.images[0].get_array() for ax in axes if ax.images]
    assert len(drawn) == 7
    assert np.allclose(drawn[3], IMAGES[3, 0])


def test_units_are_sorted_and_counted():
    ax = lab.plot_units(UNITS)
    assert [bar.get_height() for bar in ax.patches] == [2.0, 1.0, 0.0]
    assert ax.get_title(loc="left") == "2 of 3 units are active, 3.0 nats in all"


def test_the_manifold_has_its_first_axis_to_the_right_and_its_second_upwards():
    class Coordinates(torch.nn.Module):
        """A decoder whose picture shows z itself: z₁ in its left pixel, z₂ in its right."""

        def forward(self, z):
            return torch.distributions.Normal(z.view(-1, 1, 1, 2), 1.0)

    vae = tiny_vae((1, 8, 8))
    vae.decoder = Coordinates()
    ax = lab.plot_manifold(vae, side=3)
    (image,) = ax.images
    shown = np.asarray(image.get_array())
    assert shown[:, 0::2].tolist() == [[-2.5, 0, 2.5]] * 3  # along a row z₁ grows
    assert shown[:, 1::2].tolist() == [[2.5] * 3, [0] * 3, [-2.5] * 3]  # down the rows z₂ falls
    left, right, bottom, top = image.get_extent()
    # The centre of the outermost tiles is at ±2.5.
    assert [left + (right - left) / 6, top - (top - bottom) / 6] == pytest.approx([-2.5, 2.5])


def test_rate_and_distortion_are_marked_by_beta():
    points = {1.0: (20.0, 70.0), 0.1: (60.0, 50.0), 10.0: (3.0, 150.0)}
    ax = lab.plot_rate_distortion(points)
    (curve,) = (line for line in ax.lines if line.get_marker() == "o")
    assert curve.get_xydata().tolist() == [[60, 50], [20, 70], [3, 150]]
    assert {"β = 0.1", "β = 1", "β = 10", "−ELBO = 90"} <= {text.get_text() for text in ax.texts}
    low, high = ax.get_ylim()
    assert low < 50 < 150 < high
