"""The learning curve: what is drawn is what the history holds, and nothing is left out unsaid."""

import itertools
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.transforms import Bbox

from vae_kit.convergence import convergence
from vae_kit.displays import true_minus
from vae_kit.history import History
from vae_kit.learning_curve import axis_limits, plot_learning_curve
from vae_kit.settings import Settings
from vae_kit.style import TEST_COLOR, TRAIN_COLOR

mpl.use("Agg")


def history_of(test, train=None, end=None, keep_points=None, epochs=None):
    """A history of these rows of −ELBO, test ``(epochs + 1, n)`` and train ``(epochs, n)``."""
    test = torch.as_tensor(np.asarray(test), dtype=torch.float64)
    train = test[1:] if train is None else torch.as_tensor(np.asarray(train), dtype=torch.float64)
    settings = Settings(epochs=epochs or len(train), keep_points=keep_points)
    history = History(settings, {}, train.shape[1], test.shape[1])
    history.add_test(test[0], kl=1.0)
    for k, rows in enumerate(zip(train, test[1:], strict=True)):
        rate = 1e-3 if k < 0.75 * settings.epochs else 2e-4
        history.add_epoch(*rows, seconds=0.5, lr=rate, clipped=0, kl=10.0 + k)
    if len(train) == settings.epochs:
        last = train[-1] if end is None else torch.as_tensor(end, dtype=torch.float64)
        history.train_end.append(last)
    return history


def falling(epochs=8, n=200, last=-500.0, gap=0.0, noise=20.0, first=100.0, **given):
    """Curves that come down to ``last``, the test one ``gap`` above the other."""
    rng = np.random.default_rng(0)
    levels = last + (first - last) * np.exp(-10 * np.arange(epochs + 1) / (epochs + 2))
    pairs = np.stack([level + noise * rng.standard_t(4, (2, n)) for level in levels])
    train, test = pairs[1:, 0], pairs[:, 1] + gap
    return history_of(test, train, train[-1] - 0.1 * noise, **given)


def verdict_of(test=(-480.0, -498.0, -500.0), train=(-480.0, -498.0, -500.0), n=300, tolerance=10):
    """Runs of 4, 8, 16 epochs that end at these averages, and what they say."""
    rng = np.random.default_rng(1)
    own, noise = 40 * rng.standard_normal((2, n)), 4 * rng.standard_normal((3, 2, n))
    runs = []
    for k, ends in enumerate(zip(train, test, strict=True)):
        rows = np.array(ends)[:, None] + own - own.mean(1)[:, None] + noise[k]
        rows -= rows.mean(1)[:, None] - np.array(ends)[:, None]
        steps = 300 * np.exp(-3 * np.arange(4 * 2**k + 1))[:, None]
        runs.append(history_of(rows[1] + steps, (rows[0] + steps)[1:], rows[0]))
    return convergence(*runs, tolerance=tolerance)


OVERFITTING = {"test": (-470, -500, -498), "train": (-490, -540, -600)}
MEMORISING = {"test": (-430, -442, -348), "train": (-504, -631, -736)}
IMPROVING = {"test": (-400, -450, -500), "train": (-400, -450, -500)}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def panels(figure):
    """The axes by what stands in them; six with a verdict."""
    names = ("train", "test", "last", "train ends", "test ends", "changes")
    return dict(zip(names, figure.axes, strict=False))


def dots(ax):
    (cloud,) = (line for line in ax.lines if line.get_marker() == ".")
    return cloud


def shown_texts(figure):
    """Every text that a reader sees, drawn."""
    figure.canvas.draw()
    off = set()
    for ax in figure.findobj(mpl.axes.Axes):  # insets, too
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            off |= set() if ax.axison else set(axis.findobj(mpl.text.Text))
            for tick in axis.get_major_ticks():  # the labels beyond the axis are not drawn
                off |= set() if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    found = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip()]
    seen = [text for text in found if text.get_visible() and text not in off]
    return [text for text in seen if text.get_window_extent().width > 0]


def assert_legible(figure):
    """No letter is smaller than 13 pixels, none leaves the paper, and no two words overlap."""
    boxes = {text: text.get_window_extent() for text in shown_texts(figure)}
    paper = figure.bbox.padded(1)
    for text, box in boxes.items():
        assert text.get_fontsize() * 100 / 72 >= 13, text.get_text()
        assert paper.containsx(box.x0) and paper.containsx(box.x1), text.get_text()
        assert paper.containsy(box.y0) and paper.containsy(box.y1), text.get_text()
    for one, other in itertools.combinations(boxes, 2):
        both = Bbox.intersection(boxes[one], boxes[other])
        # The subtitle's box begins where the title and its own empty lines stand.
        apart = one.get_text()[0] == "\n" or both is None or min(both.width, both.height) < 3
        assert apart, f"{one.get_text()!r} over {other.get_text()!r}"


