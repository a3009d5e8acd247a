"""What the report shows besides figures: code and tables, which Jupyter displays by themselves."""

from __future__ import annotations

import html
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Averages", "Source", "html_table", "unbroken"]


class Source:
    """Classes and functions as they stand in their modules."""

    def __init__(self, *things: Any) -> None:
        self.text = "\n\n".join(inspect.getsource(thing).rstrip() for thing in things)

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
    if isinstance(values, Tensor):
        values = values.detach().cpu().double()
    x = np.asarray(values)
    if x.dtype.kind not in "iuf" or x.ndim > 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(
            "give one finite number, or one per data point (N,), and leave out points whose value "
            f"is NaN or infinite; got {x.dtype} of shape {x.shape}"
        )
    x = x.astype(np.float64)
    shown = f"{x.mean():,.{digits}f}".replace("-", "−")
    return shown if x.size == 1 else f"{shown} ± {x.std(ddof=1) / math.sqrt(x.size):,.{digits}f}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = (f"<td>{'</td><td>'.join(map(html.escape, row))}</td>" for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def unbroken(text: str) -> str:
    """The text, with no-break spaces in parentheses: an interval stays on one line."""
    return re.sub(r"\([^()]*\)", lambda found: found[0].replace(" ", "\N{NBSP}"), text)
