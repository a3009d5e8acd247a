"""The learning curve: what is drawn is what the history holds, and nothing is left out unsaid."""

import re
import textwrap

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import vae_helpers as lab
from tools import history_of
from vae_canvas import NARROW, TEST_COLOR, TRAIN_COLOR, WIDTH, true_minus
from vae_convergence import convergence
from vae_learning_curve import plot_learning_curve

mpl.use("Agg")


def falling(epochs=8, n=200, last=-500.0, gap=0.0, noise=20.0, first=100.0, keep_points=None):
    """Curves that come down to ``last``, the test one ``gap`` above the other."""
    rng = np.random.default_rng(0)
    levels = last + (first - last) * np.exp(-10 * np.arange(epochs + 1) / (epochs + 2))
    pairs = np.stack([level + noise * rng.standard_t(4, (2, n)) for level in levels])
    return history_of(pairs[:, 1] + gap, pairs[1:, 0], keep_points)


def verdict_of(ends=(-480.0, -495.0, -500.0), epochs=4, n=200):
    """Runs of doubled length and what they say."""
    runs = [falling(epochs * 2**k, n, last) for k, last in enumerate(ends)]
    return convergence(*runs, tolerance=10.0)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def panels(figure):
    """The axes by what stands in them."""
    return dict(zip(("train", "test", "last", "gap", "rate", "note"), figure.axes[:6], strict=True))


def average(ax, name):
    (line,) = (line for line in ax.lines if line.get_label() == name)
    return line


def dots(ax):
    (cloud,) = (line for line in ax.lines if line.get_marker() == ".")
    return cloud


def shown_texts(figure):
    """Every text that a reader sees, drawn."""
    figure.canvas.draw()
    found = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip()]
    off = {id(part) for ax in figure.axes if not ax.axison for part in ax.xaxis.findobj()}
    off |= {id(part) for ax in figure.axes if not ax.axison for part in ax.yaxis.findobj()}
    for ax in figure.axes:  # the labels of ticks beyond the axis are not drawn
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                inside = min(limits) <= tick.get_loc() <= max(limits)
                off |= set() if inside else {id(tick.label1), id(tick.label2)}
    seen = [text for text in found if text.get_visible() and id(text) not in off]
    return [text for text in seen if text.get_window_extent().width > 0]


def words(figure):
    return " ".join(text.get_text() for text in shown_texts(figure)).replace("\n", " ")


# ------------------------------------------------------------------- averages, bands and dots


def test_train_averages_stand_at_the_middle_of_their_epoch_and_test_averages_at_its_end():
    history = falling()
    axes = panels(plot_learning_curve(history))
    for name, color, epochs, mean in (
        ("train", TRAIN_COLOR, np.arange(1, 9) - 0.5, history.train_mean),
        ("test", TEST_COLOR, np.arange(9), history.test_mean),
    ):
        line = average(axes[name], name)
        assert line.get_color() == color
        assert line.get_xdata().tolist() == epochs.tolist()
        assert line.get_ydata().tolist() == mean.tolist()
        (halo,) = (other for other in axes[name].lines if other.get_color() == "white")
        assert halo.get_xydata().tolist() == line.get_xydata().tolist()
        assert halo.get_linewidth() > line.get_linewidth()
        assert axes[name].lines.index(dots(axes[name])) < axes[name].lines.index(halo)


@pytest.mark.parametrize("epochs", [1, 8])
def test_the_bands_are_the_middle_half_and_nine_tenths_of_every_point(epochs):
    history = falling(epochs)
    axes = panels(plot_learning_curve(history))
    for name, x, rows in (
        ("train", np.arange(epochs) + 0.5, history.train),
        ("test", np.arange(epochs + 1.0), history.test),
    ):
        wide, narrow = (band.get_paths()[0].vertices for band in axes[name].collections)
        for corners, levels in ((wide, (0.05, 0.95)), (narrow, (0.25, 0.75))):
            for epoch, row in zip(x, rows, strict=True):
                found = corners[np.isclose(corners[:, 0], epoch), 1]
                truth = np.quantile(row.astype(float), levels)
                assert np.allclose([found.min(), found.max()], truth, rtol=1e-5)
        assert wide[:, 0].max() - wide[:, 0].min() == pytest.approx(len(rows))


