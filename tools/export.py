"""Export an executed notebook as one self-contained HTML page.

    python tools/export.py vae_lab.ipynb build/vae_lab.html

The page needs no network, and no JavaScript to be complete: formulas become MathML here, figures
and styles are embedded. Whatever would spoil it (an error, a figure without a description or a
caption, a formula that cannot be typeset) stops the export with a message that names the cell.

A Markdown cell that begins with "**Figure.**" is the caption of the figure in the cell above it,
and is numbered here. An image may bring a second drawing for narrow windows, of the type `NARROW`.
Cells whose source JupyterLab hides start folded and are not printed; of cells with the tag
"remove-input" only the outputs are shown.
"""

import argparse
import re
import struct
import sys
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import nbformat
from jinja2 import Environment, FileSystemLoader
from math_core import LatexError, LatexToMathML
from mistune import BlockState
from nbconvert.filters import Highlight2HTML, strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

__all__ = ["NARROW", "ReportError", "html_page", "main", "typeset"]

RICHEST_FIRST = ("text/html", "text/markdown", "image/png", "text/plain")
NARROW = "application/vnd.vae-lab.narrow+png"
NARROW_WIDTH = 360  # CSS pixels, for which such a drawing is made: the column of a telephone
CAPTION = "<p><strong>Figure.</strong>"  # how the HTML of a caption begins
REMOTE = re.compile(r"(?i)(https?:)?//")
highlight = Highlight2HTML(pygments_lexer="ipython3", extra_formatter_options={"nowrap": True})
mathml = LatexToMathML(fancy_error=False)


class ReportError(Exception):
    """A fault of the notebook that stops the export; the message says where and why."""


# Text --------------------------------------------------------------------------------------------


def typeset(tex: str, display: str) -> str:
    """Turn TeX into MathML; `display` is "inline" or "block"."""
    try:
        return mathml.convert_with_local_state(tex, displaystyle=display == "block")
    except LatexError as error:
        raise ReportError(f"cannot typeset ${tex}$: {error}") from error


def _plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html)).strip()


def _unbroken(text: str) -> str:
    """Keep 1 ± 2, 3 to 4 and 5 % on one line each, by no-break spaces."""
    torn = r" ± (?=[\d.])|(?<=\d) to (?=[−\d])|(?<=\d) (?=%)"
    return re.sub(torn, lambda match: match[0].replace(" ", "\u00a0"), text)


def _terminal(text: str) -> str:
    return _unbroken(escape(strip_ansi(text), quote=False))


@dataclass
class Heading:
    """An entry of the table of contents; `html` is its inner HTML, formulas included."""

    level: int
    html: str

    @property
    def text(self) -> str:
        return _plain(self.html)

    @property
    def anchor(self) -> str:
        """JupyterLab's rule, so that one link works in both places."""
        return self.text.replace(" ", "-")


class Prose(IPythonRenderer):
    """nbconvert's Markdown renderer, with formulas typeset and headings and links collected."""

    def __init__(self, folder: Path) -> None:
        super().__init__(escape=False, embed_images=True, path=str(folder))
        self.headings: list[Heading] = []
        self.links: set[str] = set()

    def render_tokens(self, tokens: Iterable[dict[str, Any]], state: BlockState) -> str:
        tokens = list(tokens)
        for formula, text in pairwise(tokens):
            if formula["type"] == "inline_math" and text["type"] == "text":
                rest = text["raw"].lstrip("-.,;:!?)")
                formula["attrs"] = {"stop": text["raw"].removesuffix(rest)}
                text["raw"] = rest
        return super().render_tokens(tokens, state)

    def inline_math(self, body: str, stop: str = "") -> str:
        # Browsers would let the full stop after a formula begin the next line.
        math = typeset(body, "inline")
        return f'<span class="formula">{math}{stop}</span>' if stop else math

    def block_math(self, body: str) -> str:
        # A formula wider than the column scrolls alone, and by keyboard too.
        return f'<span class="display scroll" tabindex="0">{typeset(body, "block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def text(self, text: str) -> str:
        if "$" in text:
            raise ReportError(f"a formula is left open in {text!r}")
        return _unbroken(super().text(text))

    def codespan(self, text: str) -> str:
        return _unbroken(super().codespan(text))

    def paragraph(self, text: str) -> str:
        if text.lstrip().startswith("|"):
            raise ReportError(f"a table with uneven rows; in formulas write \\mid for |: {text!r}")
        return super().paragraph(text)

    def heading(self, text: str, level: int, **attrs: object) -> str:
        heading = Heading(level, text)
        if heading.anchor in (h.anchor for h in self.headings):
            raise ReportError(f"a second heading named {heading.text!r}: links cannot tell them")
        self.headings.append(heading)
        link = f'<a href="#{quote(heading.anchor)}">{text}</a>'
        return f'<h{level} id="{escape(heading.anchor)}">{link}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.startswith("#"):
            self.links.add(unquote(url[1:]))
        return super().link(text, url, title)

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        style = f' style="text-align: {align}"' if align else ""
        if head and text and not re.sub(r"<math.*?</math>|<[^>]+>|\s", "", text):
            # Screen readers announce columns by their header's text; a bare formula has none.
            text = text.replace("<math ", '<math aria-hidden="true" ')
            text += f'<span class="unseen">{escape(_plain(text), quote=False)}</span>'
        tag = "th" if head else "td"
        return f"<{tag}{style}>{text}</{tag}>\n"

    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0"><table>\n{text}</table></div>\n'

    def block_code(self, code: str, info: str | None = None) -> str:
        html = highlight(code, language=info.split()[0]) if info else escape(code)
        return f'<pre class="code scroll" tabindex="0"><code>{html}</code></pre>\n'


