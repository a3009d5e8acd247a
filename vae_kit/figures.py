"""The figures beside the learning curve: images, points, the latent plane, rate and distortion.

Tensors, arrays and lists are taken alike. Drawing disturbs no generator.
"""

from __future__ import annotations

import math
import textwrap
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from vae_helpers import VAE, evaluating

from .displays import number
from .history import History
from .style import (
    CLASS_COLORS,
    DOTS,
    GREY,
    INK,
    NARROW,
    TEST_COLOR,
    WIDTH,
    LabFigure,
    array,
    beside,
    class_labels,
    describe,
    mosaic,
    new_figure,
    set_ticks,
    styled,
)

__all__ = ["decoded_plane", "label_places", "plane_limit", "plot_images", "plot_latents"]
__all__ += ["plot_plane", "plot_points", "plot_rate_distortion", "plot_terms"]

_SIDE = 18  # of the grid of images on the latent plane


@styled()
def plot_images(rows: dict[str, Any], *, narrow: bool = False) -> LabFigure:
    """Rows of images ``(n, C, H, W)``, 8-bit or in [0, 1], named at the left.

    Or named above them if ``narrow``, for a page 400 pixels wide.
    """
    width, left, above = (NARROW, 0.0, 0.28) if narrow else (WIDTH, 1.35, 0.05)  # inches
    columns = max(7, *(len(images) for images in rows.values()))
    strips = [mosaic(images, columns, margin=1) for images in rows.values()]
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
    figure.narrow = None if narrow else partial(plot_images, rows, narrow=True)
    return describe(ax, f"Rows of images: {said}.")


@styled()
def plot_points(clouds: dict[str, Any], *, narrow: bool = False) -> LabFigure:
    """Points in the plane, ``(N, 2)`` each, on one scale, under their names.

    Side by side; one below the other if ``narrow``, for a page 400 pixels wide.
    """
    shape, size = ((len(clouds), 1), (NARROW, 2.3 * len(clouds))) if narrow else (
        (1, len(clouds)), (WIDTH, 3.2))  # fmt: skip
    axes = new_figure(*shape, figsize=size, squeeze=False, sharex=True, sharey=True)[1]
    said = []
    for ax, (name, points) in zip(axes.flat, clouds.items(), strict=True):
        x, y = _pairs(points).T
        ax.plot(x, y, color=TEST_COLOR, ms=3, alpha=0.6, **DOTS)
        ax.set_title(name, color=INK)
        set_ticks(ax.xaxis, 6)
        set_ticks(ax.yaxis, 6)
        extent = (f"{number(v.min(), 1)} to {number(v.max(), 1)}" for v in (x, y))
        said.append(f"{name} ({len(x):,} points, {' by '.join(extent)})")
    figure = describe(axes.flat[0], f"Points in the plane: {'; '.join(said)}.")
    figure.narrow = None if narrow else partial(plot_points, clouds, narrow=True)
    return figure


def _pairs(points: Any) -> np.ndarray:
    found = array(points)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f"points in the plane are (N, 2); got {found.shape}")
    return found


def plot_plane(model: VAE, z: Any, labels: Any) -> LabFigure:
    """A latent plane: ``plot_latents`` of points, and beside it what the decoder draws there."""
    limit = plane_limit(z)
    return _plane(decoded_plane(model, limit, _SIDE), limit, z, labels)


@styled()
def _plane(means: Tensor, limit: float, z: Any, labels: Any, *, narrow: bool = False) -> LabFigure:
    size, grid = ((NARROW, 7.0), (2, 1)) if narrow else ((WIDTH, 4.5), (1, 2))
    figure, (first, second) = new_figure(*grid, figsize=size)
    half = limit * _SIDE / (_SIDE - 1)  # to the outer edges of the outermost images
    for ax in (first, second):
        ax.set(xlim=(-half, half), ylim=(-half, half), xlabel="$z_1$", ylabel="$z_2$")
        ax.set_aspect("equal")
        set_ticks(ax.xaxis, 6)
        set_ticks(ax.yaxis, 6)
    plot_latents(z, labels, first)
    second.imshow(mosaic(means, _SIDE), extent=(-half, half, -half, half))
    second.set_title("what the decoder draws there", color=INK)
    text = f"What the decoder draws on {_SIDE} × {_SIDE} points of the plane"
    describe(second, f"{text}, from −{limit:g} to {limit:g} along z₁ and z₂.")
    figure.narrow = None if narrow else partial(_plane, means, limit, z, labels, narrow=True)
    return figure


@styled()
def plot_latents(z: Any, labels: Any, ax: Axes | None = None) -> LabFigure:
    """Points ``(N, 2)`` of the latent plane, coloured by label and named where their median is."""
    points = _pairs(z)
    classes = class_labels(labels, len(points))
    if ax is None:
        ax = new_figure()[1]
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
        ax.set_aspect("equal", "datalim")
        ax.update_datalim(points)
        ax.autoscale_view()
    names = np.unique(classes).tolist()
    for name in names:
        x, y = points[classes == name].T
        ax.plot(x, y, color=CLASS_COLORS[name % 10], ms=4, alpha=0.6, **DOTS)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    outside = np.sum(np.any((points < (left, bottom)) | (points > (right, top)), axis=1))
    beyond = f", {outside:,} of them beyond the edges" if outside else ""
    ax.set_title(f"{len(points):,} codes by label{beyond}", color=INK)
    for name, x, y in label_places(points, classes, _in_data(22, ax)):
        box = {"boxstyle": "circle,pad=0.25", "fc": "w", "ec": CLASS_COLORS[name % 10], "lw": 2.5}
        ax.text(x, y, str(name), fontsize=11, weight="bold", ha="center", va="center", bbox=box)
    medians = label_places(points, classes, 0)
    spots = ", ".join(f"{name} at ({number(x, 1)}, {number(y, 1)})" for name, x, y in medians)
    text = f"{len(points):,} data points in the latent plane{beyond}, coloured by label, with their"
    return describe(ax, f"{text} medians: {spots}.")


