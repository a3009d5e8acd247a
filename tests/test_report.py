"""The exported report: what it must hold, what must stop it, and how it behaves in a browser."""

import base64
import html as html_lib
import io
import json
import re
import struct
import zlib

import export
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import vae_explorer
import vae_helpers as lab
from tools import ROOT, tiny_vae

MAX_BYTES = 6_000_000


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


def figure(alt: str | None, narrow: str | None = None) -> NotebookNode:
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    data = {"image/png": png()} | ({export.NARROW: narrow} if narrow else {})
    return new_output("display_data", data=data, metadata=metadata)


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


CAPTION = "**Figure.** What is to be seen."


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
    text = page(code("plot()", figure('falls from "130" to 90')), CAPTION)
    assert 'alt="falls from &#34;130&#34; to 90" width="2" height="1"' in text
    output = figure("a curve")
    output.metadata["image/png"]["width"] = 860
    text = page(code("plot()", output), CAPTION)
    assert 'alt="a curve" width="860" height="430"' in text


def test_captions_are_numbered_and_stand_under_their_figures():
    text = page(
        code("plot()", html("<p>Yes</p>"), figure("a curve")),
        "**Figure.** It falls to $x$.",
        "See [it](#cell-id=cell-2).",
        code("explore()", html("<p>one</p>"), html("<b>two</b>")),
        "**Figure.** To be touched.\n\nIn the dark, too.",
        code("f()", html("<i>no figure</i>")),
    )
    main = re.sub(r">\s+<", "><", text[text.index("<main") : text.index("</main>")])
    first, second = re.findall(r"<figure.*?</figure>", main, flags=re.DOTALL)
    assert 'alt="a curve"' in first and "Yes" not in first and 'id="cell-id=cell-2"' in first
    assert "<figcaption><p><strong>Figure 1.</strong> It falls to " in first
    assert "two" in second and "one" not in second
    assert "<figcaption><p><strong>Figure 2.</strong> To be touched.</p><p>In the" in second
    assert main.count("Figure") == 2


def test_a_narrow_drawing_is_for_narrow_windows():
    narrow = png(3, 5)
    text = page(code("plot()", figure("a curve", narrow)), CAPTION)
    (picture,) = re.findall(r"<picture>.*?</picture>", text, flags=re.DOTALL)
    source = f'srcset="data:image/png;base64,{narrow}" width="360" height="600">'
    assert '<source media="screen and (max-width: 40rem)"' in picture and source in picture
    assert f'<img src="data:image/png;base64,{png()}" alt="a curve"' in picture


def test_a_number_and_its_error_are_never_torn():
    text = page(
        "It is 112.39 ± 0.34 nats, **−8 ± 2**, `1.0 ± 0.5`, 4.2 (−1.1 to 9.5); up to 3 to be.",
        code("f()", new_output("stream", name="stdout", text="test 1 ± 2"), html("<td>3 ± 4</td>")),
        code("'5 ± 6'", html("<script>'7 ± 8'</script>")),
    )
    pairs = re.findall(r"[\d.]+\s±\s[\d.]+", text)
    unlinked = ["5 ± 6", "7 ± 8"]
    assert [pair for pair in pairs if "\u00a0±\u00a0" not in pair] == unlinked
    assert len(pairs) == 5 + len(unlinked)
    assert "4.2 (−1.1\u00a0to\u00a09.5); up to 3 to be." in text


def test_interactive_outputs_pass_unchanged():
    interactive = "<canvas id=c></canvas><script>if (1 < 2 && c) c.dataset.x = '$a$'</script>"
    assert interactive in page(code("explore()", html(interactive)))


def test_tables_and_listings_in_html_scroll_by_themselves():
    text = page(code("f()", html("<p>Yes</p><table><td>1</td></table><pre>x</pre>")))
    scroll = '<div class="scroll" tabindex="0">'
    assert f"<p>Yes</p>{scroll}<table><td>1</td></table></div>{scroll}<pre>x</pre></div>" in text


def test_warnings_are_shown_as_such():
    text = page(code("f()", new_output("stream", name="stderr", text="NOT MNIST <digits>")))
    assert re.search(r'<pre class="warning[^>]*>NOT MNIST &lt;digits&gt;</pre>', text)


def test_headings_have_deep_links_and_are_listed():
    text = page("## Hint 1\n\nSee [below](#Does-it-work?).", "### Does it work?")
    assert '<h2 id="Hint-1"><a href="#Hint-1">Hint 1</a></h2>' in text
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert 'href="#Hint-1"' in contents and "Does it work?" in contents
    assert "<title>A title</title>" in text and '<html lang="en">' in text


def test_a_cell_that_jupyterlab_folds_starts_folded():
    hidden = code("x = 2")
    hidden.metadata["jupyter"] = {"source_hidden": True}
    text = page(code("x = 1"), hidden)
    assert text.count('<details class="source" open>') == 1
    assert text.count("<details") == 2


