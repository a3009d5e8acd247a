"""Source code, tables and numbers, as a notebook shows them."""

import math

import numpy as np
import pytest
import torch

from vae_helpers import Elbo
from vae_kit.displays import Averages, Source, html_table, number, true_minus
from vae_kit.seeds import seed_from


def test_source_is_that_of_the_module():
    shown = Source(Elbo, seed_from)
    assert repr(shown).startswith("class Elbo(NamedTuple):\n")
    assert "\n\ndef seed_from(" in repr(shown)
    assert shown._repr_markdown_() == f"```python\n{shown!r}\n```"


def test_averages_and_their_standard_errors():
    x = np.random.default_rng(0).normal(1234, 5, 400).astype(np.float32)
    error = x.std(ddof=1) / math.sqrt(400)
    shown = Averages("model", "nats", {"a": x, "−b": torch.tensor([-1.0, -3.0]), "d": [1, 3]})
    cells = [["a", f"{x.mean():,.2f} ± {error:.2f}"], ["−b", "−2.00 ± 1.00"], ["d", "2.00 ± 1.00"]]
    assert shown.cells == cells
    assert repr(shown).isascii() and repr(shown).splitlines()[2] == "-b: -2.00 +/- 1.00"
    assert shown._repr_html_() == html_table(["model", "nats"], shown.cells)


@pytest.mark.parametrize("values", [np.zeros((3, 2)), [], [1.0], "1.5", [1.0, math.nan]])
def test_what_is_no_number_per_data_point_is_refused(values):
    with pytest.raises(ValueError, match=r"\(N,\)"):
        Averages("model", "nats", {"a": values})


def test_a_table_of_html_shows_texts_as_they_are():
    assert html_table(["<a>"], [["1 & 2"]]).count("&lt;a&gt;") == 1
    assert "<td>1 &amp; 2</td>" in html_table(["<a>"], [["1 & 2"]])


@pytest.mark.parametrize(
    ("x", "digits", "text"),
    [
        (1163, None, "1,163"), (-0.25, None, "−0.25"), (2.5e9, None, "2.5×10⁹"),
        (1e-7, None, "1×10⁻⁷"), (-3e12, 1, "−3×10¹²"), (1234.56, 1, "1,234.6"), (-0.04, 1, "0.0"),
    ],
)  # fmt: skip
def test_numbers_are_written_in_one_style(x, digits, text):
    assert number(x, digits) == text


def test_minus_signs_are_true_and_hyphens_stay():
    said = "test -ELBO from -5.4 to -30 (-100 to -6), one-cycle, test - train, 3-5"
    true = "test −ELBO from −5.4 to −30 (−100 to −6), one-cycle, test − train, 3-5"
    assert true_minus(said) == true
