"""Every figure of the lab, drawn from the numbers alone, and each told in words as well.

The learning curve has a module of its own, style and files another; all names are here.
Units are nats per data point. Drawing disturbs no generator.
"""

from __future__ import annotations

import math
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.utils import make_grid

from vae_canvas import (
    CLASS_COLORS,
    DOTS,
    GREY,
    INK,
    NARROW,
    TEST_COLOR,
    WIDTH,
    LabFigure,
    describe,
    ink,
    new_figure,
    number,
    save_figure,
    set_ticks,
    styled,
)
from vae_helpers import looking_at
from vae_learning_curve import plot_learning_curve

if TYPE_CHECKING:
    from vae_helpers import VAE

__all__ = [
    "CLASS_COLORS",
    "TEST_COLOR",
    "LabFigure",
    "decoded_plane",
    "new_figure",
    "plot_images",
    "plot_latents",
    "plot_learning_curve",
    "plot_manifold",
    "plot_plane",
    "plot_points",
    "plot_rate_distortion",
    "save_figure",
]

# Of the latent plane: within ±_LIMIT lie nearly 99 % of a standard normal.
_LIMIT, _SIDE = 2.5, 18


@styled()
def plot_images(rows: dict[str, Tensor], *, narrow: bool = False) -> LabFigure:
    """Rows of images ``(n, C, H, W)``, 8-bit or in [0, 1], named at the left.

    Or named above them if ``narrow``, for a page 400 pixels wide.
    """
    width, left, above = (NARROW, 0.0, 0.28) if narrow else (WIDTH, 1.35, 0.05)  # inches
    columns = max(7, *(len(images) for images in rows.values()))
    strips = [_strip(images, columns) for images in rows.values()]
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


def _strip(images: Tensor, columns: int) -> np.ndarray:
    """Images ``(n, C, H, W)`` side by side, RGB; white where there are fewer than ``columns``."""
    tiles = torch.ones(columns, 3, *images.shape[2:])
    for tile, image in zip(tiles, images, strict=False):
        tile.copy_(ink(image))
    strip: np.ndarray = make_grid(tiles, columns, pad_value=1)[:, 1:-1, 1:-1].numpy()
    return strip.transpose(1, 2, 0)


@styled()
def plot_points(clouds: dict[str, Tensor], *, narrow: bool = False) -> LabFigure:
    """Points in the plane, ``(N, 2)`` each, on one scale, under their names.

    Side by side; one below the other if ``narrow``, for a page 400 pixels wide.
    """
    count, options = len(clouds), {"squeeze": False, "sharex": True, "sharey": True}
    if narrow:
        axes = new_figure(count, 1, figsize=(NARROW, 2.3 * count), **options)[1]
    else:
        axes = new_figure(1, count, figsize=(WIDTH, 3.2), **options)[1]
    for ax, (name, points) in zip(axes.flat, clouds.items(), strict=True):
        x, y = points.detach().cpu().T.numpy()
        ax.plot(x, y, color=TEST_COLOR, ms=3, alpha=0.6, **DOTS)
        ax.set_title(name, loc="left")
    said = (
        f"{name} ({len(points):,} points, {_extent(points[:, 0])} by {_extent(points[:, 1])})"
        for name, points in clouds.items()
    )
    figure = describe(axes.flat[0], f"Points in the plane: {'; '.join(said)}.")
    figure.narrow = None if narrow else partial(plot_points, clouds, narrow=True)
    return figure


def _extent(values: Tensor) -> str:
    return f"{number(values.min().item(), 1)} to {number(values.max().item(), 1)}"


def plot_plane(model: VAE, z: Tensor, labels: Tensor) -> LabFigure:
    """A latent plane: ``plot_latents`` of points, and beside it ``plot_manifold``."""
    return _plane(decoded_plane(model, _LIMIT, _SIDE), z, labels)