def test_nothing_is_loaded_from_elsewhere():
    text = page(
        "[a link](https://example.org/) is fine", code("plot()", figure("a", png())), CAPTION
    )
    assert not re.findall(r"(?:src|srcset)=.https?:|<link[^>]+https?:|url\(.?https?:|@import", text)


def test_the_same_notebook_gives_the_same_bytes():
    cells = ("## One $x$", code("f()", figure("a curve"), html("<b>x</b>")), CAPTION)
    first, second = page(*cells), page(*cells)
    assert first == second
    assert str(ROOT) not in first


# What stops the export


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (code("plot()", figure("a curve")), r"cell 2 \('plot\(\)'\): no caption"),
        (code("plot()", figure("a curve"), figure("another")), r"cell 2 .*: two figures need"),
        ("**Figure.** Of nothing.", r"cell 2 .*: a caption, but the cell above it shows no figure"),
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

LINE = f"x = '{'long ' * 18}'"


def drawn(width: float, height: float) -> str:
    """A curve on white, so many inches large, in base64."""
    fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.plot([3, 2, 1.5])
    stream = io.BytesIO()
    fig.savefig(stream, dpi=150)
    plt.close(fig)
    return base64.b64encode(stream.getvalue()).decode()


def sample() -> list[str | NotebookNode]:
    """Cells with all that a report may hold."""
    curve = figure("a falling curve", drawn(3.6, 3))
    curve.data["image/png"] = drawn(8.6, 4)
    curve.metadata["image/png"]["width"] = 860
    row = "".join(f"<td style='text-align: right'>{n},234.56 ± 0.34</td>" for n in range(5))
    vae = tiny_vae((1, 8, 8), decoder=lab.DecoderBernoulli)
    images = torch.rand(30, 1, 8, 8).round()
    explorer = vae_explorer.explore_plane(vae, images, torch.arange(30) % 10).data
    return [
        "A $\\beta$ and\n\n$$\\underbrace{\\sum_{i=1}^{n} x_i}_{\\text{all}} = \\frac{1}{2}$$\n",
        "## Code\n\n| symbol | $\\mu$ |\n|---|---:|\n| $x \\mid z$ | 1 |",
        code(f"{LINE:<88}#\nreturn not 1", figure("a white square")),
        CAPTION,
        code(f"x = '{'long ' * 60}'", curve),
        CAPTION,
        code("f()", html(f"<table><thead><tr><th>a</th></tr></thead><tr>{row}</tr></table>")),
        code("g()", new_output("stream", name="stdout", text="wide 112.39 ± 0.34 " * 30)),
        "The model ends at 112.39 ± 0.34 nats, whatever that may mean. " * 20,
        "### Last\n\n" + "A sentence of ordinary words makes the page long enough. " * 300,
        code("explore()", html(explorer)),
        CAPTION,
    ]


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
    for layout in found["layout"].values():
        assert layout["torn"] == [], "a number and its error on two lines"
        assert layout["silent"] == [], "tables that scroll say so, and no others"
        assert all(f["caption"].startswith("Figure ") for f in layout["figures"])
    wide, narrow = found["layout"]["1280"], found["layout"]["400"]
    assert wide["clipped"] == [] and wide["scrolling"] == []
    assert set(wide["code"]) == {wide["column"]}, "code has the whole column"
    large = [figure for figure in wide["figures"] if figure["share"] == pytest.approx(1)]
    assert all(figure["scale"] >= 1 for figure in large), "letters are as large as drawn"
    assert all(f["scale"] >= 1 for f in narrow["figures"] if f["narrow"])
    assert not any(figure["narrow"] for figure in wide["figures"])
    dark = Image.open(io.BytesIO(base64.b64decode(found["dark"]))).convert("L")
    assert np.asarray(dark).mean() < 80, "a figure that glares in the dark"


def test_sample_in_browser(browse, tmp_path):
    file = tmp_path / "sample.html"
    file.write_text(page(*sample()), encoding="utf-8")
    found = browse("check.mjs", file)
    assert_sound(found)
    assert found["page"]["math"] == 4
    assert found["layout"]["400"]["scrolling"], "the wide table, in a narrow window"
    assert [f["narrow"] for f in found["layout"]["400"]["figures"]] == [False, True]
    assert found["current"] == ["Last"]


def test_report_in_browser(browse, tmp_path):
    notebook = ROOT / "vae_lab.ipynb"
    if not notebook.exists():
        pytest.skip("vae_lab.ipynb is not written yet")
    file = tmp_path / "vae_lab.html"
    assert export.main([str(notebook), str(file)]) == 0
    assert file.stat().st_size <= MAX_BYTES
    assert_sound(browse("check.mjs", file, timeout=600))
