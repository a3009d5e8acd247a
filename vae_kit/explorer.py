"""Explorers of a latent plane and of the cloud around a learning curve, for a browser.

Both are ``explorer.html`` with their content filled in: numbers as JSON, images as sheets of tiles.
They need neither kernel nor network, and without JavaScript show a picture or a sentence.
"""

import base64
import html
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vae_helpers import VAE, evaluating

from .arrays import as_floats
from .displays import number
from .evaluation import evaluate
from .figures import label_places
from .history import History
from .learning_curve import axis_limits, decimals, images_of_test
from .style import CLASS_COLORS, TEST_COLOR, class_labels, mosaic

__all__ = ["explore_cloud", "explore_plane"]

_SIDE = 33  # of the plane's grid: fine enough for a hand
_COLUMNS = 30  # images in a row of a sheet
_POINTS = 800  # that can be touched, at most: some 300 kB of digits


def explore_plane(model: VAE, x: Any, labels: Any) -> HTML:
    """An explorer of the latent plane: what the decoder draws there, and where the images lie.

    For a model with D = 2, images ``(N, 1, H, W)`` in its space and their integer labels ``(N,)``,
    of which the first 800 are shown. The plane holds 98 % of the codes, and nearly 99 % of a
    standard normal at least; where no script runs, what the decoder draws on a grid of it stands as
    a picture. Raises ``ValueError`` for other data or another D.
    """
    weight = next(model.parameters())
    x = as_floats(x, weight.dtype, weight.device)
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"the explorer shows images (N, 1, H, W); got {tuple(x.shape)}")
    labels = class_labels(labels, len(x))
    elbo = evaluate(model, x, device=weight.device, precision="float32")
    with evaluating(model):
        z = model.encoder(x).mean
        if z.shape[1:] != (2,):
            raise ValueError(f"the explorer shows a latent plane, D = 2; got D = {z.shape[1]}")
        outermost = z.abs().amax(1).double().cpu().numpy()
        limit = max(2.5, math.ceil(2 * np.quantile(outermost, 0.98)) / 2)
        line = torch.linspace(-limit, limit, _SIDE)  # read as a page: z₁ to the right, z₂ up
        grid = torch.cartesian_prod(-line, line).flip(1).to(weight)
        still = _sheet(model.decoder(grid).mean, _SIDE)
    near = np.flatnonzero(outermost <= limit)
    chosen = near[:_POINTS]
    terms = torch.column_stack([z, -elbo.log_likelihood, elbo.kl]).double().cpu().numpy()
    numbers = zip(terms[chosen].round(3).tolist(), labels[chosen].tolist(), strict=True)
    content = {
        "limit": limit,
        "side": _SIDE,
        "tile": x.shape[2:],
        "columns": _COLUMNS,
        "colors": CLASS_COLORS,
        "names": label_places(terms[near, :2], labels[near], limit / 8),
        "beyond": len(x) - len(near),
        "points": [[z1, z2, label, *parts] for (z1, z2, *parts), label in numbers],
        "images": _sheet(x[chosen], _COLUMNS),
        "reconstructions": _sheet(model.reconstruct(x[chosen]), _COLUMNS),
    }
    alt = (
        f"What the decoder draws on {_SIDE} × {_SIDE} points of the latent plane, up to ±{limit:g}."
    )
    return _page("plane", content, f'<img src="{still}" alt="{alt}">')


def explore_cloud(history: History, images: Any, labels: Any) -> HTML:
    """The test panel of the learning curve, to be touched: every dot is an image with its curve.

    ``images`` ``(N, C, H, W)``, 8-bit or in [0, 1], of one channel or three, and their integer
    ``labels`` ``(N,)`` are the whole test set that ``fit`` was given, in its order; points are
    numbered in it from 0. Of those that the history kept, 800 at random can be touched. Images "got
    worse" whose −ELBO rose from the middle of the run to its end. Raises ``ValueError`` for a
    history without a finished epoch, and for what are not the images and labels of its test set.
    """
    low, high = axis_limits(history)
    images = images_of_test(history, images)
    labels = class_labels(labels, len(images))
    rows = history.test.values.astype(np.float64)
    columns = np.random.default_rng(0).permutation(rows.shape[1])[:_POINTS]  # disturbs no generator
    numbers = history.test.index[columns]
    digits, since = decimals(rows[-1]), len(history) // 2
    # Values as they will be shown; their steps from epoch to epoch take fewer characters.
    values = np.rint(rows[:, columns] * 10**digits).astype(np.int64)
    bands = np.quantile(rows, (0.05, 0.25, 0.75, 0.95), axis=1)
    content = {
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
    still = "Where scripts run, each dot of the cloud shows its image here, and its own curve."
    return _page("cloud", content, f"<p>{still}</p>")


def _ticks(low: float, high: float, **options: Any) -> list[tuple[float, str]]:
    """At most six steps at round numbers within the range, and how they are written."""
    values = MaxNLocator(6, steps=[1, 2, 5, 10], **options).tick_values(low, high)
    return [(float(value), number(value)) for value in values if low <= value <= high]


def _page(kind: str, content: dict[str, Any], still: str) -> HTML:
    """The explorer of a kind with its content; ``still`` stands there for want of scripts."""
    page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    data = html.escape(json.dumps(content, separators=(",", ":")))
    return HTML(page.replace("@KIND@", kind).replace("@STILL@", still).replace("@CONTENT@", data))


def _sheet(images: Any, columns: int) -> str:
    """Images ``(N, C, H, W)`` → address of one WebP picture that holds them in rows, as ink."""
    picture = Image.fromarray((255 * mosaic(images, columns)).round().astype(np.uint8))
    files = io.BytesIO(), io.BytesIO()
    picture.save(files[0], "WEBP", lossless=True)
    picture.save(files[1], "WEBP", quality=80)
    file = min((file.getvalue() for file in files), key=len)
    return "data:image/webp;base64," + base64.b64encode(file).decode()