class Audit(HTMLParser):
    """Refuses HTML with images that are not described, or parts that live elsewhere."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "img" and not given.get("alt", "").strip():
            raise ReportError("an <img> has no alt text")
        source = given.get("src") or (given.get("href", "") if tag == "link" else "")
        if REMOTE.match(source) or (tag == "img" and not source.startswith("data:")):
            raise ReportError(f"<{tag}> would load {source!r}: embed it")


def _audited(html: str) -> str:
    Audit().feed(html)
    return html


# Outputs -----------------------------------------------------------------------------------------


@dataclass
class Picture:
    """An embedded PNG; its size is told so that the page does not jump while it loads."""

    address: str
    width: int
    height: int


@dataclass
class Output:
    """An output as it is shown: `kind` is image, html, prose, text or warning."""

    kind: str
    html: str = ""
    alt: str = ""
    picture: Picture | None = None
    narrow: Picture | None = None
    caption: "Cell | None" = None


def _output(output: NotebookNode, prose: MarkdownWithMath) -> Output:
    if output.output_type == "error":
        raise ReportError(f"the cell failed with {output.ename}: {output.evalue}")
    if output.output_type == "stream":
        # A warning, such as that of the stand-in for MNIST, must not be overlooked.
        kind = "warning" if output.name == "stderr" else "text"
        return Output(kind, _terminal(output.text.strip("\n")))
    mime = next((m for m in RICHEST_FIRST if m in output.data), None)
    if mime is None or any("widget" in m for m in output.data):
        raise ReportError(f"cannot show an output of type {', '.join(output.data)}")
    data = output.data[mime]
    if mime == "text/html":
        # What is interactive arrives as it is.
        return Output("html", _audited(data) if "<script" in data else _static(_audited(data)))
    if mime == "text/markdown":
        return Output("prose", _audited(prose.render(data)))
    return Output("text", _terminal(data)) if mime == "text/plain" else _figure(output)


def _static(html: str) -> str:
    """HTML whose tables and listings scroll where they are wider than the window."""
    wide = r"(?s)<(table|pre)\b.*?</\1>"
    return _unbroken(re.sub(wide, r'<div class="scroll" tabindex="0">\g<0></div>', html))


def _figure(output: NotebookNode) -> Output:
    """An image with its description, at the width in CSS pixels that its metadata give."""
    metadata = output.metadata.get("image/png", {})
    if not (alt := metadata.get("alt", "").strip()):
        raise ReportError('a figure has no alt text: set metadata["image/png"]["alt"]')
    narrow = output.data.get(NARROW)
    return Output(
        "image",
        alt=alt,
        picture=_picture(output.data["image/png"], metadata.get("width")),
        narrow=_picture(narrow, NARROW_WIDTH) if narrow else None,
    )


def _picture(data: str, width: int | None) -> Picture:
    drawn, height = struct.unpack(">II", b64decode(data)[16:24])
    width = width or drawn
    address = f"data:image/png;base64,{''.join(data.split())}"
    return Picture(address, width, round(height * width / drawn))


# Cells -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Cell:
    """A cell as it is shown; `name` is for messages, `html` its prose or its highlighted source."""

    id: str
    name: str
    kind: str
    html: str = ""
    lines: int = 0
    folded: bool = False
    outputs: list[Output] = field(default_factory=list)

    @property
    def is_caption(self) -> bool:
        return self.kind == "prose" and self.html.startswith(CAPTION)

    @property
    def figure(self) -> Output | None:
        """What a caption below this cell belongs to: its image, else its last HTML."""
        shown = [o for o in self.outputs if o.kind in ("image", "html")]
        return max(shown, key=lambda o: (o.kind == "image", shown.index(o)), default=None)


def _cell(cell: NotebookNode, name: str, prose: MarkdownWithMath) -> Iterator[Cell]:
    """Lay out one cell, where there is something to show."""
    shown = Cell(cell.get("id", ""), name, "prose" if cell.cell_type == "markdown" else "code")
    if cell.cell_type == "markdown":
        shown.html = _audited(prose.render(cell.source))
    elif cell.cell_type == "code":
        shown.outputs = [_output(output, prose) for output in cell.outputs]
        if "remove-input" not in cell.metadata.get("tags", []):
            shown.html = highlight(cell.source).strip()
            shown.lines = len(cell.source.strip().splitlines())
            shown.folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    if shown.html or shown.outputs:
        yield shown


def _place_captions(cells: list[Cell]) -> list[Cell]:
    """Number the captions and put each under its figure; return the cells that remain."""
    number = 0
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        figure = cell.figure
        if below and below.is_caption and figure:
            number += 1
            below.html = below.html.replace("Figure.", f"Figure {number}.", 1)
            figure.caption = below
        if [o.kind for o in cell.outputs].count("image") > 1:
            raise ReportError(f"{cell.name}: two figures need two captions, and so two cells")
        if figure and figure.kind == "image" and not figure.caption:
            raise ReportError(f'{cell.name}: no caption: begin the next cell with "**Figure.**"')
    if stray := [cell.name for cell in cells if cell.is_caption]:
        raise ReportError(f"{stray[0]}: a caption, but the cell above it shows no figure")
    placed = [o.caption for cell in cells for o in cell.outputs if o.caption]
    return [cell for cell in cells if cell not in placed]


# The page ----------------------------------------------------------------------------------------


def html_page(source: bytes, folder: Path) -> str:
    """Return the page of the notebook in a file's bytes; `folder` is where its images lie."""
    renderer = Prose(folder)
    prose = MarkdownWithMath(renderer)
    cells: list[Cell] = []
    for number, cell in enumerate(nbformat.reads(source, as_version=4).cells, 1):
        name = f"cell {number} ({cell.source.strip().partition(chr(10))[0][:60]!r})"
        renderer.attachments = cell.get("attachments", {})
        try:
            cells += _cell(cell, name, prose)
        except ReportError as error:
            raise ReportError(f"{name}: {error}") from error
    headings = renderer.headings
    if [h.level for h in headings].count(1) != 1 or headings[0].level != 1:
        raise ReportError("the notebook needs one first-level heading, its title, on top")
    anchors = {h.anchor for h in headings} | {f"cell-id={cell.id}" for cell in cells}
    _check_links(renderer.links - anchors)
    folder = Path(__file__).resolve().parent / "report"
    template = Environment(loader=FileSystemLoader(folder)).get_template("index.html.j2")
    return template.render(
        cells=_place_captions(cells),
        title=headings[0].text,
        headings=headings[1:],
        source=sha256(source).hexdigest(),  # tells a stale page from a fresh one
    )


def _check_links(dangling: set[str]) -> None:
    some = ", ".join(sorted(dangling)[:3])
    if any(link.startswith("cell-id=") for link in dangling):
        raise ReportError(
            f"links lead to cells that are not there, such as {some}: if a tool has given the "
            "cells new ids, run it so that it keeps them, as with `nbstripout --keep-id`"
        )
    if dangling:
        raise ReportError(f"links lead to headings that are not there, such as {some}")


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    try:
        page = html_page(options.notebook.read_bytes(), options.notebook.resolve().parent)
    except ReportError as error:
        print(f"{options.notebook}: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page + "\n", encoding="utf-8", newline="\n")
    print(f"{options.output}: {len(page.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