@pytest.mark.parametrize(("epochs", "n", "count"), [(8, 200, 200), (8, 2000, 875), (90, 300, 100)])
def test_the_dots_are_the_same_points_in_each_epoch_moved_sideways_only(epochs, n, count):
    history = falling(epochs, n)
    figure = plot_learning_curve(history)
    for name, rows, start in (("train", history.train, 0.5), ("test", history.test, 0)):
        cloud = dots(panels(figure)[name])
        assert cloud.get_rasterized()
        x, y = (data.reshape(len(rows), count) for data in cloud.get_data())
        points = {tuple(column) for column in rows.T.tolist()}
        drawn = {tuple(column) for column in y.T.tolist()}
        assert drawn <= points and len(drawn) == count
        first = {tuple(column) for column in rows.T[:count].tolist()}
        assert drawn != first or count == n  # they are chosen at random
        assert np.abs(x - start - np.arange(len(rows))[:, None]).max() <= 0.5
    assert f"Dots: {count:,} of {n:,} train and {count:,} of {n:,} test" in words(figure)


def test_dots_can_be_seen():
    for epochs in (3, 60, 300):
        axes = panels(plot_learning_curve(falling(epochs)))
        for name in ("train", "test"):
            cloud = dots(axes[name])
            assert cloud.get_alpha() * cloud.get_markersize() >= 0.7


def test_a_history_that_kept_a_part_of_the_points_says_so():
    text = words(plot_learning_curve(falling(n=1234, keep_points=60)))
    assert "Dots: 60 of 1,234 train and 60 of 1,234 test" in text
    assert "90 % of the 60 and 60 that were kept" in text
    assert "kept" not in words(plot_learning_curve(falling()))


# ------------------------------------------------------------------ nothing is cut off unsaid


@pytest.mark.parametrize("epochs", [1, 3, 8, 60])
def test_what_lies_beyond_the_axis_is_counted_and_ticked_off(epochs):
    history = falling(epochs)
    axes = panels(plot_learning_curve(history))
    low, high = axes["train"].get_ylim()
    beyond = 0
    for name, rows in (("train", history.train), ("test", history.test)):
        y, said = dots(axes[name]).get_ydata(), axes[name].get_title("right")
        above, below = (line for line in axes[name].lines if line.get_marker() == "|")
        for ticks, edge, these in ((above, 1, y > high), (below, 0, y < low)):
            assert ticks.get_ydata().tolist() == [edge] * int(these.sum())
        outside = (rows > high) | (rows < low)
        beyond += outside.sum()
        if not outside.any():
            assert said == ""
        elif outside.mean() < 0.0005:
            assert said == "<0.1 % off the scale"
        else:
            assert said == f"{100 * outside.mean():.1f} % off the scale"
    assert beyond


@pytest.mark.parametrize("epochs", [1, 3, 8, 60])
@pytest.mark.parametrize("gap", [0, 300])
def test_the_axis_holds_the_averages_but_the_first_few_and_the_bulk_of_the_last_epoch(epochs, gap):
    history = falling(epochs, gap=gap)
    axes = panels(plot_learning_curve(history))
    low, high = axes["test"].get_ylim()
    assert (low, high) == axes["train"].get_ylim() == axes["last"].get_ylim()
    few = max(1, round(epochs / 12))
    for mean, last in (
        (history.train_mean, history.train[-1]),
        (history.test_mean, history.test[-1]),
    ):
        assert low < mean.min() and mean[few:].max(initial=low) < high
        assert np.mean((last > low) & (last < high)) > 0.96
    assert [axes[name].get_xscale() + axes[name].get_yscale() for name in ("train", "test")] == [
        "linearlinear"
    ] * 2


def test_the_values_before_training_and_of_the_first_epoch_are_written_where_they_are_beyond():
    history = falling(40, first=4000.0)
    text = words(plot_learning_curve(history))
    assert f"before training {history.test_mean[0]:,.1f} ↑" in text
    assert f"epoch 1: {history.train_mean[0]:,.1f} ↑" in text
    assert "before training" not in words(plot_learning_curve(falling(1, first=-499.0)))


