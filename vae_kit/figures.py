"""The figures beside the learning curve: images, points, the latent plane, rate and distortion.

Tensors, arrays and lists are taken alike. Drawing disturbs no generator.
"""

import textwrap
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from . import style
from .displays import number
from .history import History
from .style import CLASS_COLORS, GREY, INK, NARROW, TEST_COLOR, WIDTH, LabFigure, new_figure

__all__ = ["label_places", "plot_images", "plot_latents", "plot_points"]
__all__ += ["plot_rate_distortion", "plot_terms"]


@style.styled()
def plot_images(rows: dict[str, Any], *, narrow: bool = False) -> LabFigure:
    """Rows of images ``(n, C, H, W)``, 8-bit or in [0, 1], named at the left.

    Or named above them if ``narrow``, for a page 400 pixels wide.
    """
    width, left, above = (NARROW, 0.0, 0.28) if narrow else (WIDTH, 1.35, 0.05)  # inches
    columns = max(7, *(len(images) for images in rows.values()))
    strips = [style.mosaic(images, columns, margin=1) for images in rows.values()]
    heights = [(width - left) * len(strip) / len(strip[0]) for strip in strips]
    top = total = sum(heights) + above * len(rows)
    figure: Any = plt.figure(figsize=(width, total), layout="none", FigureClass=LabFigure)
    for name, strip, height in zip(rows, strips, heights, strict=True):
        top -= above + height
        ax = figure.add_axes((left / width, top / total, 1 - left / width, height / total))
        ax.imshow(strip, extent=(0, columns, 0, 1), aspect="auto")
        ax.axis("off")
        if narrow:
            ax.set_title(name, fontsize=10.5, color=INK, pad=3)
        else:
            ax.text(-0.1, 0.5, textwrap.fill(name, 16), fontsize=10.5, ha="right", va="center")
    said = "; ".join(f"{name} ({len(images)})" for name, images in rows.items())
    figure.alt = f"Rows of images: {said}."
    figure.narrow = None if narrow else partial(plot_images, rows, narrow=True)
    return figure


@style.styled()
def plot_points(clouds: dict[str, Any], *, narrow: bool = False) -> LabFigure:
    """Points in the plane, ``(N, 2)`` each, on one scale, under their names.

    Side by side; one below the other if ``narrow``, for a page 400 pixels wide.
    """
    count = len(clouds)
    grid, size = ((count, 1), (NARROW, 2.3 * count)) if narrow else ((1, count), (WIDTH, 3.2))
    figure, axes = new_figure(*grid, figsize=size, squeeze=False, sharex=True, sharey=True)
    for ax, (name, points) in zip(axes.flat, clouds.items(), strict=True):
        ax.plot(*_pairs(points).T, color=TEST_COLOR, ms=3, alpha=0.6, **style.DOTS)
        ax.set_title(name, color=INK)
        style.set_ticks(6, ax.xaxis, ax.yaxis)
    said = "; ".join(f"{name} ({len(points):,})" for name, points in clouds.items())
    figure.alt = f"Points in the plane: {said}."
    figure.narrow = None if narrow else partial(plot_points, clouds, narrow=True)
    return figure


def _pairs(points: Any) -> np.ndarray:
    found = style.array(points)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f"points in the plane are (N, 2); got {found.shape}")
    return found


@style.styled()
def plot_latents(z: Any, labels: Any) -> LabFigure:
    """Points ``(N, 2)`` of the latent plane, coloured by label and named where their median is."""
    points = _pairs(z)
    classes = style.class_labels(labels, len(points))
    figure, ax = new_figure()
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    ax.set_aspect("equal", "datalim")
    for name in np.unique(classes).tolist():
        x, y = points[classes == name].T
        ax.plot(x, y, color=CLASS_COLORS[name % 10], ms=4, alpha=0.6, **style.DOTS)
    ax.set_title(f"{len(points):,} codes by label", color=INK)
    figure.draw_without_rendering()  # only then the axes have their place and their scale
    apart = 22 / 72 * figure.dpi * np.ptp(ax.get_xlim()) / ax.bbox.width  # 22 points on the paper
    for name, x, y in label_places(points, classes, apart):
        box = {"boxstyle": "circle,pad=0.25", "fc": "w", "ec": CLASS_COLORS[name % 10], "lw": 2.5}
        ax.text(x, y, str(name), fontsize=11, weight="bold", ha="center", va="center", bbox=box)
    figure.alt = f"{len(points):,} codes in the latent plane, coloured by label."
    return figure


