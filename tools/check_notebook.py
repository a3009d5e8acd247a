"""Is the committed report fit to be read? `python tools/check_notebook.py NOTEBOOK HTML`.

The notebook must have been executed from top to bottom by a clean kernel, on MNIST, with the
`vae_helpers.py` and `explorer.html` that lie beside it, and hold neither errors nor warnings,
progress bars, widgets or paths of the machine; the HTML must have been exported from this very
notebook.
"""

import hashlib
import re
import sys
from pathlib import Path

import nbformat

LOCAL_PATH = re.compile(r"(?<![\w./])/(?:home|root|tmp|work|Users|usr|opt|mnt|content)/[\w./-]+")


def faults(notebook_path: Path, html_path: Path) -> list[str]:
    """Every reason why the report should not be committed."""
    notebook = nbformat.read(notebook_path, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    found = []
    if [c.execution_count for c in cells] != list(range(1, len(cells) + 1)):
        found.append("was not executed top to bottom from a clean kernel")
    if "widgets" in notebook.metadata:
        found.append("holds widget state")
    text = ""
    for cell in cells:
        name = cell.source.partition("\n")[0]
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"holds an error, in cell {name!r}")
            if output.get("name") == "stderr":
                found.append(f"holds a warning or a progress bar, in cell {name!r}")
            data = output.get("data", {})
            found += [f"holds a widget, in cell {name!r}" for mime in data if "widget" in mime]
            text += output.get("text", "")
            text += "".join(str(v) for mime, v in data.items() if not mime.startswith("image/"))
    found += [f"shows a path of a machine: {path}" for path in LOCAL_PATH.findall(text)]
    if not re.search(r"(?<!-)MNIST: 60,000 train", text):
        found.append("was not executed on MNIST")
    helpers = hashlib.sha256((notebook_path.parent / "vae_helpers.py").read_bytes()).hexdigest()
    if f"vae_helpers.py {helpers[:12]}" not in text:
        found.append("was not made with the present vae_helpers.py")
    page = (notebook_path.parent / "explorer.html").read_text(encoding="utf-8")
    if page.partition("<script>")[2] not in text:  # nothing of the script is filled in
        found.append("was not made with the present explorer.html")
    source = hashlib.sha256(notebook_path.read_bytes()).hexdigest()
    if not html_path.exists() or source not in html_path.read_text(encoding="utf-8"):
        found.append(f"is not what {html_path.name} was exported from")
    return found


if __name__ == "__main__":
    report = faults(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(f"{sys.argv[1]} {fault}" for fault in report))
    sys.exit(f"{len(report)} faults: run `make publish`" if report else 0)
