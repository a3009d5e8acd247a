"""The learning curve, with what each data point contributes to it: the figure of this lab."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae_canvas import (
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
    describe,
    ink,
    number,
    set_ticks,
    styled,
    true_minus,
)
from vae_displays import unbroken
from vae_helpers import History

if TYPE_CHECKING:
    from vae_convergence import Convergence

__all__ = ["plot_learning_curve"]


@dataclass(frozen=True)
class _Split:
    """One half of a history: ``values`` ``(len(epochs), kept)`` of ``points`` data points."""

    name: str
    color: str
    epochs: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    points: int

    @property
    def dots(self) -> int:
        """How many of the points are drawn as dots in each epoch."""
        return int(min(self.values.shape[1], max(100, 7000 // math.ceil(self.epochs[-1]))))


def _splits(history: History) -> tuple[_Split, _Split]:
    """Train stands at the middle of its epochs, where its averages belong, test at their ends."""
    e = np.arange(len(history) + 1.0)
    train = (e[1:] - 0.5, history.train, history.train_mean, history.train_points)
    test = (e, history.test, history.test_mean, history.test_points)
    return _Split("train", TRAIN_COLOR, *train), _Split("test", TEST_COLOR, *test)


@styled()
def plot_learning_curve(
    run: History | Convergence, images: Tensor | None = None, *, narrow: bool = False
) -> LabFigure:
    """−ELBO by epoch, train and test: the average, and what each data point contributes to it.

    Of a ``Convergence`` the longest run is drawn, its verdict above it, and in the test panel the
    shorter runs on which the verdict rests. ``images`` ``(N_test, C, H, W)``, 8-bit or in [0, 1],
    are the test data: some of them stand beside their value in the last epoch. ``narrow`` draws
    for a page 400 pixels wide. Raises ``ValueError`` for a history without an epoch and for images
    that are not those of the test set.
    """
    histories = [run] if isinstance(run, History) else list(run.histories)
    history, verdict = histories[-1], "" if isinstance(run, History) else true_minus(repr(run))
    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to draw")
    if images is not None and (images.ndim != 4 or len(images) != history.test_points):
        raise ValueError(
            f"images must be those of all {history.test_points:,} test points, (N, C, H, W); "
            f"got {tuple(images.shape)}"
        )
    unit = "data point" if images is None else "image"
    splits = _splits(history)
    digits = _digits(splits)
    figure, axes = _panels(narrow, splits, f"−ELBO (nats per {unit})")
    for split in splits:
        _draw_split(axes[split.name], split, digits)
    _draw_shorter(axes["test"], histories[:-1], digits)
    _draw_last(axes["last"], history, images, digits)
    _draw_gap(axes["gap"], history, digits)
    _draw_rates(axes["rate"], histories)
    _set_epochs(axes, [len(history) for history in histories])
    _note(axes["note"], splits, unit, 39 if narrow else 22)
    if verdict:
        _draw_verdict(figure, verdict, 49 if narrow else 118)
    describe(axes["test"], f"{_curve_in_words(histories, splits, unit, digits)} {verdict}")
    figure.narrow = None if narrow else partial(plot_learning_curve, run, images, narrow=True)
    return figure


def _draw_verdict(figure: Figure, verdict: str, width: int) -> None:
    """The answer in bold, and below it what it rests on."""
    answer, reason = re.split("(?<=^Cannot tell), |: ", verdict, maxsplit=1)
    lines = ["", *textwrap.wrap(unbroken(f"{reason[0].upper()}{reason[1:]}"), width)]
    left, top = PAD / figure.get_figwidth(), 1 - PAD / figure.get_figheight()
    figure.suptitle("\n".join(lines), x=left, ha="left", fontsize=10, linespacing=1.4)
    figure.text(left, top, answer, ha="left", va="top", fontsize=12, fontweight="bold")


def _panels(
    narrow: bool, splits: tuple[_Split, _Split], label: str
) -> tuple[LabFigure, dict[str, Axes]]:
    """Axes side by side, or one below the other, on one scale of the −ELBO, which is labelled."""
    layout = [["train", "test", "last"], ["gap", "rate", "note"]]
    size, ratios = (WIDTH, 6.0), {"width_ratios": [1, 1, 0.72], "height_ratios": [4.4, 1]}
    if narrow:
        layout = [[name] for name in ("train", "gap", "test", "rate", "last", "note")]
        size, ratios = (NARROW, 11.5), {"height_ratios": [3, 0.9, 3, 0.8, 3.4, 1]}
    figure: Any = plt.figure(figsize=size, layout="constrained", FigureClass=LabFigure)
    axes = figure.subplot_mosaic(layout, **ratios)
    for upper, lower in (("train", "gap"), ("test", "rate")):
        axes[lower].sharex(axes[upper])
        axes[upper].tick_params(labelbottom=False)
        axes[lower].set_xlabel("epoch")
    for name in ("test", "last"):
        axes[name].sharey(axes["train"])
    axes["train"].set(ylim=_limits(splits), ylabel=label)
    set_ticks(axes["train"].yaxis, 7)
    axes["test"].set_ylabel(label if narrow else "")
    axes["test"].tick_params(labelleft=narrow)
    for name in ("last", "note"):
        axes[name].axis("off")
        axes[name].set_xlim(0, 1)
    figure.get_layout_engine().set(w_pad=PAD, h_pad=PAD, hspace=0.02)
    return figure, axes


def _limits(splits: tuple[_Split, _Split]) -> tuple[float, float]:
    """The range of the −ELBO: the bulk of the last epoch, and all averages but the very first."""
    start = max(1, round(len(splits[0].epochs) / 12))
    low = min(split.mean.min() for split in splits)
    high = max(split.mean[start:].max(initial=low) for split in splits)
    for split in splits:
        least, few, most = np.quantile(split.values[-1].astype(float), (0, 0.001, 0.97))
        high = max(high, most)
        # The easiest point as well, unless it lies far from all others.
        low = min(low, least if few - least < 0.3 * (high - few) else few)
    room = (high - low) or abs(high) or 1.0
    return low - 0.04 * room, high + 0.06 * room


def _digits(splits: tuple[_Split, _Split]) -> int:
    """Decimals that tell apart what differs by a thousandth of the spread of the last epoch."""
    spread = max(np.ptp(np.quantile(split.values[-1], (0.05, 0.95))) for split in splits)
    spread = spread or abs(splits[0].mean[-1]) or 1.0
    return int(np.clip(3 - math.floor(math.log10(spread)), 0, 6))


def _draw_split(ax: Axes, split: _Split, digits: int) -> None:
    """Bands of all points, dots of some, and the average with its last value at its end."""
    epochs, color = split.epochs, split.color
    x = np.concatenate([[epochs[0] - 0.5], epochs, [epochs[-1] + 0.5]])
    edges = np.quantile(split.values, (0.05, 0.25, 0.75, 0.95), axis=1)
    edges = np.pad(edges, ((0, 0), (1, 1)), "edge")
    for lower, upper, alpha in ((0, 3, 0.1), (1, 2, 0.17)):
        ax.fill_between(x, edges[lower], edges[upper], color=color, alpha=alpha, lw=0)
    _draw_dots(ax, split)
    ax.plot(epochs, split.mean, color="white", lw=4.5)
    ax.plot(epochs, split.mean, color=color, lw=2.2, label=split.name)
    _end(ax, epochs[-1], split.mean[-1], digits, color)
    ax.set_title(split.name, color=color, fontweight="bold", fontsize=12)
    high = ax.get_ylim()[1]
    if split.mean[0] > high:
        when = "before training" if epochs[0] == 0 else "epoch 1:"
        enters = epochs[(split.mean <= high).argmax()]  # beside the line, if there is room
        place, align = (enters, "left") if enters < 0.4 * epochs[-1] else (epochs[-1], "right")
        ax.annotate(f"{when} {number(split.mean[0], max(0, digits - 1))} ↑", (place, 1), (9, -14),
                    xycoords=("data", "axes fraction"), textcoords="offset points", ha=align,
                    va="top", color=GREY, path_effects=HALO)  # fmt: skip


def _draw_dots(ax: Axes, split: _Split) -> None:
    """The same random points in each epoch; those beyond the axis are ticks at its edge."""
    rng = np.random.default_rng(0)  # private: drawing must not disturb an experiment
    y = split.values[:, rng.permutation(split.values.shape[1])[: split.dots]]
    x = split.epochs[:, None] + rng.uniform(-0.5, 0.5, y.shape)
    size = 2.2 * np.clip(math.sqrt(7000 / y.size), 0.6, 2)  # few dots are large
    ax.plot(x.ravel(), y.ravel(), color=split.color, ms=size, alpha=0.55, **DOTS)
    low, high = ax.get_ylim()
    for edge, beyond in ((1, x[y > high]), (0, x[y < low])):
        ax.plot(beyond, np.full(len(beyond), edge), "|", ms=8, mew=0.5, color=split.color,
                alpha=0.6, transform=ax.get_xaxis_transform(), rasterized=True)  # fmt: skip
    share = 100 * np.mean((split.values > high) | (split.values < low))
    if share:
        percent = f"{share:.1f}" if share >= 0.05 else "<0.1"
        ax.set_title(f"{percent} % off the scale", loc="right")


def _end(ax: Axes, x: float, y: float, digits: int, color: str) -> None:
    """A dot at the end of a line, and its last value beside the panel."""
    ax.plot(x, y, "o", color=color, mec="white", ms=6.5, clip_on=False, zorder=3)
    ax.annotate(
        number(y, digits), (1, y), (7, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", color=color, fontweight="bold", fontsize=11,
        annotation_clip=False,
    )  # fmt: skip


def _draw_shorter(ax: Axes, histories: Sequence[History], digits: int) -> None:
    """The test averages of shorter runs, and where they ended."""
    for history in histories:
        ends, mean = len(history), history.test_mean
        ax.plot(np.arange(ends + 1), mean, color="white", lw=3)
        ax.plot(np.arange(ends + 1), mean, color=INK, lw=1.3)
        ax.plot(ends, mean[-1], "o", color=INK, mec="white", ms=6, zorder=3)
    # The last two have room for a label: each reaches away from the other.
    places = (("left", -11), ("right", 11))
    for history, (align, shift) in zip(histories[::-1], places, strict=False):
        ax.annotate(
            f"{len(history)} epochs\n{number(history.test_mean[-1], digits)}",
            (len(history), history.test_mean[-1]), (shift, -7), textcoords="offset points",
            ha=align, va="top", linespacing=1.1, path_effects=HALO,
        )  # fmt: skip


def _draw_last(ax: Axes, history: History, images: Tensor | None, digits: int) -> None:
    """The distributions of the last epoch, and test points tied to their values."""
    low, high = ax.get_ylim()
    grid = np.linspace(low, high, 200)
    train, test = _density(history.train[-1], grid), _density(history.test[-1], grid)
    scale = 0.36 / max(train.max(), test.max())
    ax.fill_betweenx(grid, 0, scale * train, color=TRAIN_COLOR, alpha=0.2, lw=0)
    for density, color, width in ((train, TRAIN_COLOR, 1), (test, TEST_COLOR, 2)):
        present = np.where(density > 2e-3 * density.max(), scale * density, np.nan)
        ax.plot(present, grid, color=color, lw=width)
    ax.text(0, 1.025, "last epoch", transform=ax.get_xaxis_transform())
    beside = 0.46 if images is None else 0.71
    for column, slot, name in _picks(history.test[-1], low, high, 3 if images is None else 7):
        value, y = float(history.test[-1][column]), low + slot * (high - low)
        start = scale * np.interp(value, grid, test)
        ax.plot([start, 0.44], [np.clip(value, low, high), y], color=GREY, lw=0.6)
        if images is not None:
            inset = ax.inset_axes((0.46, slot - 0.055, 0.22, 0.11))
            inset.imshow(ink(images[int(history.test_index[column])]).permute(1, 2, 0).numpy())
            inset.axis("off")
        text = number(value, max(0, digits - 1))
        text += " ↑" if value > high else " ↓" if value < low else ""
        ax.text(beside, y, f"{text}\n{name}".strip(), va="center")


def _picks(values: np.ndarray, low: float, high: float, count: int) -> list[tuple[int, float, str]]:
    """Test points to show, the hardest first: (column, height in the panel from 0 to 1, name).

    Evenly spaced by value, the typical one at the median, and at their own height where there is
    room for each.
    """
    targets = np.linspace(min(values.max(), high), max(values.min(), low), count)
    middle = 1 + int(np.abs(targets[1:-1] - np.median(values)).argmin())
    targets[[0, middle, -1]] = values.max(), np.median(values), values.min()
    names = {0: "hardest", middle: "typical", count - 1: "easiest"}
    picked: dict[int, str] = {}
    for i, target in enumerate(targets):
        picked.setdefault(int(np.abs(values - target).argmin()), names.get(i, ""))
    heights = (values[list(picked)] - low) / (high - low)
    for i in range(len(heights)):
        heights[i] = min(heights[i], heights[i - 1] - 0.13 if i else 0.94)
    for i in reversed(range(len(heights))):
        heights[i] = max(heights[i], heights[i + 1] + 0.13 if i + 1 < len(heights) else 0.06)
    named = picked.values() if len(picked) > 1 else [""]
    return list(zip(picked, heights.tolist(), named, strict=True))


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A kernel estimate of the density of the values at evenly spaced places."""
    step = grid[1] - grid[0]
    spread = min(values.std(), np.ptp(np.quantile(values, (0.25, 0.75))) / 1.34)
    width = max(1.06 * spread * len(values) ** -0.2, 1.5 * step)  # Silverman's rule
    reach = math.ceil(4 * width / step)
    edges = np.arange(-reach, len(grid) + reach + 1) * step + grid[0] - step / 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    counts = np.histogram(values, edges)[0] / len(values)
    density: np.ndarray = np.convolve(counts, kernel / kernel.sum(), "valid")
    return density


