"""The exported report: what it must hold, what must stop it, and how it looks in a browser."""

import base64
import html
import io
import json
import re

import export
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools import ROOT

CAPTION = "**Figure.** What is to be seen."


def png(width=2, height=1):
    """A white image, in base64."""
    stream = io.BytesIO()
    Image.new("L", (width, height), 255).save(stream, "png")
    return base64.b64encode(stream.getvalue()).decode()


def drawn(width, height):
    """A curve on white, so many inches large, in base64."""
    fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.plot([3, 2, 1.5])
    stream = io.BytesIO()
    fig.savefig(stream, dpi=150)
    plt.close(fig)
    return base64.b64encode(stream.getvalue()).decode()


def figure(alt, wide=None, narrow=None, **metadata):
    data = {"image/png": wide or png()} | ({export.NARROW: narrow} if narrow else {})
    metadata = {"image/png": metadata | ({} if alt is None else {"alt": alt})}
    return new_output("display_data", data=data, metadata=metadata)


def shown(mime, text):
    return new_output("display_data", data={mime: text})


def code(source, *outputs, **metadata):
    return new_code_cell(source, outputs=list(outputs), metadata=metadata)


def page(*cells):
    """Export a notebook of a title and these cells; a string stands for a Markdown cell."""
    made = [new_markdown_cell(c) if isinstance(c, str) else c for c in ("# A title", *cells)]
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"
    return export.html_page(nbformat.writes(new_notebook(cells=made)).encode(), ROOT)


# What the page holds


def test_formulas_become_mathml():
    text = page(
        r"Here $\mathbb{E}[x]$ and $$\log p_\theta(x \mid z)$$ in $\mathcal{N}(0, I)$",
        "\\begin{align}\na &= b \\\\\n&= c\n\\end{align}",
        "| symbol |\n|---|\n| $\\sigma \\odot \\varepsilon \\sim q$ |",
        code("f", shown("text/markdown", r"as $\hat z$")),
        "Not in `$HOME`.\n\n```sh\necho $HOME\n```",
    )
    assert text.count("<math") == 6 and text.count('display="block"') == 2
    assert text.count("$HOME") == 2
    body = text[text.index("<main") : text.index("</main>")].replace("$HOME", "")
    assert "$" not in body and "\\" not in body


@pytest.mark.parametrize(
    ("tex", "characters"),
    [
        (r"\mathrm{KL}(q \,\|\, p)", "KL(q‖p)"),
        (r"\mathbb{E}_{q} \text{a < b}", "𝔼qa<b"),
        (r"\begin{aligned} a &= b \\ &= c^\top \end{aligned}", "a=b=c⊤"),
    ],
)
def test_formulas_keep_their_characters(tex, characters):
    text = html.unescape(re.sub(r"<[^>]+>", "", export.typeset(tex, "inline")))
    assert re.sub(r"\s", "", text) == characters


def test_figures_keep_description_size_and_narrow_drawing():
    plain = page(code("plot()", figure('falls from "130" to 90')), CAPTION)
    assert 'alt="falls from &#34;130&#34; to 90" width="2" height="1"' in plain
    both = page(code("plot()", figure("a curve", narrow=png(3, 5), width=860)), CAPTION)
    assert 'alt="a curve" width="860" height="430"' in both
    source = f'srcset="data:image/png;base64,{png(3, 5)}" width="360" height="600">'
    assert f'<source media="screen and (max-width: 40rem)" {source}' in both


def test_captions_are_numbered_and_stand_under_their_figures():
    text = page(
        code("plot()", shown("text/html", "<p>Yes</p>"), figure("a curve")),
        "**Figure.** It falls.",
        "See [it](#cell-id=cell-2).",
        code("explore()", shown("text/html", "<p>one</p>"), shown("text/html", "<b>two</b>")),
        "**Figure.** To be touched.",
    )
    main = re.sub(r">\s+<", "><", text[text.index("<main") : text.index("</main>")])
    first, second = re.findall(r"<figure.*?</figure>", main, flags=re.DOTALL)
    assert 'alt="a curve"' in first and "Yes" not in first and 'id="cell-id=cell-2"' in first
    assert "<figcaption><p><strong>Figure 1.</strong> It falls.</p>" in first
    assert "two" in second and "one" not in second and "Figure 2." in second


