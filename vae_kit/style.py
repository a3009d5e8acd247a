"""Style of figures, their files, and what a notebook stores of them.

Figures behave as matplotlib's own, in scripts and in notebooks: they stay open until they are
shown or saved. Each says in words, in its ``alt``, what it shows. All its colours are the lab's.
"""

import base64
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageChops
from torch import Tensor

from .arrays import as_tensor
from .displays import number

__all__ = ["CLASS_COLORS", "DOTS", "GREY", "HALO", "INK", "NARROW", "PAD", "TEST_COLOR"]
__all__ += ["TRAIN_COLOR", "WIDTH", "LabFigure", "array", "beside", "class_labels", "mosaic"]
__all__ += ["new_figure", "save_figure", "set_ticks", "styled"]

# Okabe & Ito's blue and orange-red, which the colour-blind tell apart; dark enough to be read.
TRAIN_COLOR, TEST_COLOR = "#0072B2", "#C65300"
# Ten colours that stay apart under each kind of colour blindness (Petroff 2021, arXiv 2107.02270).
CLASS_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
INK, GREY = "#222222", "#595959"
# Inches: a page shows 100 pixels of each, so 9.5 points, the smallest letters, are 13 pixels high.
WIDTH, NARROW, PAD = 8.6, 3.6, 0.03
_DPI = 200
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]
DOTS: Any = {"marker": ".", "mew": 0, "ls": "", "rasterized": True}  # clouds, not vectors

# matplotlib's own defaults, whatever the user's style, and over them the lab's. What a notebook's
# backend sets when the first figure wakes it must stay.
_NO_STYLE = ("backend", "interactive", "figure.max_open_warning")
_STYLE: Any = {k: v for k, v in mpl.rcParamsDefault.items() if k not in _NO_STYLE} | {
    "font.size": 9.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.labelcolor", "text.color"), INK),
    "svg.hashsalt": "vae-lab",  # the same figure gives the same file
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the lab's style: a context manager, and a decorator of functions."""
    before = {name: mpl.rcParams[name] for name in _STYLE}
    mpl.rcParams.update(_STYLE)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


class LabFigure(Figure):
    """A figure that says what it shows, and may have a drawing of its own for narrow pages."""

    alt = ""
    """What the figure shows, in words, for those who cannot see it."""
    narrow: Callable[[], Figure] | None = None
    """Draws the same for a page 400 pixels wide."""

    # Some parts are made only when they are drawn, whoever asks for it.
    draw = styled()(Figure.draw)
    savefig = styled()(Figure.savefig)

    def _repr_mimebundle_(self, **_: Any) -> Any:
        if "inline" not in mpl.get_backend():
            return {}
        picture = _Picture(self)
        plt.close(self)  # else the notebook would show it a second time at the end of the cell
        return picture._repr_mimebundle_()


class _Picture:
    """What a notebook stores of a figure: PNG files by type, and what is said of them."""

    def __init__(self, figure: Figure) -> None:
        self.alt = getattr(figure, "alt", "")
        self.width = round(100 * figure.get_figwidth())
        self.files = {"image/png": _png(figure)}
        if narrow := getattr(figure, "narrow", None):
            drawn = narrow()
            self.files["application/vnd.vae-lab.narrow+png"] = _png(drawn)
            plt.close(drawn)

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: Any) -> Any:
        data = {kind: base64.b64encode(file).decode() for kind, file in self.files.items()}
        metadata = {"image/png": {"alt": self.alt, "width": self.width}}
        return {"text/plain": self.alt, **data}, metadata


def _png(figure: Figure) -> bytes:
    """The figure as an opaque PNG file, with 256 colours where no eye can tell them from all."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    whole = Image.open(drawn).convert("RGB")
    few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    lost = np.asarray(ImageChops.difference(whole, few.convert("RGB")))
    picture = few if lost.max() <= 20 else whole  # of 255 levels
    picture.save(file, format="png", dpi=(_DPI, _DPI), optimize=True)
    return file.getvalue()


@styled()
def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[LabFigure, Any]:
    """``plt.subplots`` in the lab's style and width. Say in ``figure.alt`` what it shows."""
    given: Any = {"figsize": (WIDTH, 4.6), "layout": "constrained"} | options
    figure: Any
    figure, axes = plt.subplots(rows, columns, FigureClass=LabFigure, **given)
    return figure, axes


def save_figure(figure: Figure, name: str, folder: str | os.PathLike[str] = "") -> _Picture:
    """Write ``name`` as PNG and SVG, close the figure, and return it for a notebook.

    Where there is a drawing for narrow pages, it becomes ``name_narrow.png``. The folder is by
    default ``VAE_LAB_FIGURES``, else ``build/figures``, so that a trial run does not touch the
    figures of the report. Raises ``ValueError`` where the figure does not say what it shows.
    """
    if not getattr(figure, "alt", ""):
        raise ValueError(f'say what {name} shows, for those who cannot see it: figure.alt = "…"')
    place = Path(folder or os.environ.get("VAE_LAB_FIGURES", "build/figures")).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\.(png|svg)$", "", name)
    picture = _Picture(figure)
    for suffix, file in zip(("", "_narrow"), picture.files.values(), strict=False):
        (place / f"{name}{suffix}.png").write_bytes(file)
    figure.savefig(place / f"{name}.svg", dpi=_DPI, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return picture


def beside(ax: Axes, y: float, text: str, down: float = 0, **style: Any) -> None:
    """A label right of the panel, at a height, or by so many points below it."""
    ax.annotate(text, (1, y), (6, -down), xycoords=("axes fraction", "data"), va="center",
                textcoords="offset points", annotation_clip=False, **style)  # fmt: skip


def set_ticks(count: int, *axes: Any, integer: bool = False) -> None:
    """At most ``count`` steps at round numbers, written by ``number``."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(lambda x, _: number(x))


def array(data: Any) -> np.ndarray:
    """Tensors, arrays, tables and lists as an array: where data enter a figure."""
    x = as_tensor(data)
    if isinstance(x, Tensor):
        return (x.double() if x.is_floating_point() else x).cpu().numpy()
    return np.asarray(x)


def class_labels(labels: Any, count: int) -> np.ndarray:
    """Whole numbers ``(count,)``; ``ValueError`` for other labels."""
    found = array(labels)
    if found.shape != (count,) or found.dtype.kind not in "iub":
        raise ValueError(f"labels are {count:,} whole numbers; got {found.dtype} of {found.shape}")
    return found.astype(int)


def mosaic(images: Any, columns: int, margin: int = 0) -> np.ndarray:
    """Images ``(N, C, H, W)``, 8-bit or in [0, 1], in rows of ``columns``: a picture ``(H, W, 3)``.

    Grey is ink on white. Raises ``ValueError`` for another shape.
    """
    x = array(images)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images are (N, C, H, W), of one channel or three; got {x.shape}")
    if x.dtype.kind in "iu" and x.max(initial=0) > 1:
        x = x / 255
    x = np.clip(x.astype(float), 0, 1)
    if x.shape[1] == 1:
        x = np.repeat(1 - x, 3, axis=1)
    padding = (0, -len(x) % columns), (0, 0), (margin, margin), (margin, margin)
    x = np.pad(x, padding, constant_values=1)
    rows, (height, width) = len(x) // columns, x.shape[2:]
    grid = x.reshape(rows, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, 3)
