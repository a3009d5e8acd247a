"""Source code, tables and numbers, as a notebook shows them."""

import pytest

from vae_helpers import Elbo
from vae_kit.displays import Source, html_table, number, true_minus
from vae_kit.seeds import seed_from


def test_source_is_that_of_the_module():
    shown = Source(Elbo, seed_from)
    assert repr(shown).startswith("class Elbo(NamedTuple):\n")
    assert "\n\ndef seed_from(" in repr(shown)
    assert shown._repr_markdown_() == f"```python\n{shown!r}\n```"


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
