"""What a reader can touch: pages that need neither kernel nor network, only a browser.

Both explorers, of a latent plane and of the cloud around a learning curve, are ``explorer.html``
with their content filled in: numbers as JSON, images as one sheet of tiles. They live in
JupyterLab, in Colab and in an exported report; where no script runs, nothing of them is in the way.
"""

from __future__ import annotations

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
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from vae_figures import CLASS_COLORS, TEST_COLOR, decoded_plane
from vae_helpers import VAE, History, evaluate, looking_at

__all__ = ["explore_cloud", "explore_plane"]

_SIDE = 41  # of the plane's grid: fine enough for a hand, and 28 × 28 images stay below a megabyte
_BULK = 2.5  # within it lie nearly 99 % of a standard normal
_COLUMNS = 30  # images in a row of a sheet
_POINTS = 800  # of the cloud that can be touched, or fewer where they would take more than
_CLOUD_BYTES = 600_000
_STILL_CLOUD = (
    "Where scripts run, each dot of the cloud can be touched here: it shows its image, and its own "
    "curve through all epochs."
)


def explore_plane(model: VAE, x: Tensor, labels: Tensor) -> HTML:
    """An explorer of the latent plane: what the decoder draws there, and where the images lie.

    For a model with D = 2, images ``(N, 1, H, W)`` in its space and their integer labels ``(N,)``.
    It shows the codes of the images, and the decoder's means on a grid of the plane, in 8 bits;
    where no script runs, the grid stands as a picture. Of codes beyond ±2.5, up to 2 % of all,
    the furthest are left out. Raises ``ValueError`` for other data or another D, and
    ``FileNotFoundError`` where its page, ``explorer.html``, does not lie beside this module.
    """
    x = x.to(next(model.parameters()).device)
    if x.ndim != 4 or x.shape[1] != 1 or labels.shape != x.shape[:1]:
        raise ValueError(
            "the explorer shows images (N, 1, H, W) and their labels (N,); "
            f"got {tuple(x.shape)} and {tuple(labels.shape)}"
        )
    elbo = evaluate(model, x, device=x.device, precision="float32")
    with looking_at(model):
        z = model.encoder(x).mean.cpu()
    if z.shape[1:] != (2,):
        raise ValueError(f"the explorer shows a latent plane, D = 2; got D = {z.shape[1]}")
    # A few codes lie so far out that the others would shrink to a blot.
    extent = z.abs().amax(1)
    limit = max(_BULK, extent.quantile(0.98).item())
    near = extent <= limit
    x, labels = x[near.to(x.device)], labels.cpu()[near]
    numbers = torch.column_stack([z, -elbo.log_likelihood.cpu(), elbo.kl.cpu()])[near]
    content = {
        "limit": limit,
        "side": _SIDE,
        "tile": x.shape[2:],
        "columns": _COLUMNS,
        "colors": CLASS_COLORS,
        "points": [
            [round(z1, 3), round(z2, 3), label, round(distortion, 3), round(rate, 3)]
            for (z1, z2, distortion, rate), label in zip(
                numbers.tolist(), labels.tolist(), strict=True
            )
        ],
        "images": _sheet(x, _COLUMNS),
        "reconstructions": _sheet(model.reconstruct(x), _COLUMNS),
    }
    alt = (
        f"What the decoder draws on a grid of the latent plane, from −{limit:.1f} to "
        f"{limit:.1f} along z₁ and z₂, {_SIDE} points each way."
    )
    picture = _sheet(decoded_plane(model, limit, _SIDE), _SIDE)
    return _page("plane", content, f'<img src="{picture}" alt="{alt}">')


def explore_cloud(history: History, images: Tensor, labels: Tensor) -> HTML:
    """The test panel of the learning curve, to be touched: every dot is an image with its curve.

    ``images`` ``(N, C, H, W)``, 8-bit or with values in [0, 1], of one channel or three, and their
    integer ``labels`` ``(N,)`` are the whole test set that ``fit`` was given, in its order; points
    are numbered in it from 0. Of those that the history kept, a fixed random sample can be touched:
    800, or fewer where the page would exceed 600 kB. The average is over all points, the bands are
    over all that the history kept. Values are in nats, to a thousandth of their spread.

    Raises ``ValueError`` for a history without a finished epoch, for data that are not images and
    for those of another test set; ``FileNotFoundError`` as ``explore_plane`` does.
    """
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    _check_test_set(history, images, labels)
    order = np.random.default_rng(0).permutation(history.test.shape[1])  # disturbs no generator
    points = _POINTS
    while True:
        content = _cloud(history, images, labels, order[:points])
        page = _page("cloud", content, f"<p>{_STILL_CLOUD}</p>")
        if len(page.data) <= _CLOUD_BYTES or points == 1:
            return page
        points = points * 4 // 5


