"""The learning curve, with what each data point contributes to it: the figure of this lab."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .displays import number, true_minus
from .style import (
    DOTS,
    GREY,
    HALO,
    INK,
    NARROW,
    PAD,
    TEST_COLOR,
    TRAIN_COLOR,
    WIDTH,
    LabFigure,
    array,
    beside,
    describe,
    mosaic,
    set_ticks,
    styled,
)
from .verdict_panels import draw_changes, draw_ends

if TYPE_CHECKING:
    from .convergence import Convergence
    from .history import History

__all__ = ["axis_limits", "decimals", "plot_learning_curve"]


@dataclass(frozen=True)
class _Side:
    """One half of a history, as the figure needs it."""

    name: str
    color: str
    epochs: np.ndarray  # where its rows belong
    values: np.ndarray  # (len(epochs), kept)
    mean: np.ndarray  # of all points
    points: int
    index: np.ndarray  # (kept,)
    last: np.ndarray  # (kept,), evaluated after the last epoch
    level: float  # the average then
    error: float  # its standard error


def _sides(history: History) -> tuple[_Side, _Side]:
    """Train stands at the middle of its epochs, where its averages belong, test at their ends."""
    e = np.arange(len(history) + 1.0)
    train_end = history.train_end if len(history.train_end) else history.train
    sides = []
    for name, color, epochs, curve, end in (
        ("train", TRAIN_COLOR, e[1:] - 0.5, history.train, train_end),
        ("test", TEST_COLOR, e, history.test, history.test),
    ):
        last = end.values[-1].astype(float), float(end.mean[-1]), float(end.se[-1])
        rows = curve.values, curve.mean, curve.points, curve.index
        sides.append(_Side(name, color, epochs, *rows, *last))
    return sides[0], sides[1]


def axis_limits(history: History) -> tuple[float, float]:
    """The range of the −ELBO: the bulk of the last epoch, and all averages but the very first."""
    return _limits(*_sides(history))


def _limits(train: _Side, test: _Side) -> tuple[float, float]:
    start = max(1, round(len(train.epochs) / 12))
    low = min(min(side.mean.min(), side.level) for side in (train, test))
    high = max(side.mean[start:].max(initial=low) for side in (train, test))
    for side in (train, test):
        least, few, most = np.quantile(side.last, (0, 0.001, 0.97))
        high = max(high, most)
        # The easiest point as well, unless it lies far from all others.
        low = min(low, least if few - least < 0.3 * (high - few) else few)
    room = (high - low) or abs(high) or 1.0
    return float(low - 0.06 * room), float(high + 0.06 * room)


def decimals(values: np.ndarray) -> int:
    """Decimals that tell apart what differs by a hundredth of the spread of the values."""
    spread = np.ptp(np.quantile(values.astype(float), (0.05, 0.95))) or abs(values[0]) or 1.0
    return int(np.clip(2 - math.floor(math.log10(spread)), 0, 6))


def _digits(train: _Side, test: _Side) -> int:
    """Decimals of averages: to the first that the larger of their standard errors reaches."""
    error = max((side.error for side in (train, test) if side.error > 0), default=0.01)
    return int(np.clip(-math.floor(math.log10(error)), 0, 6))


@styled()
def plot_learning_curve(
    run: History | Convergence, images: Any = None, *, narrow: bool = False
) -> LabFigure:
    """−ELBO by epoch, train and test: the average, and what each data point contributes to it.

    Of a ``Convergence`` the longest run is drawn, and below it what decides: the ends of all runs,
    and what the last doubling did to each test point. ``images`` ``(N_test, C, H, W)``, 8-bit or in
    [0, 1], are the test data: some of them stand beside their value in the last epoch. ``narrow``
    draws for a page 400 pixels wide. Raises ``ValueError`` for a history without an epoch and for
    images that are not those of the test set.
    """
    verdict: Any = run if hasattr(run, "histories") else None
    history: Any = verdict.histories[-1] if verdict else run
    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to draw")
    pictures, unit = (None, "data point") if images is None else (array(images), "image")
    if pictures is not None and len(pictures) != history.test.points:
        raise ValueError(
            f"expected the {history.test.points:,} test images, got {len(pictures):,} images"
        )
    train, test = _sides(history)
    figure, axes = _panels(narrow, bool(verdict))
    digits = _digits(train, test)
    axes["train"].set_ylim(*_limits(train, test))
    for side, other in ((train, test), (test, train)):
        _draw_side(axes[side.name], side, other, digits)
        _draw_decay(axes[side.name], history.lr)
        axes[side.name].set(xlim=(-0.5, len(history) + 0.5), xlabel="epoch")
        set_ticks(axes[side.name].xaxis, 5, integer=True)
    _draw_last(axes["last"], train, test, pictures)
    note, said = _note(train, test, unit, digits), ""
    if len(history.train_end):
        axes["train"].plot(len(history), train.level, "o", color=TRAIN_COLOR, mfc="white", ms=6.5,
                           mew=1.8, zorder=4, clip_on=False)  # fmt: skip
        note += " Ring: train after the run, evaluated as test is."
    if verdict:
        axes["train"].set_xticks([0, *(len(each) for each in verdict.histories[-3:])])
        axes["test"].set_xticks(axes["train"].get_xticks())
        said = draw_ends(axes["train ends"], axes["test ends"], verdict)
        changed, beyond = draw_changes(axes["changes"], verdict, unit)
        note, said = f"{note}{beyond}", f"{said} {changed} {true_minus(repr(verdict))}"
    _write(figure, _finding(verdict, history, train, test, digits), unit, note, narrow)
    describe(axes["test"], f"{_in_words(train, test, unit, digits)} {said}".strip())
    figure.narrow = None if narrow else partial(plot_learning_curve, run, images, narrow=True)
    return figure


def _panels(narrow: bool, verdict: bool) -> tuple[LabFigure, dict[str, Axes]]:
    """Axes by name: parts, and below them differences where there is a verdict."""
    if narrow:
        layout = [["train"], ["test"], ["last"]]
        layout += [["train ends"], ["test ends"], ["changes"]] if verdict else []
        size = (NARROW, 14.4 if verdict else 9.4)
        ratios: Any = {"height_ratios": [3, 3, 3.4, 1.6, 1.6, 1.6][: len(layout)]}
    else:
        layout = [["train", "test", "last"]]
        layout += [["train ends", "test ends", "changes"]] if verdict else []
        size = (WIDTH, 6.9 if verdict else 4.9)
        ratios = {"width_ratios": [1, 1, 0.8], "height_ratios": [2.3, 1][: len(layout)]}
    figure: Any = plt.figure(figsize=size, layout="constrained", FigureClass=LabFigure)
    axes = figure.subplot_mosaic(layout, **ratios)
    for name in ("test", "last"):
        axes[name].sharey(axes["train"])
    axes["train"].set_ylabel("−ELBO (nats)")
    axes["test"].set_ylabel("−ELBO (nats)" if narrow else "")
    axes["test"].tick_params(labelleft=narrow)
    set_ticks(axes["train"].yaxis, 7)
    axes["last"].axis("off")
    axes["last"].set_xlim(0, 1)
    figure.get_layout_engine().set(w_pad=PAD, h_pad=PAD, hspace=0.04)
    return figure, axes


def _draw_side(ax: Axes, side: _Side, other: _Side, digits: int) -> None:
    """Bands of all points, dots of some, the average, and thinly the average of the other side."""
    epochs, color = side.epochs, side.color
    x = np.concatenate([[epochs[0] - 0.5], epochs, [epochs[-1] + 0.5]])
    edges = np.quantile(side.values, (0.05, 0.25, 0.75, 0.95), axis=1)
    edges = np.pad(edges, ((0, 0), (1, 1)), "edge")
    for lower, upper, alpha in ((0, 3, 0.11), (1, 2, 0.19)):
        ax.fill_between(x, edges[lower], edges[upper], color=color, alpha=alpha, lw=0)
    _draw_dots(ax, side)
    ax.plot(epochs, side.mean, color="white", lw=4.8)
    ax.plot(other.epochs, other.mean, color=other.color, lw=1.1, label=other.name)
    ax.plot(epochs, side.mean, color=color, lw=2.6, label=side.name)
    low, high = ax.get_ylim()
    beside(ax, side.level, number(side.level, digits), color=color, weight="bold", size=12)
    ahead = other.level - side.level
    close = abs(ahead) < 0.1 * (high - low)
    beside(ax, side.level if close else other.level, f"{other.name} {number(other.level, digits)}",
           down=-math.copysign(15, ahead) if close else 0, color=other.color)  # fmt: skip
    ax.set_title(side.name, color=color, weight="bold", size=12)
    outside = (side.values > high) | (side.values < low)
    if outside.any():
        share = f"{100 * outside.mean():.1f}"
        ax.set_title(f"{'<0.1' if share == '0.0' else share} % off the scale", loc="right")


def _draw_decay(ax: Axes, rate: np.ndarray) -> None:
    """Where the learning rate falls: what lowers the end of any curve."""
    falls = np.flatnonzero(rate < 0.99 * rate.max())
    falls = falls[falls > rate.argmax()]
    if len(falls):
        place: Any = {"transform": ax.get_xaxis_transform(), "color": GREY}
        ax.plot([falls[0], len(rate)], [0.025, 0.025], lw=1.5, **place)
        ax.text(len(rate), 0.04, "learning rate falls", ha="right", va="bottom",
                path_effects=HALO, **place)  # fmt: skip


def _draw_dots(ax: Axes, side: _Side) -> None:
    """Other random points in each epoch; those beyond the axis are ticks at its edge."""
    rng = np.random.default_rng(0)  # private: drawing must not disturb an experiment
    y = np.stack([rng.choice(row, _dots(side), replace=False) for row in side.values])
    x = side.epochs[:, None] + rng.uniform(-0.45, 0.45, y.shape)
    ax.plot(x.ravel(), y.ravel(), color=side.color, ms=3.6, alpha=0.75, **DOTS)
    low, high = ax.get_ylim()
    for edge, beyond in ((1, x[y > high]), (0, x[y < low])):
        ax.plot(beyond, np.full(len(beyond), edge), "|", ms=8, mew=0.7, color=side.color,
                transform=ax.get_xaxis_transform(), rasterized=True)  # fmt: skip


def _dots(side: _Side) -> int:
    """How many points are dots in each epoch: a few hundred in all."""
    return min(side.values.shape[1], max(8, 600 // math.ceil(side.epochs[-1])))


def _draw_last(ax: Axes, train: _Side, test: _Side, pictures: np.ndarray | None) -> None:
    """The distributions after the last epoch, and test points tied to their values."""
    low, high = ax.get_ylim()
    bins = np.linspace(low, high, 61)
    values, digits = test.last, decimals(test.last)
    shares = [np.histogram(side.last, bins)[0] for side in (train, test)]
    outlines = [0.36 * share / max(share.max(), 1) for share in shares]
    style: Any = {"orientation": "horizontal", "baseline": 0}
    ax.stairs(outlines[0], bins, fill=True, color=TRAIN_COLOR, alpha=0.25, lw=0, **style)
    ax.stairs(outlines[1], bins, color=TEST_COLOR, lw=1.4, **style)
    ax.set_title("after the last epoch", color=INK)
    picks = _picks(values, low, high, 0.13)
    if pictures is not None:
        shown = mosaic(pictures[test.index[[column for column, _, _ in picks]]], 1)
        tiles = np.split(shown, len(picks))
    for i, (column, height, name) in enumerate(picks):
        value = values[column]
        if low <= value <= high:
            start = outlines[1][min(int((value - low) / (high - low) * 60), 59)]
            ax.plot([start + 0.02, 0.45], [value, value], color=GREY, lw=0.6)
        if pictures is not None:
            inset = ax.inset_axes((0.46, height - 0.055, 0.22, 0.11))
            inset.imshow(tiles[i])
            inset.axis("off")
        arrow = " ↑" if value > high else " ↓" if value < low else ""
        text = f"{number(value, digits)}{arrow}\n{name}".strip()
        left = 0.47 if pictures is None else 0.71
        ax.text(left, height, text, transform=ax.transAxes, va="center", linespacing=1.1)


def _picks(
    values: np.ndarray, low: float, high: float, apart: float
) -> list[tuple[int, float, str]]:
    """Points to show: (column, height in the panel from 0 to 1, name), no two closer than that.

    The typical, the hardest and the easiest first, then others between them at even heights. What
    lies beyond the panel stands at its edge.
    """
    heights = np.clip((values - low) / (high - low), 0.03, 0.95)
    order = values.argsort(kind="stable")
    named = {int(order[len(order) // 2]): "typical" if np.ptp(values) else ""}
    for column, name in ((int(order[-1]), "hardest"), (int(order[0]), "easiest")):
        if np.abs(heights[list(named)] - heights[column]).min() >= apart:
            named[column] = name
    anchors = np.sort(heights[list(named)])
    for a, b in pairwise(anchors):
        for target in np.linspace(a, b, int((b - a) / apart) + 1)[1:-1]:
            column = int(np.abs(heights - target).argmin())
            if np.abs(heights[list(named)] - heights[column]).min() >= 0.95 * apart:
                named[column] = ""
    return [(column, float(heights[column]), name) for column, name in named.items()]


def _write(figure: Any, finding: str, unit: str, note: str, narrow: bool) -> None:
    """What one should see, what it is measured in, and what the parts are."""
    title = textwrap.fill(finding, 33 if narrow else 82)
    subtitle = f"−ELBO in nats per {unit}, lower is better"
    left, top = PAD / figure.get_figwidth(), 1 - PAD / figure.get_figheight()
    room = "\n" * (title.count("\n") + 1)
    figure.suptitle(room + subtitle, x=left, ha="left", size=10.5, linespacing=1.5)
    figure.text(left, top, title, ha="left", va="top", size=13, weight="bold")
    note = textwrap.fill(note, 49 if narrow else 118)
    figure.supxlabel(note, x=left, ha="left", size=9.5, color=GREY, linespacing=1.3)


def _finding(verdict: Any, history: History, train: _Side, test: _Side, digits: int) -> str:
    """What one should see."""
    epochs, planned = len(history), history.settings.epochs
    if verdict is None:
        ends = [f"{side.name} at {number(side.level, digits)}" for side in (train, test)]
        after = f"epoch {epochs}" if epochs == planned else f"epoch {epochs} of {planned}, stopped"
        return f"After {after}: {ends[0]}, {ends[1]}"
    return {
        "converged": "Train and test end together: doubling the training hardly changes either",
        "still improving": f"Test still falls: {epochs} epochs are not enough",
        "overfitting": f"After {verdict.keep} epochs test stops improving, train does not",
    }.get(verdict.verdict, f"These runs cannot tell: {verdict.why}")


def _note(train: _Side, test: _Side, unit: str, digits: int) -> str:
    """What bands and dots are, and which averages stand off the scale."""
    (kept, of), dots = _counts(train, test), [_dots(train), _dots(test)]
    share = f"all {of}" if kept == of else f"the {kept} that were kept of {of}"
    some = f"{dots[0]}" if dots[0] == dots[1] else f"{dots[0]} and {dots[1]}"
    text = f"Bands: the middle 50 and 90 % of {share} {unit}s. Dots: {some} of them in each epoch."
    starts = ((train, "train in epoch 1"), (test, "test before training"))
    off = [f"{when}, {number(side.mean[0], digits)}" for side, when in starts
           if side.mean[0] > _limits(train, test)[1]]  # fmt: skip
    return text + f" Off the scale: {'; '.join(off)}." * bool(off)


def _counts(train: _Side, test: _Side) -> tuple[str, str]:
    """How many points are kept, and how many there are."""
    kept = f"{train.values.shape[1]:,} train and {test.values.shape[1]:,} test"
    return kept, f"{train.points:,} train and {test.points:,} test"


def _in_words(train: _Side, test: _Side, unit: str, digits: int) -> str:
    """What the figure shows, without the verdict."""
    starts = [number(side.mean[0], digits) for side in (train, test)]
    ends = [number(side.level, digits) for side in (train, test)]
    quantiles = np.quantile(test.last, (0.05, 0.25, 0.75, 0.95))
    edges = [number(value, decimals(test.last)) for value in quantiles]
    return (
        f"Learning curve, epochs 0 to {len(train.epochs)}, over a cloud of single {unit}s. The "
        f"average −ELBO of the training {unit}s goes from {starts[0]} in the first epoch to "
        f"{ends[0]} nats after the last, that of the test {unit}s from {starts[1]} before training "
        f"to {ends[1]}. Of the test {unit}s half then lie between {edges[1]} and {edges[2]}, 90 % "
        f"between {edges[0]} and {edges[3]}."
    )
