"""The learning curve, with what each data point contributes to it: the figure of this lab."""

import math
import textwrap
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from . import style
from .convergence import Convergence, Estimate
from .displays import number, true_minus
from .history import Curve, History
from .style import GREY, INK, NARROW, PAD, TEST_COLOR, TRAIN_COLOR, WIDTH, LabFigure

__all__ = ["axis_limits", "decimals", "images_of_test", "plot_learning_curve"]


class _Side(NamedTuple):
    """One half of a history, as the figure needs it."""

    name: str
    color: str
    epochs: np.ndarray  # where the rows of its curve belong
    curve: Curve
    last: np.ndarray  # of single points, evaluated after the last epoch
    level: float  # their average
    text: str  # the same, written


def _sides(history: History) -> tuple[_Side, _Side]:
    """Train stands at the middle of its epochs, where its averages belong, test at their ends."""
    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to draw")
    e, train, test = np.arange(len(history) + 1.0), history.train, history.test
    end, digits = history.train_end if len(history.train_end) else train, decimals(test.values[-1])
    ends = [(c.values[-1], c.mean[-1], number(c.mean[-1], digits)) for c in (end, test)]
    return (
        _Side("train", TRAIN_COLOR, e[1:] - 0.5, train, *ends[0]),
        _Side("test", TEST_COLOR, e, test, *ends[1]),
    )


def axis_limits(history: History) -> tuple[float, float]:
    """The range of the −ELBO: the bulk of the last epoch, and all averages but the very first.

    Raises ``ValueError`` for a history without an epoch.
    """
    start, low, high = max(1, round(len(history) / 12)), math.inf, -math.inf
    for side in _sides(history):
        few, most = np.quantile(side.last.astype(float), (0.001, 0.97))
        low = min(low, few, side.level, *side.curve.mean)
        high = max(high, most, side.level, *side.curve.mean[start:])
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return float(low - room), float(high + room)


def decimals(values: np.ndarray) -> int:
    """Decimals that tell apart what differs by a hundredth of the spread of the values."""
    spread = np.ptp(np.quantile(values.astype(float), (0.05, 0.95))) or abs(values[0]) or 1.0
    return int(np.clip(2 - math.floor(math.log10(spread)), 0, 6))


def images_of_test(history: History, images: Any) -> np.ndarray:
    """The images as an array; ``ValueError`` unless there is one for each test point."""
    found, count = style.array(images), history.test.points
    if len(found) != count:
        raise ValueError(f"expected the {count:,} test images, got {len(found):,} images")
    return found


@style.styled()
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
    train, test = _sides(history)
    pictures, unit = None, "data point"
    if images is not None:
        pictures, unit = images_of_test(history, images), "image"
    figure, axes = _panels(narrow, bool(verdict))
    axes["train"].set_ylim(axis_limits(history))
    for side, other in ((train, test), (test, train)):
        _draw_side(axes[side.name], side, other)
        _draw_epochs(axes[side.name], history.lr, verdict)
    if len(history.train_end):
        axes["train"].plot(len(history), train.level, "o", color=TRAIN_COLOR, mfc="white", ms=6.5,
                           mew=1.8, zorder=4, clip_on=False)  # fmt: skip
    _draw_last(axes["last"], train, test, pictures)
    title = ends = f"After epoch {len(history)}: train at {train.text}, test at {test.text}"
    changes = ""
    if verdict:
        title = _finding(verdict)
        windows = _windows(verdict)
        for side, window in zip((train, test), windows, strict=True):
            _draw_ends(axes[f"{side.name} ends"], side, verdict, window)
        axes["test ends"].tick_params(labelleft=narrow or windows[0] != windows[1])
        changes = f" {_draw_changes(axes['changes'], verdict, unit)} {true_minus(repr(verdict))}"
    _write(figure, title, unit, _note(history, train, test, bool(verdict), unit), narrow)
    figure.alt = f"Learning curve over a cloud of single {unit}s. {ends}.{changes}"
    figure.narrow = None if narrow else partial(plot_learning_curve, run, images, narrow=True)
    return figure