def words(figure):
    return " ".join(text.get_text() for text in shown_texts(figure)).replace("\n", " ")


def as_number(text):
    return float(re.search(r"[−+]?[\d,.]+\d|\d", text)[0].replace("−", "-").replace(",", ""))


def test_each_average_stands_in_both_panels_where_it_belongs():
    history = falling()
    axes = panels(plot_learning_curve(history))
    curves = {"train": (TRAIN_COLOR, np.arange(1, 9) - 0.5, history.train.mean),
              "test": (TEST_COLOR, np.arange(9), history.test.mean)}  # fmt: skip
    for panel in ("train", "test"):
        for name, (color, epochs, mean) in curves.items():
            (line,) = (line for line in axes[panel].lines if line.get_label() == name)
            assert line.get_color() == color and (line.get_linewidth() > 2) == (name == panel)
            assert line.get_xdata().tolist() == epochs.tolist()
            assert line.get_ydata().tolist() == mean.tolist()
            assert axes[panel].lines.index(dots(axes[panel])) < axes[panel].lines.index(line)
    (ring,) = (line for line in axes["train"].lines if line.get_marker() == "o")
    assert ring.get_xydata().tolist() == [[8, history.train_end.mean[0]]]


@pytest.mark.parametrize(("epochs", "n"), [(1, 900), (8, 2000), (90, 300), (3, 1)])
def test_bands_hold_the_middle_of_all_points_and_dots_are_some_moved_sideways(epochs, n):
    history = falling(epochs, n)
    axes = panels(plot_learning_curve(history))
    for name, curve, start in (("train", history.train, 0.5), ("test", history.test, 0)):
        epoch = start + np.arange(len(curve))[:, None]
        for band, levels in zip(axes[name].collections, ((0.05, 0.95), (0.25, 0.75)), strict=True):
            corners = band.get_paths()[0].vertices
            found = [corners[np.isclose(corners[:, 0], e), 1] for e in epoch]
            truth = np.quantile(curve.values.astype(float), levels, axis=1)
            assert np.allclose([(y.min(), y.max()) for y in found], truth.T, rtol=1e-5)
        x, y = (data.reshape(len(curve), -1) for data in dots(axes[name]).get_data())
        assert min(300, len(curve) * n) <= y.size <= 1200
        assert np.abs(x - epoch).max() <= 0.5
        for row, own in zip(y, curve.values, strict=True):
            assert set(row) <= set(own) and len(set(row)) == len(row)


@pytest.mark.parametrize(("epochs", "gap"), [(1, 0), (8, 300), (60, 0)])
def test_the_axis_holds_the_averages_and_the_bulk_and_the_rest_is_counted(epochs, gap):
    history = falling(epochs, gap=gap)
    axes = panels(plot_learning_curve(history))
    low, high = axes["test"].get_ylim()
    assert (low, high) == axes["train"].get_ylim() == axis_limits(history)
    for name, curve, end in (
        ("train", history.train, history.train_end), ("test", history.test, history.test)
    ):  # fmt: skip
        last, later = end.values[-1], curve.mean[max(1, round(epochs / 12)) :]
        assert low < min(curve.mean) and later.max(initial=low) < high
        assert np.mean((last > low) & (last < high)) > 0.96
        outside = 100 * np.mean((curve.values > high) | (curve.values < low))
        said = axes[name].get_title("right")
        assert (as_number(said) if said else 0) == pytest.approx(outside, abs=0.1)
        beyond = dots(axes[name]).get_ydata()
        marks = [line for line in axes[name].lines if line.get_marker() == "|"]
        outside = (beyond > high) | (beyond < low)
        assert sum(len(line.get_xdata()) for line in marks) == outside.sum()


def test_averages_beyond_the_scale_and_points_that_were_not_kept_are_told():
    text = words(plot_learning_curve(falling(40, n=1234, first=4000.0, keep_points=60)))
    assert "60 train and 60 test of 1,234 train and 1,234 test data points" in text
    assert re.search(r"scale: train in epoch 1, [\d,.]+; test before training, [\d,.]+", text)
    assert "scale" not in words(plot_learning_curve(falling(2, first=-499.0)))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("gap", [0.0, -300.0])