@styled()
def _plane(means: Tensor, z: Tensor, labels: Tensor, *, narrow: bool = False) -> LabFigure:
    size, grid = ((NARROW, 6.8), (2, 1)) if narrow else ((WIDTH, 4.4), (1, 2))
    figure, (first, second) = new_figure(*grid, figsize=size)
    plot_latents(z, labels, first)
    _draw_decoded(means, second)
    figure.narrow = None if narrow else partial(_plane, means, z, labels, narrow=True)
    return figure


@styled()
def plot_latents(z: Tensor, labels: Tensor, ax: Axes | None = None) -> LabFigure:
    """Points ``(N, 2)`` of the latent plane, coloured by label and named where their median is."""
    ax = new_figure()[1] if ax is None else ax
    points, classes = z.detach().cpu().numpy(), labels.cpu().numpy()
    names = np.unique(classes).tolist()
    for name in names:
        x, y = points[classes == name].T
        ax.plot(x, y, color=CLASS_COLORS[name % 10], ms=4, alpha=0.6, **DOTS)
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    ax.set_aspect("equal", "datalim")
    medians = np.array([np.median(points[classes == name], 0) for name in names])
    for name, (x, y) in zip(names, _apart(medians, _in_data(22, ax)), strict=True):
        box = {"boxstyle": "circle,pad=0.25", "fc": "w", "ec": CLASS_COLORS[name % 10], "lw": 2.5}
        ax.text(x, y, str(name), fontsize=11, weight="bold", ha="center", va="center", bbox=box)
    places = zip(names, medians.tolist(), strict=True)
    spots = ", ".join(f"{name} at ({number(x, 1)}, {number(y, 1)})" for name, (x, y) in places)
    text = f"{len(z):,} data points in the latent plane, coloured by label, with their medians:"
    return describe(ax, f"{text} {spots}.")


def _in_data(size: float, ax: Axes) -> float:
    """A length in points (1/72 inch) on the paper, as one along the axes' x."""
    figure: Any = ax.figure
    figure.draw_without_rendering()  # only then the axes have their place and their scale
    (left, _), (right, _) = ax.transData.inverted().transform([(0, 0), (size * figure.dpi / 72, 0)])
    return float(right - left)


def _apart(places: np.ndarray, distance: float) -> np.ndarray:
    """The places ``(n, 2)``, pushed from each other until none are closer than ``distance``."""
    turn = np.arange(len(places))[:, None] + [0, np.pi / 2]
    places = places + 1e-3 * distance * np.cos(turn)  # so that equal places differ
    for _ in range(200):
        away = places[:, None] - places
        far = np.linalg.norm(away, axis=-1, keepdims=True) + 1e-30
        places = places + 0.3 * (np.clip(distance - far, 0, None) * away / far).sum(1)
    return places


@styled()
def plot_manifold(model: VAE, ax: Axes | None = None, side: int = _SIDE) -> LabFigure:
    """The decoder's means over a grid of the latent plane, for a model with D = 2 on images."""
    ax = new_figure()[1] if ax is None else ax
    return _draw_decoded(decoded_plane(model, _LIMIT, side), ax)


def _draw_decoded(means: Tensor, ax: Axes) -> LabFigure:
    side = math.isqrt(len(means))
    half = _LIMIT * side / (side - 1)
    tiles = torch.stack([ink(image) for image in means])
    picture = make_grid(tiles, side, padding=0).permute(1, 2, 0).numpy()
    ax.imshow(picture, extent=(-half, half, -half, half))
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    text = f"What the decoder draws on {side} × {side} points of the latent plane"
    return describe(ax, f"{text}, from −{_LIMIT} to {_LIMIT} along z₁ and z₂.")


def decoded_plane(model: VAE, limit: float, side: int) -> Tensor:
    """Means ``(side², C, H, W)`` over [−limit, limit]², read as a page: z₁ to the right, z₂ up."""
    line = torch.linspace(-limit, limit, side)
    grid = torch.cartesian_prod(-line, line).flip(1).to(next(model.parameters()))
    with looking_at(model):
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