def _panels(narrow: bool, verdict: bool) -> tuple[LabFigure, dict[str, Axes]]:
    """Axes by name: parts, and below them differences where there is a verdict."""
    names = [["train", "test", "last"], ["train ends", "test ends", "changes"]][: 1 + verdict]
    size, widths, heights = (WIDTH, 6.9 if verdict else 4.9), [1, 1, 0.8], [2.3, 1]
    if narrow:
        names = [[name] for row in names for name in row]
        size, widths, heights = (NARROW, 14.4 if verdict else 9.4), [1], [3, 3, 3.4, 1.6, 1.6, 1.6]
    figure: Any = plt.figure(figsize=size, layout="constrained", FigureClass=LabFigure)
    figure.get_layout_engine().set(w_pad=PAD, h_pad=PAD, hspace=0.04)
    axes = figure.subplot_mosaic(names, width_ratios=widths, height_ratios=heights[: len(names)])
    for name in ("test", "last"):
        axes[name].sharey(axes["train"])
    for name in {"train", "train ends", "test", "test ends"} & axes.keys():
        axes[name].set_ylabel("−ELBO (nats)" if narrow or "train" in name else "")
    axes["test"].tick_params(labelleft=narrow)
    style.set_ticks(7, axes["train"].yaxis)
    axes["last"].axis("off")
    axes["last"].set_xlim(0, 1)
    return figure, axes