# --------------------------------------------------------------------- ends, gap, rate, words


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("gap", [0.0, 1.0, -300.0])
def test_the_last_values_are_written_beside_the_ends_of_their_lines(gap, narrow):
    history = falling(gap=gap, noise=5.0)
    figure = plot_learning_curve(history, narrow=narrow)
    drawn = shown_texts(figure)
    order = ("train", "gap", "test", "rate", "last", "note")
    axes = dict(zip(order, figure.axes, strict=True)) if narrow else panels(figure)
    for name, value, color in (
        ("train", history.train_mean[-1], TRAIN_COLOR),
        ("test", history.test_mean[-1], TEST_COLOR),
        ("gap", history.test_mean[-1] - history.train_mean[-1], "#222222"),
    ):
        (label,) = (t for t in drawn if t.get_color() == color and t in axes[name].texts)
        assert float(label.get_text().replace("−", "-")) == pytest.approx(value, abs=0.0051)
        box, panel = label.get_window_extent(), axes[name].get_window_extent()
        height = axes[name].transData.transform((0, value))[1]
        assert box.y0 < height < box.y1
        assert panel.x1 < box.x0 < panel.x1 + 20
        others = [ax.get_window_extent() for ax in figure.axes if ax is not axes[name]]
        assert not any(box.overlaps(other) for other in others)


def test_the_gap_compares_test_and_train_at_the_same_moment():
    # Straight curves with a constant gap: train's averages of half an epoch earlier would show
    # another one, from half a step of the fall.
    epochs, gap = 10, 7.0
    history = lab.History({"epochs": epochs}, 1, 1)
    history.add_test(torch.tensor([100.0 + gap]))
    for k in range(1, epochs + 1):
        rows = 100.0 - 4 * (k - 0.5), 100.0 - 4 * k + gap
        history.add_epoch(*(torch.tensor([row]) for row in rows), 1.0, 1e-3, 0)
    axes = panels(plot_learning_curve(history))
    (line,) = (line for line in axes["gap"].lines if len(line.get_xdata()) == epochs)
    assert line.get_xdata().tolist() == list(range(1, epochs + 1))
    # After its last epoch train has no further average, and the last one counts, as in tables.
    assert line.get_ydata() == pytest.approx([gap] * (epochs - 1) + [gap - 2])
    low, high = axes["gap"].get_ylim()
    assert low < 0 < gap < high < 2 * gap


@pytest.mark.parametrize(
    ("early", "said"), [(-50.0, "at first −50.0 ↓"), (90.0, "at first 90.0 ↑")]
)
def test_a_gap_of_the_first_epochs_beyond_the_axis_is_told(early, said):
    epochs, late = 40, 60.0  # the late gap may be the larger one
    history = lab.History({"epochs": epochs}, 2, 2)
    level = torch.tensor([0.0, 100.0])
    history.add_test(level)
    for k in range(1, epochs + 1):  # train is level; test is off in the first two epochs
        history.add_epoch(level, level + (early if k < 3 else late), 1.0, 1e-3, 0)
    ax = panels(plot_learning_curve(history))["gap"]
    assert ax.get_title("right") == said
    low, high = ax.get_ylim()
    assert not low <= early <= high
    later = falling(epochs, noise=1.0, gap=50.0, first=-500.0)
    assert panels(plot_learning_curve(later))["gap"].get_title("right") == ""


def test_the_learning_rates_of_all_runs_are_drawn():
    found = verdict_of()
    lines = panels(plot_learning_curve(found))["rate"].lines
    for line, run in zip(lines, found.histories, strict=True):
        assert line.get_xdata().tolist() == (np.arange(len(run)) + 0.5).tolist()
        assert line.get_ydata().tolist() == run.lr.tolist()
    assert "learning rate, up to 0.016" in words(plot_learning_curve(found))