def test_a_number_and_its_error_are_never_torn():
    table = shown("text/html", "<td>3 ± 4</td>")
    text = page("**−8 ± 2**, `1.0 ± 0.5`, 95 % (−1.1 to 9.5).", code("'5 ± 6'", table))
    assert len(re.findall("\u00a0±\u00a0", text)) == 3 and "5 ± 6" in text
    assert "95\u00a0% (−1.1\u00a0to\u00a09.5)" in text


def test_interactive_outputs_pass_unchanged_and_tables_scroll():
    interactive = "<canvas id=c></canvas><script>if (1 < 2 && c) c.dataset.x = '$7 ± 8$'</script>"
    table = "<table><td>1</td></table>"
    outputs = (shown("text/html", text) for text in (interactive, f"<p>A</p>{table}"))
    text = page(code("f()", *outputs))
    assert interactive in text
    assert f'<p>A</p><div class="scroll" tabindex="0">{table}</div>' in text


def test_warnings_are_shown_as_such():
    text = page(code("f()", new_output("stream", name="stderr", text="NOT MNIST <digits>")))
    assert re.search(r'<pre class="warning[^>]*>NOT MNIST &lt;digits&gt;</pre>', text)


def test_headings_have_deep_links_and_are_listed():
    text = page("## Hint 1\n\nSee [below](#Does-it-work?).", "### Does it work?")
    assert '<h2 id="Hint-1"><a href="#Hint-1">Hint 1</a></h2>' in text
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert 'href="#Hint-1"' in contents and "Does it work?" in contents
    assert "<title>A title</title>" in text


def test_plumbing_is_folded_or_left_out():
    text = page(
        code("x = 1"),
        code("x = 2", jupyter={"source_hidden": True}),
        code("x = 3", new_output("stream", text="three"), tags=["remove-input"]),
    )
    assert text.count('<details class="source" open>') == 1 and text.count("<details") == 2
    assert "three" in text and ">3<" not in text


def test_the_same_notebook_gives_the_same_bytes_and_loads_nothing():
    cells = ("[a link](https://example.org/) at $x$", code("f()", figure("a")), CAPTION)
    text = page(*cells)
    assert text == page(*cells)
    assert str(ROOT) not in text
    assert not re.findall(r"(?:src|srcset)=.https?:|<link[^>]+https?:|url\(.?https?:|@import", text)


# What stops the export


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (code("plot()", figure("a curve")), r"cell 2 \('plot\(\)'\): no caption"),
        (code("plot()", figure("a curve"), figure("another")), "two figures need"),
        (CAPTION, "a caption, but the cell above it shows no figure"),
        (code("plot()", figure(None)), r"cell 2 \('plot\(\)'\): a figure has no alt text"),
        (code("f()", shown("text/html", "<img src='data:image/png;base64,'>")), "no alt text"),
        ("![badge](https://example.org/badge.svg)", "would load"),
        (code("f()", shown("text/html", "<script src='//a.org/x.js'></script>")), "would load"),
        (code("f()", new_output("error", ename="ValueError", evalue="no")), "with ValueError"),
        (code("f()", shown("application/x-widget", "")), "cannot show"),
        ("Here $\\nosuch{x}$", r"cell 2 \(.*\): cannot typeset \$\\nosuch{x}\$"),
        ("Here $\\mathbb{E}", "formula is left open"),
        ("| a |\n|---|\n| $p(x|z)$ |", "uneven rows"),
        ("[x](#nowhere)", "headings that are not there, such as nowhere"),
        ("[x](#cell-id=task1)", "not there, such as cell-id=task1: .*nbstripout --keep-id"),
        ("## Twice\n\n## Twice", "second heading named 'Twice'"),
        ("# Another title", "one first-level heading"),
    ],
)
def test_what_stops_the_export(cell, message):
    with pytest.raises(export.ReportError, match=message):
        page(cell)