def _draw_side(ax: Axes, side: _Side, other: _Side) -> None:
    """Bands of all points, dots of some, the average, and thinly the average of the other side."""
    epochs, color, values, (low, high) = side.epochs, side.color, side.curve.values, ax.get_ylim()
    x = np.concatenate([[epochs[0] - 0.5], epochs, [epochs[-1] + 0.5]])
    edges = np.quantile(values, (0.05, 0.25, 0.75, 0.95), axis=1)
    edges = np.pad(edges, ((0, 0), (1, 1)), "edge")
    for lower, upper, alpha in ((0, 3, 0.11), (1, 2, 0.19)):
        ax.fill_between(x, edges[lower], edges[upper], color=color, alpha=alpha, lw=0)
    rng = np.random.default_rng(0)  # private: drawing must not disturb an experiment
    count = min(values.shape[1], max(8, 600 // math.ceil(epochs[-1])))
    y = np.stack([rng.choice(row, count, replace=False) for row in values])
    x = epochs[:, None] + rng.uniform(-0.45, 0.45, y.shape)
    ax.plot(x.ravel(), y.ravel(), color=color, ms=3.6, alpha=0.75, **style.DOTS)
    for edge, beyond in ((high, x[y > high]), (low, x[y < low])):  # ticks at the edge
        ax.plot(
            beyond, np.full(len(beyond), edge), "|", ms=8, mew=0.7, color=color, rasterized=True
        )
    ax.plot(epochs, side.curve.mean, color="white", lw=4.8)
    ax.plot(other.epochs, other.curve.mean, color=other.color, lw=1.1, label=other.name)
    ax.plot(epochs, side.curve.mean, color=color, lw=2.6, label=side.name)
    style.beside(ax, side.level, side.text, color=color, weight="bold", size=12)
    ahead = other.level - side.level
    close = abs(ahead) < 0.1 * (high - low)
    style.beside(ax, side.level if close else other.level, f"{other.name} {other.text}",
                 down=-math.copysign(15, ahead) if close else 0, color=other.color)  # fmt: skip
    ax.set_title(side.name, color=color, weight="bold", size=12)
    if share := 100 * np.mean((values > high) | (values < low)):
        ax.set_title(f"{f'{share:.1f}' if share >= 0.1 else '< 0.1'} % lie beyond", loc="right")


def _draw_epochs(ax: Axes, rate: np.ndarray, verdict: Convergence | None) -> None:
    """The axis of epochs, and where the learning rate falls: what lowers the end of any curve."""
    ax.set(xlim=(-0.5, len(rate) + 0.5), xlabel="epoch")
    style.set_ticks(5, ax.xaxis, integer=True)
    if verdict:
        ax.set_xticks([0, *(len(run) for run in verdict.histories[-3:])])
    since = 1 + np.flatnonzero(rate >= 0.99 * rate.max())[-1]
    if since < len(rate):
        place: Any = {"transform": ax.get_xaxis_transform(), "color": GREY}
        ax.plot([since, len(rate)], [0.025, 0.025], lw=1.5, **place)
        ax.text(len(rate), 0.04, "learning rate falls", ha="right", va="bottom",
                path_effects=style.HALO, **place)  # fmt: skip


def _draw_last(ax: Axes, train: _Side, test: _Side, pictures: np.ndarray | None) -> None:
    """The distributions after the last epoch, and test points tied to their values."""
    (low, high), digits = ax.get_ylim(), decimals(test.last)
    bins = np.linspace(low, high, 61)
    shares = [np.histogram(side.last, bins)[0] for side in (train, test)]
    outlines = [0.36 * share / max(share.max(), 1) for share in shares]
    sideways: Any = {"orientation": "horizontal", "baseline": 0}
    ax.stairs(outlines[0], bins, fill=True, color=TRAIN_COLOR, alpha=0.25, lw=0, **sideways)
    ax.stairs(outlines[1], bins, color=TEST_COLOR, lw=1.4, **sideways)
    ax.set_title("after the last epoch", color=INK)
    for side, place in ((train, 0), (test, 0.25)):
        ax.text(place, -0.02, side.name, color=side.color, va="top", transform=ax.transAxes)
    # The typical, the hardest and the easiest point; then, from below, any for which there is room.
    order = np.argsort(test.last).tolist()
    heights, taken = np.clip((test.last - low) / (high - low), 0.03, 0.95), np.empty(0)
    middle = order[len(order) // 2]
    names = {middle: "", order[-1]: "hardest", order[0]: "easiest"} | {middle: "typical"}
    for column in (*names, *order[:: 1 + len(order) // 1000]):
        value, height = test.last[column], heights[column]
        if np.any(np.abs(taken - height) < 0.13):
            continue
        taken = np.append(taken, height)
        if low <= value <= high:
            start = outlines[1][np.clip(np.searchsorted(bins, value) - 1, 0, 59)]
            ax.plot([start + 0.02, 0.45], [value, value], color=GREY, lw=0.6)
        if pictures is not None:
            inset = ax.inset_axes((0.46, height - 0.055, 0.22, 0.11))
            inset.imshow(style.mosaic(pictures[test.curve.index[[column]]], 1))
            inset.axis("off")
        arrow = " ↑" if value > high else " ↓" if value < low else ""
        text = f"{number(value, digits)}{arrow}\n{names.get(column, '')}".strip()
        left = 0.47 if pictures is None else 0.71
        ax.text(left, height, text, transform=ax.transAxes, va="center", linespacing=1.1)


def _windows(verdict: Convergence) -> list[tuple[float, float]]:
    """Ranges for train and test that show the last two ends, and the tolerance as a band.

    One range for both, and earlier ends too, where the band is a sixteenth of it at least.
    """
    tolerance, windows = verdict.tolerance, []
    ends = [[end.value for end in side] for side in (verdict.train_ends, verdict.test_ends)]
    seen = [[*y[-2:], y[-2] - tolerance, y[-2] + tolerance] for y in ends]
    if np.ptp(seen) <= 32 * tolerance:
        ends, seen = [[*ends[0], *ends[1]]] * 2, [[*seen[0], *seen[1]]] * 2
    for y, shown in zip(ends, seen, strict=True):
        for value in reversed(y):
            shown = [*shown, value] if np.ptp([*shown, value]) <= 32 * tolerance else shown
        room = 0.22 * np.ptp(shown)
        windows.append((min(shown) - room, max(shown) + room))
    return windows


def _draw_ends(ax: Axes, side: _Side, verdict: Convergence, window: tuple[float, float]) -> None:
    """The ends of the runs by their length, and where the last may end."""
    y = np.array([end.value for end in getattr(verdict, f"{side.name}_ends")])
    change: Estimate = getattr(verdict, f"{side.name}_changes")[-1]
    x, tolerance, color = np.arange(len(y)), verdict.tolerance, side.color
    before, reach = y[-2], [x[-2], x[-1] + 0.35]
    ax.fill_between(reach, before - tolerance, before + tolerance, color=color, alpha=0.18, lw=0)
    ax.plot(reach, [before, before], color=color, lw=0.9, ls=(0, (4, 3)))
    ax.plot(x, y, "o-", color=color, lw=2.2, ms=7, mec="white")
    if math.isfinite(change.high - change.low):
        ax.plot(x[[-1, -1]], [before + change.low, before + change.high], color=color, lw=1.3)
    ax.set(xlim=(-0.35, reach[1]), ylim=window, xlabel="epochs of the run")
    lengths = [f"{len(run)}" for run in verdict.histories]
    ax.set_xticks(x, [f"{n} (kept)" if n == f"{verdict.keep}" else n for n in lengths])
    style.set_ticks(4, ax.yaxis)
    ax.set_title(f"{side.name}, end of each run; tolerance ±{tolerance:.3g}", color=color)
    digits = max(0, 1 - math.floor(math.log10(tolerance)))
    said = ("+" if change.value > 0 else "") + number(change.value, digits)
    said += ", within" if max(change.high, -change.low) < tolerance else ""
    said += ", beyond" if max(change.low, -change.high) >= tolerance else ""
    style.beside(ax, y[-1], number(y[-1], digits), color=color, weight="bold", size=12)
    style.beside(ax, y[-1], said, down=14, color=color)
    for at in range(len(y) - 1):  # named where the line is not
        text = number(y[at], digits)
        up = y[at] > y[at - 1] if at else y[0] >= y[1]
        if not window[0] < y[at] < window[1]:
            text, up = f"{text} {'↑' if y[at] > before else '↓'}", y[at] < before
        ax.annotate(text, (at, np.clip(y[at], *window)), (-15 if at else 7, 4 if up else -4),
                    textcoords="offset points", color=color, ha="right" if at else "left",
                    va="bottom" if up else "top")  # fmt: skip


def _draw_changes(ax: Axes, verdict: Convergence, unit: str) -> str:
    """What the last doubling did to each test point; also in words."""
    before, after = verdict.histories[-2:]
    change = after.test.values[-1].astype(float) - before.test.values[-1]
    low, high = np.quantile(np.append(change, 0), (0.004, 0.996))
    step = (high - low) / 36 or 1.0
    bins = step * np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    better, worse = change[change < 0], change[change > 0]
    for found, alpha in ((better, 0.4), (worse, 1)):
        counts = np.histogram(np.clip(found, bins[0], bins[-1]), bins)[0]
        ax.stairs(counts, bins, fill=True, color=TEST_COLOR, alpha=alpha)
    said = [f"{100 * len(found) / len(change):.0f} % {name} by {number(abs(found.mean()), 1)}"
            for name, found in (("better", better), ("worse", worse)) if len(found)]  # fmt: skip
    ax.text(0, 1, "\n".join(said), va="top", linespacing=1.2, transform=ax.transAxes)
    ax.axvline(0, ymax=0.65, color=INK, lw=0.9)
    ax.set(ylim=(0, 1.55 * ax.get_ylim()[1]), yticks=[], xlabel="change (nats)")
    ax.spines.left.set_visible(False)
    style.set_ticks(4, ax.xaxis)
    lengths = f"{len(before)} → {len(after)} epochs"
    ax.set_title(lengths, color=INK)
    return f"Of the test {unit}s, {lengths}: {', '.join(said) or 'no change'} on average."


def _write(figure: Any, title: str, unit: str, note: str, narrow: bool) -> None:
    """What one should see, what it is measured in, and what the parts are."""
    title = textwrap.fill(title, 33 if narrow else 82)
    subtitle = f"−ELBO in nats per {unit}, lower is better"
    left, top = PAD / figure.get_figwidth(), 1 - PAD / figure.get_figheight()
    room = "\n" * (title.count("\n") + 1)
    figure.suptitle(room + subtitle, x=left, ha="left", size=10.5, linespacing=1.5)
    figure.text(left, top, title, ha="left", va="top", size=13, weight="bold")
    note = textwrap.fill(note, 49 if narrow else 118)
    figure.supxlabel(note, x=left, ha="left", size=9.5, color=GREY, linespacing=1.3)


def _finding(verdict: Convergence) -> str:
    """The title: what the curve shows."""
    less = "hardly" if verdict.test_changes[-1].high < 0 else "no longer"
    return {
        "converged": "Train and test end together: doubling the training hardly changes either",
        "still improving": f"Test still falls: {len(verdict.histories[-1])} epochs are not enough",
        "overfitting": f"Train still improves, test {less}: keep the run of {verdict.keep} epochs",
    }.get(verdict.verdict, f"These runs cannot tell: {verdict.why}")


def _note(history: History, train: _Side, test: _Side, verdict: bool, unit: str) -> str:
    """What bands, dots, ring and bars are, and which averages stand beyond the scale."""
    kept = f"{len(train.last):,} train and {len(test.last):,} test"
    of = f"{history.train.points:,} train and {history.test.points:,} test"
    note = f"Bands: the middle 50 and 90 % of {kept}{f' of {of}' if kept != of else ''} {unit}s. "
    note += "Dots: some of them in each epoch, spread sideways."
    starts = {"train in epoch 1": train.curve.mean[0], "test before training": test.curve.mean[0]}
    digits, high = decimals(test.last), axis_limits(history)[1]
    off = [f"{when}, {number(nats, digits)}" for when, nats in starts.items() if nats > high]
    note += f" Beyond the scale: {'; '.join(off)}." if off else ""
    note += " Ring: train after the run, evaluated as test is." if len(history.train_end) else ""
    return note + (" Outermost bars: all changes beyond them, too." if verdict else "")