def test_images_are_named_only_where_there_are_images():
    history = falling(n=50)
    vectors = plot_learning_curve(history)
    assert panels(vectors)["train"].get_ylabel() == "−ELBO (nats per data point)"
    assert "image" not in words(vectors) + vectors.alt
    pictures = plot_learning_curve(history, torch.zeros(50, 1, 4, 4))
    assert panels(pictures)["train"].get_ylabel() == "−ELBO (nats per image)"
    assert "data point" not in words(pictures) + pictures.alt


def test_there_is_no_legend_and_no_box():
    for ax in plot_learning_curve(falling()).axes:
        assert ax.get_legend() is None
        assert not ax.axison or not (ax.spines.top.get_visible() or ax.spines.right.get_visible())


# ---------------------------------------------------------------------- what a verdict rests on


@pytest.mark.parametrize(("ends", "n"), [((-480.0, -495.0, -500.0), 200), ((-480.0, -495.0), 3)])
def test_a_verdict_stands_above_the_longest_run_word_for_word(ends, n):
    found = verdict_of(ends, n=n)
    for narrow in (False, True):
        figure = plot_learning_curve(found, narrow=narrow)
        answer = figure.texts[-1].get_text()
        reason = " ".join(figure.get_suptitle().split())
        said, own = (re.sub(r"[^\w−.()]+", " ", text).lower() for text in (
            f"{answer} {reason}", true_minus(repr(found))))  # fmt: skip
        assert said == own
        assert figure.texts[-1].get_fontweight() == "bold"
        assert true_minus(repr(found)) in figure.alt
    longest = found.histories[-1]
    line = average(panels(plot_learning_curve(found))["test"], "test")
    assert line.get_ydata().tolist() == longest.test_mean.tolist()


def test_a_single_history_never_says_that_it_converged():
    figure = plot_learning_curve(falling())
    said = (words(figure) + figure.alt).lower()
    assert not re.search("converge|yes|improving|overfit", said)


def test_the_ends_of_the_shorter_runs_are_drawn_and_labelled_in_the_test_panel():
    found = verdict_of()
    figure = plot_learning_curve(found)
    ax = panels(figure)["test"]
    for run in found.histories[:-1]:
        curve = [[epoch, mean] for epoch, mean in enumerate(run.test_mean.tolist())]
        assert curve in [line.get_xydata().tolist() for line in ax.lines]
        ends = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
        assert [[len(run), run.test_mean[-1]]] in ends
        (label,) = (t for t in ax.texts if t.get_text().startswith(f"{len(run)} epochs\n"))
        value = float(label.get_text().partition("\n")[2].replace("−", "-"))
        assert value == pytest.approx(run.test_mean[-1], abs=0.0051)
        assert f"A run of {len(run)} epochs" in figure.alt
    ticks = [text.get_text() for text in panels(figure)["rate"].get_xticklabels()]
    assert ticks == ["0", "4", "8", "16"]


def test_the_verdict_s_intervals_stay_on_one_line():
    found = convergence(*verdict_of().histories, tolerance=1)
    words = repr(found).partition(": ")[2]
    assert any(line.count("(") != line.count(")") for line in textwrap.wrap(words, 49))
    lines = plot_learning_curve(found).narrow().get_suptitle().splitlines()
    assert any("(" in line for line in lines)
    assert all(line.count("(") == line.count(")") for line in lines)


@pytest.mark.parametrize("drawing", [lambda figure: figure, lambda figure: figure.narrow()])
def test_the_labels_of_the_shorter_runs_keep_apart(drawing):
    figure = drawing(plot_learning_curve(verdict_of()))
    figure.canvas.draw()
    labels = [t for ax in figure.axes for t in ax.texts if " epochs\n" in t.get_text()]
    first, second = sorted(tuple(label.get_window_extent().extents) for label in labels)
    letter = labels[0].get_fontsize() * figure.dpi / 72
    assert first[2] + letter < second[0]


# ------------------------------------------------------------------------------ the last epoch


def coded_images(n):
    """Images that show their own number: 256 different ones."""
    return (torch.arange(n) % 256).to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)


