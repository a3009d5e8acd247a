"""Is the committed report fit to be read? `python tools/check_notebook.py NOTEBOOK HTML`.

The notebook must have been executed from top to bottom by a clean kernel, on MNIST, with the
modules that lie beside it, and hold neither errors nor warnings, progress bars, widgets or paths of
the machine; `figures/` must hold what it shows; the HTML must have been exported from this very
notebook. And it must be short, its cells compute or tell, and its numbers are in one style.
"""

import ast
import hashlib
import re
import statistics
import sys
from base64 import b64decode
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import nbformat
from export import NARROW
from nbformat import NotebookNode

__all__ = ["faults"]

MAX_CELLS, MAX_LINES, MAX_MEDIAN, MAX_WORDS = 45, 20, 8, 6500
MAX_WORDS_IN_STRINGS = 25  # of one cell: more than that is prose
LOCAL_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|Users|usr|opt|mnt|content)/[\w./-]+")
FORMULA = re.compile(r"\$\$.*?\$\$|\$.*?\$", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
# In links, in the names of papers and in years there are digits that are no quantities.
NAME = re.compile(r"\]\([^)]*\)|arXiv:?\s*[\d.]+|\b(?:1[89]|20)\d\d\b")
LARGE = re.compile(r"(?<![\w.,-])\d{4,}(?![\w-])")
HYPHEN = re.compile(r"(?<![\w)\]`.-])-\d[\d.,]*")
CLOSE = re.compile(r"\d\s?±\d|\d±\s?\d|\d \+/- \d")
PAIR = re.compile(r"(\d[\d,]*(?:\.\d+)?) ± (\d[\d,]*(?:\.\d+)?)")


def faults(notebook_path: Path, html_path: Path) -> list[str]:
    """Every reason why the report should not be committed."""
    notebook = nbformat.read(notebook_path, as_version=4)
    folder = notebook_path.parent
    found = [*_run_faults(notebook, folder), *_figure_faults(notebook, folder / "figures")]
    found += [*_length_faults(notebook), *_number_faults(notebook)]
    source = hashlib.sha256(notebook_path.read_bytes()).hexdigest()
    if not html_path.exists() or source not in html_path.read_text(encoding="utf-8"):
        found.append(f"is not what {html_path.name} was exported from")
    return found


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _outputs(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Each output, after the first line of its cell."""
    for cell in _code(notebook):
        for output in cell.outputs:
            yield repr(cell.source.partition("\n")[0]), output


def _run_faults(notebook: NotebookNode, folder: Path) -> Iterator[str]:
    cells = _code(notebook)
    if [c.execution_count for c in cells] != list(range(1, len(cells) + 1)):
        yield "was not executed top to bottom from a clean kernel"
    if "widgets" in notebook.metadata:
        yield "holds widget state"
    text = ""
    for cell, output in _outputs(notebook):
        if output.output_type == "error":
            yield f"holds an error, in cell {cell}"
        if output.get("name") == "stderr":
            yield f"holds a warning or a progress bar, in cell {cell}"
        data = output.get("data", {})
        if any("widget" in mime for mime in data):
            yield f"holds a widget, in cell {cell}"
        text += output.get("text", "")
        text += "".join(str(v) for mime, v in data.items() if mime.startswith("text/"))
    yield from (f"shows a path of a machine: {path}" for path in LOCAL_PATH.findall(text))
    if not re.search(r"(?<!-)MNIST: 60,000 train", text):
        yield "was not executed on MNIST"
    if f"modules {digest(folder)}" not in text:
        yield "was not made with the present vae_*.py and explorer.html"


def digest(folder: Path) -> str:
    """What the notebook prints of the code that it shows results of."""
    files = sorted([folder / "explorer.html", *folder.glob("vae_*.py")])
    code = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(code).hexdigest()[:12]


def _figure_faults(notebook: NotebookNode, folder: Path) -> Iterator[str]:
    """The pictures in the notebook and in the folder must be the same, byte for byte."""
    shown = {}
    for cell, output in _outputs(notebook):
        for mime in {"image/png", NARROW} & set(output.get("data", {})):
            shown[b64decode(output.data[mime])] = cell
    stored = {path.read_bytes(): path for path in sorted(folder.glob("*.png"))}
    for picture in shown.keys() - stored.keys():
        yield f"shows a figure that is not in figures/, in cell {shown[picture]}"
    for picture in stored.keys() - shown.keys():
        yield f"does not show figures/{stored[picture].name}: remove it, or run again"


def _length_faults(notebook: NotebookNode) -> Iterator[str]:
    cells = _code(notebook)
    lines = [sum(bool(line.strip()) for line in c.source.splitlines()) for c in cells]
    if len(cells) > MAX_CELLS:
        yield f"has {len(cells)} code cells; {MAX_CELLS} at most"
    if statistics.median_high(lines or [0]) > MAX_MEDIAN:
        yield f"has a median of {statistics.median_high(lines)} lines of code; {MAX_MEDIAN} at most"
    for cell, count in zip(cells, lines, strict=True):
        name = repr(cell.source.partition("\n")[0])
        if count > MAX_LINES:
            yield f"has {count} lines in cell {name}; {MAX_LINES} at most"
        if _words_in_strings(cell.source) > MAX_WORDS_IN_STRINGS:
            yield f"composes sentences in cell {name}: a cell computes or it tells"
    prose = _words(FORMULA.sub(" x ", " ".join(_prose(notebook))))
    results = _words(" ".join(_printed(output) for _, output in _outputs(notebook)))
    code = sum(_words(cell.source) for cell in cells)
    if prose + results + code > MAX_WORDS:
        yield (
            f"has {prose + results + code} words (prose {prose}, results and displayed source "
            f"{results}, code {code}); {MAX_WORDS} at most"
        )
    if not any("parameters" in c.metadata.get("tags", []) for c in cells):
        yield 'has no cell with the tag "parameters", which papermill looks for'


def _prose(notebook: NotebookNode) -> list[str]:
    return [c.source for c in notebook.cells if c.cell_type == "markdown"]


def _printed(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text
    return output.get("data", {}).get("text/markdown", "")


def _words(text: str) -> int:
    return len(re.findall(r"\w[\w'’-]*", text))


def _words_in_strings(source: str) -> int:
    """Words in string literals of 30 characters or more, docstrings included."""
    tree = ast.parse(source)
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return sum(_words(text) for text in texts if isinstance(text, str) and len(text) >= 30)


def _number_faults(notebook: NotebookNode) -> Iterator[str]:
    """The report writes 1,163 and −0.5 and 112.39 ± 0.34; code and formulas have their own way."""
    for text in [*_prose(notebook), *(_shown(output) for _, output in _outputs(notebook))]:
        text = NAME.sub("", FORMULA.sub("", CODE.sub("", text)))
        yield from (f"writes {number} without a comma" for number in LARGE.findall(text))
        yield from (f"writes {number} with a hyphen for a minus" for number in HYPHEN.findall(text))
        yield from (f"writes {pair}, not as in 1.2 ± 0.3" for pair in CLOSE.findall(text))
        for value, error in PAIR.findall(text):
            if len(value.partition(".")[2]) != len(error.partition(".")[2]):
                yield f"writes {value} ± {error}: unequal decimals"


def _shown(output: NotebookNode) -> str:
    """What a reader sees of an output as text."""
    if output.output_type == "stream":
        return output.text
    data = output.get("data", {})
    if "text/html" in data:
        html = data["text/html"]
        return "" if "<script" in html else unescape(re.sub(r"<[^>]+>", " ", html))
    if "image/png" in data:
        return output.metadata.get("image/png", {}).get("alt", "")
    return data.get("text/markdown", data.get("text/plain", ""))


if __name__ == "__main__":
    report = faults(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(f"{sys.argv[1]} {fault}" for fault in report))
    sys.exit(f"{len(report)} faults: run `make publish`" if report else 0)