def test_the_last_averages_are_written_beside_their_lines_and_nothing_covers_them(gap, narrow):
    history = falling(gap=gap, noise=5.0)
    figure = plot_learning_curve(history, narrow=narrow)
    drawn, axes = shown_texts(figure), panels(figure)
    levels = {TRAIN_COLOR: history.train_end.mean[-1], TEST_COLOR: history.test.mean[-1]}
    for name in ("train", "test"):
        labels = [text for text in drawn if text in axes[name].texts]
        labels = [text for text in labels if text.get_color() in levels]
        for label in labels:
            value = levels[label.get_color()]
            assert as_number(label.get_text()) == pytest.approx(value, abs=0.5)
        first, second = (label.get_window_extent() for label in labels)
        assert min(first.x0, second.x0) > axes[name].get_window_extent().x1
        assert not first.overlaps(second)
        others = [ax.get_window_extent() for ax in figure.axes if ax is not axes[name]]
        assert not any(first.overlaps(other) for other in others)


@pytest.mark.parametrize(
    ("make", "title"),
    [
        (verdict_of, "Train and test end together: "),
        (
            lambda: verdict_of(**OVERFITTING),
            "Train still improves, test no longer: keep the run of 8",
        ),
        (lambda: verdict_of(**IMPROVING), "Test still falls: 16 epochs are not enough"),
        (lambda: verdict_of(n=3), "These runs cannot tell: too few"),
        (lambda: history_of(np.full((8, 9), 0.5), epochs=32), "After epoch 7: train at 0.5"),
    ],
)
def test_the_title_is_the_finding_and_the_subtitle_tells_what_is_better(make, title):
    run = make()
    for narrow in (False, True):
        figure = plot_learning_curve(run, narrow=narrow)
        said = next(text for text in figure.texts if text.get_fontweight() == "bold").get_text()
        assert said.replace("\n", " ").startswith(title)
        assert figure.get_suptitle().endswith("−ELBO in nats per data point, lower is better")
        assert_legible(figure)
    if isinstance(run, History):
        assert not re.search("converge|improving|overfit", (words(figure) + figure.alt).lower())
    else:
        assert true_minus(repr(run)) in figure.alt


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", [{}, OVERFITTING, IMPROVING])
def test_the_ends_of_the_runs_stand_by_their_length_and_the_tolerance_can_be_seen(kind, narrow):
    verdict = verdict_of(**kind)
    figure = plot_learning_curve(verdict, narrow=narrow)
    drawn, axes = shown_texts(figure), panels(figure)
    limits = [axes[name].get_ylim() for name in ("train ends", "test ends")]
    for name, ends in (("train", verdict.train_ends), ("test", verdict.test_ends)):
        ax, values = axes[f"{name} ends"], [end.value for end in ends]
        (line,) = (line for line in ax.lines if line.get_marker() == "o")
        assert line.get_ydata().tolist() == values
        lengths = [f"{n} (kept)" if n == verdict.keep else f"{n}" for n in (4, 8, 16)]
        assert [text.get_text() for text in ax.get_xticklabels()] == lengths
        corners = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert [corners.min(), corners.max()] == [values[1] - 10, values[1] + 10]
        assert np.ptp(ax.transData.transform([(0, 0), (0, 20)])[:, 1]) >= (3 if narrow else 5)
        low, high = ax.get_ylim()
        assert low < min(values[1:]) and max(values[1:]) < high
        texts = [text.get_text() for text in ax.texts]
        assert ax.get_title("left").endswith("tolerance ±10")
        found = [as_number(text) for text in texts if re.match(r"−\d{3}", text)]
        assert all(min(np.abs(np.array(found) - value)) <= 0.51 for value in values)
        ticks = [text for text in ax.get_yticklabels() if text in drawn]
        assert bool(ticks) == (narrow or name == "train" or limits[0] != limits[1])
    assert limits[0] == limits[1]


@pytest.mark.parametrize("narrow", [False, True])
def test_no_words_overlap_where_test_rises_and_a_few_points_lie_beyond(narrow):
    verdict = verdict_of(**MEMORISING, tolerance=7.84)
    verdict.histories[-1].train.values[2, 0] = 5000.0
    figure = plot_learning_curve(verdict, narrow=narrow)
    assert "< 0.1 % lie beyond" in words(figure)
    assert_legible(figure)


