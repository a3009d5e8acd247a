"""What the report shows beside figures: source code, tables, and numbers as they are written."""

import html
import inspect
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["Source", "html_table", "number", "true_minus"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float, digits: int | None = None) -> str:
    """A number as it is written: 1,163, −0.25 and 2.5×10⁹; with ``digits`` decimals, if given."""
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


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = (f"<td>{'</td><td>'.join(map(html.escape, row))}</td>" for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