@pytest.mark.parametrize("keep_points", [None, 60])
def test_the_images_beside_the_last_epoch_are_those_of_the_values_written_there(keep_points):
    history = falling(n=200, keep_points=keep_points)
    figure = plot_learning_curve(history, coded_images(200))
    ax = panels(figure)["last"]
    shown = [inset.images[0].get_array() for inset in ax.child_axes]
    assert len(shown) == 7
    labels = [text.get_text() for text in ax.texts[1:]]
    last = dict(zip(history.test_index.tolist(), history.test[-1].tolist(), strict=True))
    for picture, label in zip(shown, labels, strict=True):
        point = round(255 * (1 - float(np.mean(picture))))  # dark is high
        assert np.ptp(picture) < 1e-6
        value = float(label.split()[0].replace("−", "-"))
        assert last[point] == pytest.approx(value, abs=0.51)
    named = {label.split()[-1]: float(label.split()[0].replace("−", "-")) for label in labels}
    values = sorted(last.values())
    assert named["hardest"] == pytest.approx(values[-1], abs=0.51)
    assert named["easiest"] == pytest.approx(values[0], abs=0.51)
    below = np.searchsorted(values, named["typical"])
    assert abs(below - len(values) / 2) <= 4
    arrows = [("↑" in label) == (float(label.split()[0].replace("−", "-")) > ax.get_ylim()[1])
              for label in labels]  # fmt: skip
    assert all(arrows)


def test_the_contrast_of_the_images_beside_the_last_epoch_is_not_stretched():
    pale = torch.full((200, 1, 4, 4), 0.4)
    pale[:, :, 0] = 0.5
    figure = plot_learning_curve(falling(n=200), pale)
    insets = panels(figure)["last"].child_axes
    assert len(insets) == 7
    for inset in insets:
        image = inset.images[0]
        seen = image.to_rgba(image.get_array())[..., :3]  # as it will be drawn
        assert np.allclose(seen[0], 0.5, atol=0.01) and np.allclose(seen[1:], 0.6, atol=0.01)


def test_data_points_that_cannot_be_shown_are_named_by_their_values():
    history = falling()
    ax = panels(plot_learning_curve(history))["last"]
    assert not ax.child_axes
    said = [text.get_text().split() for text in ax.texts[1:]]
    assert [label[-1] for label in said] == ["hardest", "typical", "easiest"]


def test_the_distributions_are_those_of_the_last_epoch():
    history = falling(n=5000, gap=60.0)
    ax = panels(plot_learning_curve(history))["last"]
    curves = {line.get_color(): line.get_xydata() for line in ax.lines[:2]}
    areas = []
    for color, values in ((TRAIN_COLOR, history.train[-1]), (TEST_COLOR, history.test[-1])):
        x, y = np.nan_to_num(curves[color]).T
        y = np.linspace(*ax.get_ylim(), len(y))
        areas.append(x.sum())
        assert y[x.argmax()] == pytest.approx(np.median(values), abs=10)
        below = np.cumsum(x) / x.sum()
        for level in (0.25, 0.5, 0.75):
            inside = values[(values > y[0]) & (values < y[-1])]
            assert y[np.searchsorted(below, level)] == pytest.approx(
                np.quantile(inside, level), abs=4
            )
    assert areas[0] == pytest.approx(areas[1], rel=0.03)  # on one scale


# ------------------------------------------------------------------ every history, every width

KINDS = {
    "one epoch": {"epochs": 1},
    "three": {"epochs": 3},
    "three hundred": {"epochs": 300},
    "one point": {"n": 1},
    "constant": {"noise": 0.0, "first": -500.0},
    "zero": {"noise": 0.0, "first": 0.0, "last": 0.0},
    "huge": {"first": 4e9, "last": 1e9, "noise": 1e8, "gap": 1e7},
    "small": {"first": 0.3, "last": 0.1, "noise": 0.01},
    "mixed": {"first": 30.0, "last": -0.5, "noise": 0.6},
    "rising": {"first": -600.0, "last": 80.0, "gap": 30.0},
    "far apart": {"gap": 3000.0},
    "large": {"first": 1e6, "last": 1e4, "noise": 3e3},
}