def _in_data(size: float, ax: Axes) -> float:
    """A length in points (1/72 inch) on the paper, as one along the axes' x."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # only then the axes have their place and their scale
    (left, _), (right, _) = ax.transData.inverted().transform([(0, 0), (size * figure.dpi / 72, 0)])
    return float(right - left)


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


def plane_limit(z: Any) -> float:
    """Half the side of the square of the latent plane that figures show.

    In it lie nearly 99 % of a standard normal, and 98 % of the codes ``(N, 2)``.
    """
    return max(2.5, math.ceil(2 * np.quantile(np.abs(_pairs(z)).max(1), 0.98)) / 2)


def decoded_plane(model: VAE, limit: float, side: int) -> Tensor:
    """Means ``(side², C, H, W)`` over [−limit, limit]², read as a page: z₁ to the right, z₂ up."""
    line = torch.linspace(-limit, limit, side)
    grid = torch.cartesian_prod(-line, line).flip(1).to(next(model.parameters()))
    with evaluating(model):
        means: Tensor = model.decoder(grid).mean
    return means.cpu()


@styled()
def plot_rate_distortion(
    points: dict[float, tuple[float, float]], *, narrow: bool = False
) -> LabFigure:
    """(Rate, distortion) in nats by β, and diagonals of equal sum, which is the −ELBO.

    Both axes have one scale. A diagonal begins, at rate 0, where the distortion is its −ELBO.
    ``narrow`` draws it for a page 400 pixels wide.
    """
    ax = new_figure(figsize=(NARROW, 4.4) if narrow else (WIDTH, 5.4))[1]
    betas = sorted(points)
    rate, distortion = np.array([points[beta] for beta in betas], float).T
    left = min(0.0, rate.min())
    ratio, room = (1.0, 1.5) if narrow else (1.6, 1.28)  # width by height; for the last label
    height = max(1.25 * np.ptp(distortion), room * (rate.max() - left) / ratio) or 1.0
    bottom = (distortion.max() + distortion.min() - height) / 2
    right, top = left + ratio * height, bottom + height
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    set_ticks(ax.xaxis, 6)
    set_ticks(ax.yaxis, 6)
    lowest = int((rate + distortion).argmin())
    best = (rate + distortion)[lowest]
    for total in (best, *ax.yaxis.get_major_locator().tick_values(left + bottom, right + top)):
        ends = np.array([left, right])
        ax.plot(ends, total - ends, color="#999999", lw=1.8 if total == best else 0.8, zorder=0)
        if left < total - top < right and total != best:
            ax.text(total - top, top, number(total), color=GREY, ha="center", va="bottom")
    ax.plot(rate, distortion, "o-", color=TEST_COLOR, lw=2, ms=7, mec="white")
    for beta, x, y in zip(betas, rate, distortion, strict=True):
        ax.annotate(f"β = {beta:g}", (x, y), (8, 7), textcoords="offset points", fontsize=10.5,
                    bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip
    ax.set(xlabel="rate: KL (nats)", ylabel="distortion: −log p(x|z) (nats)")
    said = f"{number(best, 1)} at β = {betas[lowest]:g}"
    title = f"The −ELBO is equal along each diagonal. Bold: the lowest, {said}."
    ax.set_title(textwrap.fill(title, 40) if narrow else title, pad=16)
    pairs = (" and ".join(number(value, 1) for value in points[beta]) for beta in betas)
    listed = "; ".join(f"β = {beta:g}: {pair}" for beta, pair in zip(betas, pairs, strict=True))
    text = f"{listed}. The lowest −ELBO, {said}, is the bold diagonal."
    figure = describe(ax, f"Rate and distortion in nats. {text}")
    figure.narrow = None if narrow else partial(plot_rate_distortion, points, narrow=True)
    return figure


@styled()
def plot_terms(history: History, *, narrow: bool = False) -> LabFigure:
    """Both terms of the test −ELBO by epoch, each on a scale of its own, in nats."""
    grid, size = ((2, 1), (NARROW, 4.6)) if narrow else ((1, 2), (WIDTH, 2.8))
    figure, axes = new_figure(*grid, figsize=size, sharex=True)
    said = []
    terms = {"reconstruction, −log p(x|z)": history.test.mean - history.kl, "KL term": history.kl}
    for ax, (name, nats) in zip(axes, terms.items(), strict=True):
        ax.plot(np.arange(1, len(nats)), nats[1:], color=TEST_COLOR, lw=2.2)
        ax.plot(len(nats) - 1, nats[-1], "o", color=TEST_COLOR)
        ax.set_title(f"{name} (nats)", color=INK)
        set_ticks(ax.xaxis, 5, integer=True)
        set_ticks(ax.yaxis, 4)
        beside(ax, nats[-1], number(nats[-1], 1), color=TEST_COLOR, weight="bold")
        said.append(f"{name} from {number(nats[1], 1)} to {number(nats[-1], 1)}")
    axes[-1].set_xlabel("epoch")
    axes[0].set_xlabel("" if narrow else "epoch")
    figure.narrow = None if narrow else partial(plot_terms, history, narrow=True)
    return describe(axes[0], f"By epoch, on the test set: {'; '.join(said)}.")