def _draw_gap(ax: Axes, history: History, digits: int) -> None:
    """Test − train at the ends of epochs, between two of which the train averages lie."""
    e = np.arange(1.0, len(history) + 1)
    gap = history.test_mean[1:] - np.interp(e, e - 0.5, history.train_mean)
    settled = gap[len(gap) // 10 :]
    low, high = min(0, settled.min()), max(0, settled.max())
    room = (high - low) or 1.0
    low, high = low - 0.1 * room, high + 0.15 * room
    ax.set_ylim(low, high)
    beyond = gap[(gap < low) | (gap > high)]
    if len(beyond):
        farthest = beyond[np.abs(beyond).argmax()]
        arrow = "↓" if farthest < 0 else "↑"
        ax.set_title(f"at first {number(farthest, max(0, digits - 1))} {arrow}", loc="right", pad=3)
    ax.axhline(0, color=GREY, lw=0.7)
    ax.fill_between(e, 0, gap, color="#000000", alpha=0.1, lw=0)
    ax.plot(e, gap, color=INK, lw=1.6)
    _end(ax, e[-1], gap[-1], digits, INK)
    ax.set_title("test − train", color=INK, pad=3)
    set_ticks(ax.yaxis, 3)


def _draw_rates(ax: Axes, histories: Sequence[History]) -> None:
    """The learning rate of each run: what makes the end of any curve look level."""
    for history in histories:
        x, rate = np.arange(len(history)) + 0.5, history.lr  # averages, so at the middle
        if len(x) == 1:
            x, rate = np.array([0, 1]), np.repeat(rate, 2)
        ax.plot(x, rate, color=INK, lw=1.6 if history is histories[-1] else 1)
    peak = max(float(history.lr.max()) for history in histories)
    ax.set_ylim(0, 1.15 * peak or 1)
    ax.set_title(f"learning rate, up to {number(float(f'{peak:.2g}'))}", color=INK, pad=3)
    ax.set_yticks([])


def _set_epochs(axes: dict[str, Axes], ends: Sequence[int]) -> None:
    """Whole epochs along the axes, those at which runs ended among them."""
    for ax in (axes["train"], axes["test"]):
        ax.set_xlim(-0.5, ends[-1] + 0.5)
        set_ticks(ax.xaxis, 5, integer=True)
        if len(ends) > 1:
            ax.set_xticks([0, *ends[-3:]])


def _note(ax: Axes, splits: tuple[_Split, _Split], unit: str, width: int) -> None:
    """How many points are dots, and which of them the bands are made of."""
    counts = " and ".join(f"{split.dots:,} of {split.points:,} {split.name}" for split in splits)
    recorded = [split.values.shape[1] for split in splits]
    bands = f"the {recorded[0]:,} and {recorded[1]:,} that were kept"
    if recorded == [split.points for split in splits]:
        bands = "all"
    text = f"Dots: {counts} {unit}s, the same each epoch. Bands: middle 50 and 90 % of {bands}."
    note = ax.text(0, 1, textwrap.fill(text, width), va="top", color=GREY)
    note.set_in_layout(False)


def _curve_in_words(
    histories: Sequence[History], splits: tuple[_Split, _Split], unit: str, digits: int
) -> str:
    """What the figure shows, without the verdict."""
    train, test = ([number(split.mean[i], digits) for i in (0, -1)] for split in splits)
    quantiles = np.quantile(splits[1].values[-1], (0.05, 0.25, 0.75, 0.95))
    edges = [number(value, digits) for value in quantiles]
    text = (
        f"Learning curve, epochs 0 to {len(histories[-1])}, over a cloud of single {unit}s. The "
        f"average −ELBO of the training {unit}s goes from {train[0]} in the first epoch to "
        f"{train[1]} nats in the last, that of the test {unit}s from {test[0]} before training to "
        f"{test[1]}. Of the test {unit}s in the last epoch half lie between {edges[1]} and "
        f"{edges[2]}, 90 % between {edges[0]} and {edges[3]}."
    )
    for shorter in histories[:-1]:
        ended = number(shorter.test_mean[-1], digits)
        text += f" A run of {len(shorter)} epochs ended at {ended} on the test {unit}s."
    return text