def label_places(
    points: np.ndarray, classes: np.ndarray, distance: float
) -> list[tuple[int, float, float]]:
    """Each label at the median of its points, pushed from others until none is closer."""
    names = np.unique(classes)
    places = np.array([np.median(points[classes == name], 0) for name in names])
    turn = np.arange(len(places))[:, None] + [0, np.pi / 2]
    places = places + 1e-3 * distance * np.cos(turn)  # so that equal places differ
    for _ in range(200):
        away = places[:, None] - places
        far = np.linalg.norm(away, axis=-1, keepdims=True) + 1e-30
        places = places + 0.3 * (np.clip(distance - far, 0, None) * away / far).sum(1)
    return list(zip(names.tolist(), *places.T.tolist(), strict=True))


@style.styled()
def plot_rate_distortion(
    points: dict[float, tuple[float, float]], *, narrow: bool = False
) -> LabFigure:
    """(Rate, distortion) in nats by β, each with its −ELBO, and the diagonal of the lowest one.

    Both axes have one scale. ``narrow`` draws for a page 400 pixels wide.
    """
    figure, ax = new_figure(figsize=(NARROW, 4.2) if narrow else (5.6, 5.6))
    betas = sorted(points)
    rate, distortion = np.array([points[beta] for beta in betas], float).T
    total = rate + distortion
    best = int(total.argmin())
    left = min(0.0, rate.min())
    side = max(1.3 * np.ptp(distortion), 1.6 * (rate.max() - left)) or 1.0
    bottom = (distortion.max() + distortion.min() - side) / 2
    ax.set(xlim=(left, left + side), ylim=(bottom, bottom + side), aspect="equal")
    ax.set(xlabel="rate: KL (nats)", ylabel="distortion: −log p(x|z) (nats)")
    style.set_ticks(6, ax.xaxis, ax.yaxis)
    ax.axline((rate[best], distortion[best]), slope=-1, color=GREY, lw=1.5, zorder=0)
    ax.plot(rate, distortion, "o-", color=TEST_COLOR, lw=2, ms=7, mec="white", clip_on=False)
    said = []
    for beta, x, y in zip(betas, rate, distortion, strict=True):
        ax.annotate(f"β = {beta:g}: {number(x + y, 1)}", (x, y), (8, 7), fontsize=10.5,
                    textcoords="offset points")  # fmt: skip
        said.append(f"β = {beta:g}: {number(x, 1)} and {number(y, 1)}")
    lowest = number(total[best], 1)
    title = f"Beside each β its −ELBO, the sum of both. It is {lowest}, the lowest, along the line."
    ax.set_title(textwrap.fill(title, 40 if narrow else 60), pad=10)
    figure.alt = f"Rate and distortion in nats. {'; '.join(said)}. {title}"
    figure.narrow = None if narrow else partial(plot_rate_distortion, points, narrow=True)
    return figure


@style.styled()
def plot_terms(history: History, *, narrow: bool = False) -> LabFigure:
    """Both terms of the test −ELBO by epoch, in nats, on scales of one size."""
    grid, size = ((2, 1), (NARROW, 4.6)) if narrow else ((1, 2), (WIDTH, 2.8))
    figure, axes = new_figure(*grid, figsize=size, sharex=True)
    said = []
    terms = {"reconstruction, −log p(x|z)": history.test.mean - history.kl, "KL term": history.kl}
    span = 1.1 * max(np.ptp(nats[1:]) for nats in terms.values()) or 1.0
    for ax, (name, nats) in zip(axes, terms.items(), strict=True):
        ax.plot(np.arange(1, len(nats)), nats[1:], color=TEST_COLOR, lw=2.2)
        ax.plot(len(nats) - 1, nats[-1], "o", color=TEST_COLOR)
        middle = (nats[1:].min() + nats[1:].max()) / 2
        ax.set(ylim=(middle - span / 2, middle + span / 2))
        ax.set_title(f"{name} (nats)", color=INK)
        style.set_ticks(5, ax.xaxis, integer=True)
        style.set_ticks(4, ax.yaxis)
        style.beside(ax, nats[-1], number(nats[-1], 1), color=TEST_COLOR, weight="bold")
        said.append(f"{name} from {number(nats[1], 1)} to {number(nats[-1], 1)}")
        ax.set_xlabel("epoch" if ax is axes[1] or not narrow else "")
    figure.alt = f"By epoch, on the test set: {'; '.join(said)}."
    figure.narrow = None if narrow else partial(plot_terms, history, narrow=True)
    return figure
