"""The exported report: what it must hold, what must stop it, and how it behaves in a browser."""

import base64
import html as html_lib
import importlib
import json
import re
import struct
import sys
import zlib

import nbformat
import pytest
import torch
from conftest import ROOT, tiny_vae
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import vae_helpers as lab

MAX_BYTES = 6_000_000
MAX_EXPLORER_BYTES = 1_500_000

sys.path.insert(0, str(ROOT / "tools"))
export = importlib.import_module("export")


def png(width: int = 2, height: int = 1) -> str:
    """A white image, in base64."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    image = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return base64.b64encode(image).decode()


def figure(alt: str | None) -> NotebookNode:
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    return new_output("display_data", data={"image/png": png()}, metadata=metadata)


def html(text: str) -> NotebookNode:
    return new_output("display_data", data={"text/html": text})


def page(*cells: str | NotebookNode) -> str:
    """Export a notebook of a title and these cells; a string stands for a Markdown cell."""
    made = [new_markdown_cell(c) if isinstance(c, str) else c for c in ("# A title", *cells)]
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"
    return export.Report(ROOT).page(nbformat.writes(new_notebook(cells=made)).encode())


def code(source: str, *outputs: NotebookNode) -> NotebookNode:
    return new_code_cell(source, outputs=list(outputs))


# What the page holds


def test_formulas_become_mathml():
    text = page(
        r"Here $\mathbb{E}[x]$ and $$\log p_\theta(x \mid z)$$ in $\mathcal{N}(0, I)$",
        "\\begin{align}\na &= b \\\\\n&= c\n\\end{align}",
        "| symbol |\n|---|\n| $\\sigma \\odot \\varepsilon \\sim q$ |",
        code("f", new_output("display_data", data={"text/markdown": r"as $\hat z$"})),
        code("g", new_output("display_data", data={"text/latex": r"$\displaystyle x^2$"})),
    )
    assert text.count("<math") == 7
    assert text.count('display="block"') == 2
    body = text[text.index("<main") : text.index("</main>")]
    assert "$" not in body and "\\" not in body


@pytest.mark.parametrize(
    ("tex", "characters"),
    [
        (r"x \sim q", "x∼q"),
        (r"\mathrm{KL}(q \,\|\, p)", "KL(q‖p)"),
        (r"0 \pm \infty", "0±∞"),
        (r"\mathbb{E}_{q}", "𝔼q"),
        (r"\text{a < b}", "a < b"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "a=b=c"),
        (r"\begin{bmatrix} a \end{bmatrix}^\top", "[a]⊤"),
    ],
)
def test_formulas_keep_their_characters(tex, characters):
    text = html_lib.unescape(re.sub(r"<[^>]+>", "", export.typeset(tex, "inline")))
    # Spacing is the converter's business, whichever kind of space it takes.
    assert re.sub(r"\s", "", text) == re.sub(r"\s", "", characters)


def test_dollars_in_code_are_left_alone():
    text = page("Set `$HOME`.\n\n```sh\necho $HOME $PATH\n```", code("price = '$5$'"))
    assert "<math" not in text
    assert text.count("$HOME") == 2 and "$5$" in text


def test_figures_keep_their_description_and_size():
    text = page(code("plot()", figure('falls from "130" to 90')))
    assert 'alt="falls from &#34;130&#34; to 90" width="2" height="1"' in text


def test_interactive_outputs_pass_unchanged():
    interactive = "<canvas id=c></canvas><script>if (1 < 2 && c) c.dataset.x = '$a$'</script>"
    assert interactive in page(code("explore()", html(interactive)))


def test_warnings_are_shown_as_such():
    text = page(code("f()", new_output("stream", name="stderr", text="NOT MNIST <digits>")))
    assert re.search(r'<pre class="warning[^>]*>NOT MNIST &lt;digits&gt;</pre>', text)


def test_headings_have_deep_links_and_are_listed():
    text = page("## Hint 1\n\nSee [below](#Does-it-work?).", "### Does it work?")
    assert '<h2 id="Hint-1"><a href="#Hint-1">Hint 1</a></h2>' in text
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert 'href="#Hint-1"' in contents and "Does it work?" in contents
    assert "<title>A title</title>" in text and '<html lang="en">' in text


def test_long_cells_start_folded():
    text = page(code("x = 1"), code("x = 1\n" * (export.LONG_CELL + 1)))
    assert text.count('<details class="source" open>') == 1
    assert text.count("<details") == 2


def test_nothing_is_loaded_from_elsewhere():
    text = page("[a link](https://example.org/) is fine", code("plot()", figure("a curve")))
    assert not re.findall(r"(?:src|srcset)=.https?:|<link[^>]+https?:|url\(.?https?:|@import", text)


def test_the_same_notebook_gives_the_same_bytes():
    cells = ("## One $x$", code("f()", figure("a curve"), html("<b>x</b>")))
    first, second = page(*cells), page(*cells)
    assert first == second
    assert str(ROOT) not in first


# What stops the export


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (code("plot()", figure(None)), r"cell 2 \('plot\(\)'\): a figure has no alt text"),
        (code("plot()", figure("  ")), "no alt text"),
        (code("plot()", html("<img src='data:image/png;base64,'>")), "no alt text"),
        ("![](data:image/png;base64,)", "no alt text"),
        ("![badge](https://example.org/badge.svg)", "would load"),
        (code("f()", html("<script src='//example.org/x.js'></script>")), "would load"),
        (
            code("f()", new_output("error", ename="ValueError", evalue="no")),
            "failed with ValueError",
        ),
        (code("f()", new_output("display_data", data={"application/x-widget": ""})), "cannot show"),
        ("Here $\\nosuch{x}$", r"cell 2 \(.*\): cannot typeset \$\\nosuch{x}\$"),
        ("Here $\\frac{1}{2$", "cannot typeset"),
        ("Here $a & b$", "cannot typeset"),
        ("Here $\\mathbb{E}", "formula is left open"),
        ("| a |\n|---|\n| $p(x|z)$ |", "uneven rows"),
        ("[x](#nowhere)", "do not exist: nowhere"),
        ("## Twice\n\n## Twice", "second heading named 'Twice'"),
        ("### Too deep", "skips a level"),
        ("# Another title", "one first-level heading"),
    ],
)
def test_what_stops_the_export(cell, message):
    with pytest.raises(export.ReportError, match=message):
        page(cell)


def test_command_line(tmp_path, capsys):
    notebook = tmp_path / "n.ipynb"
    cells = [new_markdown_cell("# T", id="a"), new_code_cell("f()", id="b")]
    notebook.write_text(json.dumps(new_notebook(cells=cells)), encoding="utf-8")
    output = tmp_path / "new" / "n.html"
    assert export.main([str(notebook), str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    cells[1].outputs = [figure(None)]
    notebook.write_text(json.dumps(new_notebook(cells=cells)), encoding="utf-8")
    assert export.main([str(notebook), str(output)]) == 1
    assert "cell 2" in capsys.readouterr().err


# The page in a browser, with the network cut

SAMPLE = (
    "A $\\beta$ and\n\n$$\\underbrace{\\sum_{i=1}^{n} x_i}_{\\text{all}} = \\frac{1}{2}$$\n",
    "## Code\n\n| symbol | $\\mu$ |\n|---|---:|\n| $x \\mid z$ | 1 |",
    code(f"x = '{'long ' * 60}'  # {'wide ' * 60}\nreturn not 1", figure("a white square")),
    code("f()", html(f"<table><tr><td>{'wide' * 90}</td></tr></table>")),
    code("g()", new_output("stream", name="stdout", text="wide " * 90)),
    "### Last\n\n" + "A sentence of ordinary words makes the page long enough. " * 300,
)


def assert_sound(found: dict) -> None:
    assert found["requests"] == []
    assert found["console"] == []
    assert found["overflow"] == []
    assert found["axe"] == []
    for survey in (found["page"], found["withoutScript"]):
        assert survey["math"] > 0
        assert survey["boxless"] == [], "formulas that take no room"
        assert survey["raw"] == [], "TeX left in the text"
        assert survey["broken"] == [], "images that do not load"
        assert survey["dangling"] == [], "links that lead nowhere"
        assert survey["contents"] > 0
    measure = found["page"]["measure"]
    assert measure is None or 55 <= measure <= 82, "characters per line"
    assert len(found["current"]) == 1, "the contents follow the reader"
    assert found["unfolded"] == 0, "all code folds"


def test_sample_in_browser(browse, tmp_path):
    vae = tiny_vae((1, 8, 8), decoder=lab.DecoderBernoulli)
    images = torch.rand(30, 1, 8, 8).round()
    explorer = lab.explore_plane(vae, images, torch.arange(30) % 10).data
    file = tmp_path / "sample.html"
    file.write_text(page(*SAMPLE, code("explore()", html(explorer))), encoding="utf-8")
    found = browse("check.mjs", file)
    assert_sound(found)
    assert found["page"]["math"] == 4
    assert found["current"] == ["Last"]


def test_report_in_browser(browse, tmp_path):
    notebook = ROOT / "vae_lab.ipynb"
    if not notebook.exists():
        pytest.skip("vae_lab.ipynb is not written yet")
    file = tmp_path / "vae_lab.html"
    (explorer,) = (c for c in nbformat.read(notebook, as_version=4).cells if c.id == "explore")
    assert len(str(explorer.outputs)) <= MAX_EXPLORER_BYTES
    assert export.main([str(notebook), str(file)]) == 0
    assert file.stat().st_size <= MAX_BYTES
    assert_sound(browse("check.mjs", file))
