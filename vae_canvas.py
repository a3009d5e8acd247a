"""How the lab's figures look, how numbers are written in them, and what becomes of them.

Figures behave as matplotlib's own, in scripts and in notebooks: they stay open until they are
shown or saved. Each says in words, in its ``alt``, what it shows.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from torch import Tensor

__all__ = [
    "CLASS_COLORS",
    "DOTS",
    "GREY",
    "HALO",
    "INK",
    "NARROW",
    "PAD",
    "TEST_COLOR",
    "TRAIN_COLOR",
    "WIDTH",
    "LabFigure",
    "describe",
    "ink",
    "new_figure",
    "number",
    "save_figure",
    "set_ticks",
    "styled",
    "true_minus",
]

# Okabe & Ito's blue and orange-red: told apart by the colour-blind, and the same in all figures.
TRAIN_COLOR, TEST_COLOR = "#0072B2", "#D55E00"
# Ten colours that stay apart under each kind of colour blindness (Petroff 2021, arXiv 2107.02270).
CLASS_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
INK, GREY = "#222222", "#595959"
# Inches: a page shows 100 pixels of each, so 9.5 points, the smallest letters, are 13 pixels high.
WIDTH, NARROW, PAD = 8.6, 3.6, 0.03
_STYLE: Any = {
    "font.size": 9.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "vae-lab",  # the same figure gives the same file
    "svg.fonttype": "none",
}
HALO = [patheffects.withStroke(linewidth=3, foreground="white")]
DOTS: Any = {"marker": ".", "mew": 0, "ls": "", "rasterized": True}  # clouds, not vectors


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Within it matplotlib draws in the lab's style; also to decorate functions that draw.

    ``rc_context`` would take back what a notebook's backend sets when the first figure wakes it.
    """
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

    @styled()
    def draw(self, renderer: Any) -> None:
        """Draw in the lab's style, whoever asks for it: some parts are made only now."""
        super().draw(renderer)

    def _repr_mimebundle_(self, **_: Any) -> Any:
        if "inline" not in mpl.get_backend():
            return {}
        picture = _Picture.of(self)
        plt.close(self)  # else the notebook would show it a second time at the end of the cell
        return picture._repr_mimebundle_()


@dataclass(frozen=True)
class _Picture:
    """What a notebook stores of a figure: PNG files by type, and what is said of them."""

    files: dict[str, bytes]
    metadata: dict[str, Any]

    @classmethod
    def of(cls, figure: Figure) -> _Picture:
        files = {"image/png": _png(figure)}
        if narrow := getattr(figure, "narrow", None):
            drawn = narrow()
            files["application/vnd.vae-lab.narrow+png"] = _png(drawn)
            plt.close(drawn)
        width = round(100 * figure.get_figwidth())
        return cls(files, {"image/png": {"alt": getattr(figure, "alt", ""), "width": width}})

    def _repr_mimebundle_(self, **_: Any) -> Any:
        data = {kind: base64.b64encode(file).decode() for kind, file in self.files.items()}
        return {"text/plain": self.metadata["image/png"]["alt"], **data}, self.metadata


def _png(figure: Figure) -> bytes:
    """The figure as a file as small as may be without a loss: opaque, by a palette if it fits."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=200)
    picture = Image.open(drawn).convert("RGB")
    if picture.getcolors(256):
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(file, format="png", dpi=(200, 200), optimize=True)
    return file.getvalue()


@styled()
def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[LabFigure, Any]:
    """``plt.subplots`` in the lab's style and width. Say in ``figure.alt`` what it shows."""
    given: Any = {"figsize": (WIDTH, 4.6), "layout": "constrained"} | options
    figure: Any
    figure, axes = plt.subplots(rows, columns, FigureClass=LabFigure, **given)
    return figure, axes


def save_figure(figure: Figure, name: str, folder: Path | None = None) -> _Picture:
    """Write ``name`` as PNG (200 dpi) and SVG, close the figure, and return it for a notebook.

    Where there is a drawing for narrow pages, it becomes ``name_narrow.png``. The folder is by
    default ``VAE_LAB_FIGURES``, else ``build/figures``, so that a trial run does not touch the
    figures of the report. Raises ``ValueError`` where the figure does not say what it shows.
    """
    if not getattr(figure, "alt", ""):
        raise ValueError(f'say what {name} shows, for those who cannot see it: figure.alt = "…"')
    folder = folder or Path(os.environ.get("VAE_LAB_FIGURES", "build/figures"))
    folder.mkdir(parents=True, exist_ok=True)
    picture = _Picture.of(figure)
    for suffix, file in zip(("", "_narrow"), picture.files.values(), strict=False):
        (folder / f"{name}{suffix}.png").write_bytes(file)
    metadata = {"Date": None, "Creator": None}
    figure.savefig(folder / f"{name}.svg", dpi=200, metadata=metadata)
    plt.close(figure)
    return picture


def describe(ax: Axes, text: str) -> LabFigure:
    """Add to the ``alt`` of the figure that holds these axes, and return the figure."""
    figure: Any = ax.figure
    figure.alt = f"{getattr(figure, 'alt', '')} {text}".strip()
    lab_figure: LabFigure = figure
    return lab_figure


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float, digits: int | None = None) -> str:
    """A number as it is written: 1,163, −0.25 and 2.5×10⁹; with so many decimals, if given."""
    text = f"{x:,.9g}" if digits is None else f"{round(x, digits) + 0.0:,.{digits}f}"
    if abs(x) >= 1e7 or "e" in text:
        mantissa, _, exponent = f"{x:.3e}".partition("e")
        text = f"{float(mantissa):g}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def true_minus(text: str) -> str:
    """The text with true minus signs where numbers or names are negative."""
    return re.sub(r"(?<!\w)-(?=[\w ])", "−", text)


def set_ticks(axis: Any, count: int, integer: bool = False) -> None:
    """At most ``count`` steps at round numbers, written by ``number``."""
    axis.set_major_locator(MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))


def ink(image: Tensor) -> Tensor:
    """An image ``(C, H, W)``, 8-bit or in [0, 1], as RGB in [0, 1]; grey is ink on white."""
    image = image.detach().cpu()
    image = image / 255 if image.dtype == torch.uint8 else image.float().clamp(0, 1)
    return (1 - image).expand(3, -1, -1) if len(image) == 1 else image