def test_command_line(tmp_path, capsys):
    notebook, output = tmp_path / "n.ipynb", tmp_path / "new" / "n.html"
    cells = [new_markdown_cell("# T", id="a"), new_code_cell("f()", id="b")]
    notebook.write_text(json.dumps(new_notebook(cells=cells)), encoding="utf-8")
    assert export.main([str(notebook), str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    cells[1].outputs = [figure(None)]
    notebook.write_text(json.dumps(new_notebook(cells=cells)), encoding="utf-8")
    assert export.main([str(notebook), str(output)]) == 1
    assert "cell 2" in capsys.readouterr().err


# The page in a browser, with the network cut


def assert_sound(found):
    assert found["requests"] == found["console"] == found["axe"] == []
    for survey in (found["page"], found["withoutScript"]):
        assert not any(survey.values()), survey
    assert len(found["current"]) == 1, "the contents follow the reader"
    assert found["unfolded"] == 0, "all code folds"
    views = found["layout"]
    for view in views.values():
        assert view["overflow"] <= 0
        assert view["codeAbove"] == 0, "no code above the first figure"
        assert all(f["caption"].startswith("Figure ") for f in view["figures"])
    wide, narrow, paper, contrast = (views[n] for n in ("wide", "narrow", "print", "contrast"))
    assert wide["silent"] == narrow["silent"] == 0, "tables that scroll say so, and no others"
    assert wide["clipped"] == wide["scrolling"] == 0
    assert all(f["scale"] >= 1 for f in wide["figures"] if f["share"] > 0.99), "letters as drawn"
    assert all(f["scale"] >= 1 for f in narrow["figures"] if f["narrow"])
    assert not any(f["narrow"] for f in wide["figures"] + paper["figures"])
    assert paper["firstFigure"] <= 985, "the first figure stands on the first sheet"
    assert paper["folded"] == 0, "what is folded is not printed"
    assert contrast["gradients"] == 0, "no shadows over the colours of a contrast theme"
    dark = Image.open(io.BytesIO(base64.b64decode(found["dark"]))).convert("L")
    assert np.asarray(dark).mean() < 80, "a figure that glares in the dark"


def test_sample_in_browser(browse, tmp_path):
    row = "".join(f"<td style='text-align: right'>{n},234.56 ± 0.34</td>" for n in range(5))
    curve = figure("a falling curve", drawn(8.6, 4), drawn(3.6, 3), width=860)
    table = f"<table><thead><tr><th>a</th></tr></thead><tr>{row}</tr></table>"
    file = tmp_path / "sample.html"
    text = page(
        "A $\\beta$ and\n\n$$\\underbrace{\\sum_{i=1}^{n} x_i}_{\\text{all}} = \\frac{1}{2}$$\n",
        code("plot()", curve, tags=["remove-input"]),
        CAPTION,
        "## Code\n\n| symbol | $\\mu$ |\n|---|---:|\n| $x \\mid z$ | 1 |",
        code(f"x = '{'long ' * 60}'", figure("a white square")),
        CAPTION,
        code("f()", shown("text/html", table), jupyter={"source_hidden": True}),
        code("g()", new_output("stream", text="wide 112.39 ± 0.34 " * 30)),
        "### Last\n\n" + "A sentence of ordinary words makes the page long enough. " * 300,
    )
    file.write_text(text, encoding="utf-8")
    found = browse("check.mjs", file)
    assert_sound(found)
    wide, narrow = found["layout"]["wide"], found["layout"]["narrow"]
    assert wide["folded"] == 1 and narrow["scrolling"] == 1
    assert [f["narrow"] for f in narrow["figures"]] == [True, False]
    assert found["current"] == ["Last"]


def test_report_in_browser(browse, tmp_path):
    file = tmp_path / "vae_lab.html"
    assert export.main([str(ROOT / "vae_lab.ipynb"), str(file)]) == 0
    assert file.stat().st_size <= 3_000_000
    assert_sound(browse("check.mjs", file))
