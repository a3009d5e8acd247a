"""What the report shows beside figures: source code, tables, and numbers as they are written."""

from __future__ import annotations

import html
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Averages", "Source", "html_table", "number", "true_minus"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float, digits: int | None = None) -> str:
    """A number as it is written: 1,163, −0.25 and 2.5×10⁹; with so many decimals, if given."""
    text = f"{x:,.9g}" if digits is None else f"{round(x, digits) + 0.0:,.{digits}f}"
    if abs(x) >= 1e7 or "e" in text:
        mantissa, _, exponent = f"{x:.3e}".partition("e")
        text = f"{float(mantissa):g}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return true_minus(text)


def true_minus(text: str) -> str:
    """The text with true minus signs where numbers or names are negative."""
    return re.sub(r"(?<!\w)-(?=[\w ])", "−", text)


class Source:
    """Classes and functions as they stand in their modules, each docstring by its first line."""

    def __init__(self, *things: Any) -> None:
        text = "\n\n".join(inspect.getsource(thing).rstrip() for thing in things)
        longer = r'(?m)^( *"""(?:(?!""").)+)\n(?:(?!.*""").*\n)* *"""$'
        self.text = re.sub(longer, r'\1"""', text)

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


class Averages:
    """A table of averages over data points, each ± its standard error.

    ``values`` gives each row by name: a value per data point, ``(N,)``, or one number, which has
    no standard error. ``of`` is the title of the names, ``unit`` that of the numbers. Raises
    ``ValueError`` for another shape, for no values, and for values that are no finite numbers.
    """

    def __init__(self, of: str, unit: str, values: Mapping[str, Any], digits: int = 2) -> None:
        self.head = [of, unit]
        self.cells = [[name, _average(each, digits)] for name, each in values.items()]

    def __repr__(self) -> str:  # numbers in ASCII, which every console can show
        table = [[cell.replace("±", "+/-").replace("−", "-") for cell in row]
                 for row in [self.head, *self.cells]]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = (map(str.ljust, row, widths) for row in table)
        return "\n".join("  ".join(row).rstrip() for row in padded)

    def _repr_html_(self) -> str:
        return html_table(self.head, self.cells)


def _average(values: Any, digits: int) -> str:
    x = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values)
    if x.dtype.kind not in "iuf" or x.ndim > 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            f"give one finite number, or one per data point (N,); got {x.dtype} of shape {x.shape}"
        )
    x = x.astype(np.float64)
    error = f" ± {number(x.std(ddof=1) / math.sqrt(x.size), digits)}" if x.size > 1 else ""
    return number(x.mean(), digits) + error


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = (f"<td>{'</td><td>'.join(map(html.escape, row))}</td>" for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
