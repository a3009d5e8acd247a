"""Check that the report is fit to be read: `check_notebook.py vae_lab.ipynb vae_lab.html`.

The notebook must have been executed from top to bottom by a clean kernel, on MNIST, and hold
neither errors nor warnings, progress bars, widgets or paths of the machine that executed it; the
HTML must have been exported from this very notebook.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

__all__ = ["faults"]

LOCAL_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|Users|usr|opt|mnt|content)/[\w./-]+")
BAR = re.compile(r"\d(?:it/s|s/it)\b")


def faults(notebook_path: Path, html_path: Path) -> list[str]:
    """Every reason why the report should not be committed."""
    notebook = nbformat.read(notebook_path, as_version=4)
    found = list(_notebook_faults(notebook))
    source = hashlib.sha256(notebook_path.read_bytes()).hexdigest()
    if not html_path.exists() or source not in html_path.read_text(encoding="utf-8"):
        found.append(f"is not what {html_path.name} was exported from")
    return found


def _notebook_faults(notebook: NotebookNode) -> Iterator[str]:
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    if [c.execution_count for c in cells] != list(range(1, len(cells) + 1)):
        yield "was not executed top to bottom from a clean kernel"
    if "widgets" in notebook.metadata:
        yield "holds widget state"
    shown = ""
    for cell in cells:
        name = repr(cell.source.partition("\n")[0])
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"holds an error, in cell {name}"
            if output.get("name") == "stderr":
                yield f"holds a warning or a progress bar, in cell {name}"
            if any("widget" in mime for mime in data):
                yield f"holds a widget, in cell {name}"
            shown += output.get("text", "")
            shown += "".join(str(v) for mime, v in data.items() if mime.startswith("text/"))
    if BAR.search(shown):
        yield "holds a progress bar"
    yield from (f"shows a path of a machine: {path}" for path in LOCAL_PATH.findall(shown))
    if not re.search(r"(?<!-)MNIST: 60,000 train", shown):
        yield "was not executed on MNIST"


if __name__ == "__main__":
    report = faults(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(f"{sys.argv[1]} {fault}" for fault in report))
    sys.exit(f"{len(report)} faults: run `make publish`" if report else 0)