def _check_test_set(history: History, images: Tensor, labels: Tensor) -> None:
    """``ValueError`` unless these can be the test set of this history."""
    if not len(history):
        raise ValueError("the history holds no finished epoch: there is nothing to explore yet")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "the explorer shows images (N, C, H, W) of one channel or three; "
            f"got {tuple(images.shape)}. Give flattened images their shape again "
            "(x.reshape(-1, 1, 28, 28)); of other data, plot_learning_curve draws the cloud"
        )
    if len(images) != history.test_points or labels.shape != images.shape[:1]:
        raise ValueError(
            f"the history is of {history.test_points:,} test points; got {len(images):,} images "
            f"and labels {tuple(labels.shape)}. Give the images and labels of the whole test set, "
            "in the order in which fit had them"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are whole numbers; got {labels.dtype}: try labels.long()")
    if images.dtype != torch.uint8 and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            "the explorer shows 8-bit images (uint8) or values in [0, 1]; got values from "
            f"{images.min():g} to {images.max():g}: give the raw images, or rescale them"
        )


def _cloud(history: History, images: Tensor, labels: Tensor, columns: np.ndarray) -> dict[str, Any]:
    """What the page holds: the course of all test points, and these columns one by one."""
    # The bulk of the last epoch, and all averages but the first few, which lie far above.
    settled = history.test_mean[1 + len(history) // 20 :]
    bulk = np.quantile(history.test[-1].astype(np.float64), (0.001, 0.98))
    low, high = min(bulk[0], settled.min()), max(bulk[1], settled.max())
    bands = np.quantile(history.test.astype(np.float64), (0.05, 0.25, 0.75, 0.95), axis=1)
    # Decimals that tell apart what differs by a thousandth of the spread of the last epoch.
    spread = (bands[-1] - bands[0])[-1] or high - low or 1.0
    digits = int(np.clip(3 - math.floor(math.log10(spread)), 0, 6))
    # Values as they will be shown; their steps from epoch to epoch take fewer characters.
    values = np.rint(history.test[:, columns].astype(np.float64) * 10**digits).astype(np.int64)
    room = 0.04 * ((high - low) or 1.0)
    number = history.test_index[columns]
    return {
        "range": [low - room, high + room],
        "tile": images.shape[2:],
        "columns": _COLUMNS,
        "coloured": images.shape[1] == 3,
        "color": TEST_COLOR,
        "recorded": history.test.shape[1],
        "digits": digits,
        "mean": history.test_mean.round(digits).tolist(),
        "bands": bands.round(digits).tolist(),
        "numbers": number.tolist(),
        "labels": labels[number].long().tolist(),
        "steps": np.diff(values, axis=0, prepend=0).T.tolist(),
        "images": _sheet(images[number], _COLUMNS),
    }


def _page(kind: str, content: dict[str, Any], still: str) -> HTML:
    """The explorer of a kind, with its content; ``still`` stands there where no script runs."""
    page = Path(__file__).with_name("explorer.html")
    if not page.exists():
        raise FileNotFoundError(f"{page.name} is missing: it belongs beside {Path(__file__).name}")
    text = page.read_text(encoding="utf-8").replace("@KIND@", kind).replace("@STILL@", still)
    data = json.dumps(content, separators=(",", ":"))
    return HTML(text.replace("@CONTENT@", html.escape(data)))


def _sheet(images: Tensor, columns: int) -> str:
    """Images ``(N, C, H, W)``, 8-bit or in [0, 1] → address of one PNG that holds them in rows.

    Grey values are ink, dark on white; colours stay as they are.
    """
    images = images.detach().cpu() / (255 if images.dtype == torch.uint8 else 1)
    grid = make_grid(images.float().clamp(0, 1), nrow=columns, padding=0)
    picture = 1 - grid[0] if images.shape[1] == 1 else grid.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray((255 * picture).round().byte().numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
