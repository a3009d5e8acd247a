"""Explorers of a latent plane and of the cloud around a learning curve, for a browser.

Both are ``explorer.html`` with their content filled in: numbers as JSON, images as sheets of tiles.
They need neither kernel nor network, and where no script runs nothing of them is in the way.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from IPython.display import HTML
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vae_helpers import VAE, evaluating

from .arrays import as_floats
from .displays import number
from .evaluation import evaluate
from .figures import decoded_plane, label_places, plane_limit
from .learning_curve import axis_limits, decimals
from .style import CLASS_COLORS, TEST_COLOR, array, class_labels, mosaic

if TYPE_CHECKING:
    from .history import History

__all__ = ["explore_cloud", "explore_plane"]

_SIDE = 33  # of the plane's grid: fine enough for a hand
_COLUMNS = 30  # images in a row of a sheet
_POINTS = {"plane": 1000, "cloud": 800}  # that can be touched, or fewer where they take more than
_BYTES = {"plane": 450_000, "cloud": 300_000}
_STILL_CLOUD = (
    "<p>Where scripts run, each dot of the cloud can be touched here: it shows its image, and its "
    "own curve through all epochs.</p>"
)


def explore_plane(model: VAE, x: Any, labels: Any) -> HTML:
    """An explorer of the latent plane: what the decoder draws there, and where the images lie.

    For a model with D = 2, images ``(N, 1, H, W)`` in its space and their integer labels ``(N,)``.
    It shows the codes of the images, the first 1,000 or fewer where the page would exceed 450 kB,
    and the decoder's means on a grid of the plane, the same part of it as ``plot_plane``; where no
    script runs, the grid stands as a picture. Raises ``ValueError`` for other data or another D.
    """
    weight = next(model.parameters())
    x = as_floats(x, weight.dtype, weight.device)
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"the explorer shows images (N, 1, H, W); got {tuple(x.shape)}")
    labels = class_labels(labels, len(x))
    elbo = evaluate(model, x, device=weight.device, precision="float32")
    with evaluating(model):
        z = model.encoder(x).mean.cpu()
    if z.shape[1:] != (2,):
        raise ValueError(f"the explorer shows a latent plane, D = 2; got D = {z.shape[1]}")
    limit = plane_limit(z)
    near = (z.abs().amax(1) <= limit).numpy()
    terms = torch.column_stack([z, -elbo.log_likelihood.cpu(), elbo.kl.cpu()]).double().numpy()
    grid = _sheet(decoded_plane(model, limit, _SIDE), _SIDE)
    alt = (
        f"What the decoder draws on a grid of the latent plane, from −{limit:g} to {limit:g} "
        f"along z₁ and z₂, {_SIDE} points each way."
    )

    def content(points: int) -> dict[str, Any]:
        chosen = np.flatnonzero(near)[:points]
        numbers = zip(terms[chosen].round(3).tolist(), labels[chosen].tolist(), strict=True)
        return {
            "limit": limit,
            "side": _SIDE,
            "tile": x.shape[2:],
            "columns": _COLUMNS,
            "colors": CLASS_COLORS,
            "names": label_places(terms[near, :2], labels[near], limit / 8),
            "beyond": int((~near).sum()),
            "points": [[z1, z2, label, *parts] for (z1, z2, *parts), label in numbers],
            "images": _sheet(x[chosen], _COLUMNS),
            "reconstructions": _sheet(model.reconstruct(x[chosen]), _COLUMNS),
        }

    return _page("plane", content, int(near.sum()), f'<img src="{grid}" alt="{alt}">')


def explore_cloud(history: History, images: Any, labels: Any) -> HTML:
    """The test panel of the learning curve, to be touched: every dot is an image with its curve.

    ``images`` ``(N, C, H, W)``, 8-bit or with values in [0, 1], of one channel or three, and their
    integer ``labels`` ``(N,)`` are the whole test set that ``fit`` was given, in its order; points
    are numbered in it from 0. Of those that the history kept, a fixed random sample can be touched:
    800, or fewer where the page would exceed 300 kB. The average is over all points, the bands are
    over all that the history kept. The −ELBO has the limits of ``plot_learning_curve``. Images
    "got worse" whose −ELBO rose from the middle of the run to its end.

    Raises ``ValueError`` for a history without a finished epoch, for data that are not images and
    for those of another test set.
    """
    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to explore yet")
    images = array(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"the explorer shows images (N, 1 or 3, H, W); got {images.shape}")
    if len(images) != history.test.points:
        raise ValueError(
            f"images must be those of all {history.test.points:,} test points, in the order in "
            f"which fit had them; got {len(images):,}"
        )
    if images.dtype.kind == "f" and (images.min() < 0 or images.max() > 1):
        raise ValueError("images are 8-bit or in [0, 1]: give the raw images, or rescale them")
    labels = class_labels(labels, len(images))
    rows = history.test.values.astype(np.float64)
    order = np.random.default_rng(0).permutation(rows.shape[1])  # disturbs no generator
    low, high = axis_limits(history)
    digits, since = decimals(rows[-1]), len(history) // 2

    def content(points: int) -> dict[str, Any]:
        columns = order[:points]
        numbers = history.test.index[columns]
        # Values as they will be shown; their steps from epoch to epoch take fewer characters.
        values = np.rint(rows[:, columns] * 10**digits).astype(np.int64)
        bands = np.quantile(rows, (0.05, 0.25, 0.75, 0.95), axis=1)
        return {
            "range": [low, high],
            "tile": images.shape[2:],
            "columns": _COLUMNS,
            "color": TEST_COLOR,
            "ticks": {"up": _ticks(low, high), "across": _ticks(0, len(history), integer=True)},
            "recorded": rows.shape[1],
            "worse": {"since": since, "count": int((rows[-1] > rows[since]).sum())},
            "digits": digits,
            "mean": history.test.mean.round(digits).tolist(),
            "bands": bands.round(digits).tolist(),
            "numbers": numbers.tolist(),
            "labels": labels[numbers].tolist(),
            "steps": np.diff(values, axis=0, prepend=0).T.tolist(),
            "images": _sheet(images[numbers], _COLUMNS),
        }

    return _page("cloud", content, rows.shape[1], _STILL_CLOUD)


def _ticks(low: float, high: float, **options: Any) -> list[tuple[float, str]]:
    """At most six steps at round numbers within the range, and how they are written."""
    values = MaxNLocator(6, steps=[1, 2, 5, 10], **options).tick_values(low, high)
    return [(float(value), number(value)) for value in values if low <= value <= high]


def _page(kind: str, content: Callable[[int], dict[str, Any]], points: int, still: str) -> HTML:
    """The explorer of a kind, with as many points as fit; ``still`` is for want of scripts."""
    page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    page = page.replace("@KIND@", kind).replace("@STILL@", still)
    points, room = min(points, _POINTS[kind]), _BYTES[kind] - len(page)
    while True:
        data = html.escape(json.dumps(content(points), separators=(",", ":")))
        if len(data) <= room or points == 1:
            return HTML(page.replace("@CONTENT@", data))
        points = max(1, int(0.97 * points * room / len(data)))


def _sheet(images: Any, columns: int) -> str:
    """Images ``(N, C, H, W)`` → address of one WebP picture that holds them in rows, as ink."""
    picture = Image.fromarray((255 * mosaic(images, columns)).round().astype(np.uint8))
    files = io.BytesIO(), io.BytesIO()
    picture.save(files[0], "WEBP", lossless=True)
    picture.save(files[1], "WEBP", quality=80)
    file = min((file.getvalue() for file in files), key=len)
    return "data:image/webp;base64," + base64.b64encode(file).decode()