def test_ends_that_would_hide_the_tolerance_have_a_scale_of_their_own_or_stand_at_the_edge():
    far = (2000.0, -498.0, -500.0)
    figure = plot_learning_curve(verdict_of(test=far, train=(-480, -498, -900)))
    drawn, axes = shown_texts(figure), panels(figure)
    assert any(text.get_text() == "2,000 ↑" for text in axes["test ends"].texts)
    assert np.ptp(axes["test ends"].get_ylim()) < 100 < np.ptp(axes["train ends"].get_ylim())
    assert any(text in drawn for text in axes["test ends"].get_yticklabels())
    assert_legible(figure)


def test_what_the_last_doubling_did_to_each_test_point_is_drawn_and_told():
    verdict = verdict_of()
    before, after = (run.test.values[-1].astype(float) for run in verdict.histories[-2:])
    change = after - before
    ax = panels(plot_learning_curve(verdict))["changes"]
    for patch, text, found in zip(
        ax.patches, ax.texts[0].get_text().split("\n"), (change[change < 0], change[change > 0]),
        strict=True,
    ):  # fmt: skip
        counts, edges, _ = patch.get_data()
        inside = found[(found > edges[0]) & (found < edges[-1])]
        assert 0 in edges and counts.sum() == len(found)
        assert np.abs(counts - np.histogram(inside, edges)[0])[1:-1].max() == 0
        share, by = re.findall(r"[\d.]+", text)
        assert int(share) == round(100 * len(found) / len(change))
        assert float(by) == pytest.approx(abs(found.mean()), abs=0.051)


def inked(n):
    """Images told apart: the i-th has a level of its own."""
    return torch.linspace(0.2, 1, n).view(n, 1, 1, 1).expand(n, 1, 4, 4)


@pytest.mark.parametrize(("n", "narrow"), [(1, False), (5, True), (300, False), (300, True)])
def test_images_stand_at_the_height_of_their_value_and_their_leaders_are_level(n, narrow):
    history = falling(n=n, keep_points=200)
    figure = plot_learning_curve(history, inked(n), narrow=narrow)
    ax, values = panels(figure)["last"], history.test.values[-1]
    low, high = ax.get_ylim()
    insets = ax.child_axes
    assert 1 <= len(insets) <= 8
    assert_legible(figure)
    for inset, text in zip(insets, ax.texts[2:], strict=True):  # after "train" and "test"
        shown = 1 - np.asarray(inset.images[0].get_array())[1, 1, 0]
        point = int(np.abs(inked(n)[:, 0, 0, 0].numpy() - shown).argmin())
        value = values[history.test.index.tolist().index(point)]
        assert as_number(text.get_text()) == pytest.approx(value, abs=0.51)
        if low < value < high:
            height = ax.transData.transform((0, value))[1]
            middle = sum(inset.get_window_extent().intervaly) / 2
            assert middle == pytest.approx(height, abs=0.06 * ax.bbox.height)
    assert all(np.ptp(line.get_ydata()) == 0 for line in ax.lines)
    named = {
        text.get_text().partition("\n")[2]: as_number(text.get_text()) for text in ax.texts[2:]
    }
    if n == 300:
        ends = {"hardest": values.max(), "easiest": values.min(), "typical": np.median(values)}
        assert {name: named[name] for name in ends} == pytest.approx(ends, abs=0.51)
    boxes = [inset.get_window_extent() for inset in insets]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for patch, end in zip(ax.patches, (history.train_end, history.test), strict=True):
        counts, edges, _ = patch.get_data()
        truth = np.histogram(end.values[-1], edges)[0]
        assert np.allclose(counts / counts.max(), truth / truth.max())


@pytest.mark.parametrize(
    "rows", [np.full((3, 5), -7.25), np.zeros((2, 1)), np.array([[1e12, 3e12], [4e8, -2e9]])]
)
def test_constant_single_and_enormous_values_are_drawn(rows):
    figure = plot_learning_curve(history_of(rows))
    assert_legible(figure)
    assert_legible(figure.narrow())


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no finished epoch"):
        plot_learning_curve(history_of(np.zeros((1, 3)), epochs=2))
    for images in (torch.zeros(9, 1, 4, 4), torch.zeros(200, 4, 4), torch.zeros(200, 2, 4, 4)):
        with pytest.raises(ValueError, match="images"):
            plot_learning_curve(falling(), images)