class Judged:
    """A verdict as long as they come."""

    def __init__(self, histories):
        self.histories = histories

    def __repr__(self):
        return (
            "No, overfitting: doubling to 8 epochs gained -12.345 (-13.456 to -11.234) nats on the "
            "test set, tolerance 0.128; train still gained 10.123 (9.456 to 11.789); the test "
            "-ELBO was lowest after 4 epochs, by 12.345 (11.234 to 13.456); 8 times as long would "
            "bring the test -ELBO from 1,234.567 to 1,345.678 (1,300.123 to 1,390.456)"
        )


def inside(box, outer, slack=1.0):
    return (
        box.x0 >= outer.x0 - slack
        and box.y0 >= outer.y0 - slack
        and box.x1 <= outer.x1 + slack
        and box.y1 <= outer.y1 + slack
    )


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "images", "verdict", "too few", "overfitting"])
def test_every_text_is_large_enough_within_the_figure_and_free_of_others(kind, narrow):
    if kind == "verdict":
        given = [verdict_of(), torch.rand(200, 1, 8, 8)]
    elif kind == "too few":
        given = [verdict_of(n=3)]
        assert repr(given[0]).startswith("Cannot tell, ")
    elif kind == "overfitting":
        given = [Judged([falling(4), falling(8)])]
    elif kind == "images":
        given = [falling(60), torch.rand(200, 3, 8, 8)]
    else:
        given = [falling(**KINDS[kind])]
    figure = plot_learning_curve(*given, narrow=narrow)
    assert figure.get_figwidth() == (NARROW if narrow else WIDTH)
    drawn = shown_texts(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn]
    for text, (said, box) in zip(drawn, boxes, strict=True):
        assert text.get_fontsize() * 100 / 72 >= 13, said
        assert inside(box, figure.bbox), said
        assert "-" not in re.sub(r"\w-\w", "", said), said
    title = {figure.get_suptitle(), *(text.get_text() for text in figure.texts)}
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            if one in title and other in title:
                continue  # the answer stands in the first line of the reason, which is empty
            assert not mpl.transforms.Bbox.intersection(a.padded(-1.5), b.padded(-1.5)), (
                one,
                other,
            )


@pytest.mark.parametrize("kind", KINDS)
def test_ticks_are_told_apart(kind):
    figure = plot_learning_curve(falling(**KINDS[kind]))
    figure.canvas.draw()
    ax = panels(figure)["train"]
    low, high = ax.get_ylim()
    ticks = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert len(ticks) > 2
    assert len(set(ticks)) == len(ticks)
    epochs = [text.get_text() for text in panels(figure)["gap"].get_xticklabels()]
    assert all(re.fullmatch(r"−?\d+", label) for label in epochs)


def test_the_words_are_those_of_the_numbers():
    history = falling(epochs=9, n=500)
    alt = plot_learning_curve(history).alt
    said = [float(x.replace("−", "-").replace(",", "")) for x in re.findall(r"[−\d][\d.,]*\d", alt)]
    for value in (
        *history.train_mean[[0, -1]],
        *history.test_mean[[0, -1]],
        *np.quantile(history.test[-1], (0.05, 0.25, 0.75, 0.95)),
    ):
        assert min(abs(number - value) for number in said) < 0.06


def test_a_narrow_drawing_belongs_to_the_wide_one():
    figure = plot_learning_curve(verdict_of())
    narrow = figure.narrow()
    assert narrow.get_figwidth() == NARROW and narrow.get_figheight() > 2 * NARROW
    assert narrow.narrow is None and narrow.alt == figure.alt
    one, other = (average(f.axes[0], "train").get_ydata().tolist() for f in (figure, narrow))
    assert one == other


# ----------------------------------------------------------------------------------- bad input


def test_a_history_without_an_epoch_is_refused():
    history = lab.History({"epochs": 1}, 3, 3)
    with pytest.raises(ValueError, match="no finished epoch"):
        plot_learning_curve(history)
    history.add_test(torch.ones(3))
    with pytest.raises(ValueError, match="no finished epoch"):
        plot_learning_curve(history)


@pytest.mark.parametrize("shape", [(100, 1, 4, 4), (200, 16), (200, 4, 4)])
def test_images_of_another_test_set_or_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"all 200 test points, \(N, C, H, W\)"):
        plot_learning_curve(falling(), torch.zeros(shape))
