"""Source code and tables that Jupyter displays by themselves."""

import math

import numpy as np
import pytest
import torch

from tools import tiny_vae
from vae_displays import Averages, Source, html_table
from vae_helpers import Elbo, train_epoch


def test_source_is_that_of_the_module():
    shown = Source(Elbo, train_epoch)
    assert repr(shown).startswith("class Elbo(NamedTuple):\n")
    assert "\n\ndef train_epoch(\n" in repr(shown)
    assert shown._repr_markdown_() == f"```python\n{shown!r}\n```"


def test_averages_and_their_standard_errors():
    x = np.random.default_rng(0).normal(1234, 5, 400)
    error = x.std(ddof=1) / math.sqrt(400)
    values = {"a": x, "−b": torch.tensor([-1.0, -3.0]), "c": 0.5}
    shown = Averages("model", "nats", values)
    assert shown.head == ["model", "nats"]
    assert shown.cells == [
        ["a", f"{x.mean():,.2f} ± {error:.2f}"], ["−b", "−2.00 ± 1.00"], ["c", "0.50"],
    ]  # fmt: skip
    assert repr(shown).splitlines() == [
        "model  nats",
        f"a      {x.mean():,.2f} +/- {error:.2f}",
        "-b     -2.00 +/- 1.00",
        "c      0.50",
    ]
    assert shown._repr_html_() == html_table(shown.head, shown.cells)
    digits = Averages("model", "nats", values, digits=0)
    assert digits.cells[0][1] == f"{x.mean():,.0f} ± {error:.0f}"


def test_averages_take_numbers_of_any_kind():
    nats = -tiny_vae().elbo(torch.randn(50, 6)).value  # with a gradient
    exact = nats.detach().double().numpy()
    error = exact.std(ddof=1) / math.sqrt(50)
    for values in (nats, nats.detach().to(torch.bfloat16), nats.tolist(), exact.astype("f2")):
        ((_, cell),) = Averages("model", "nats", {"x": values}, digits=1).cells
        mean, spread = (float(part.replace("−", "-")) for part in cell.split(" ± "))
        assert mean == pytest.approx(exact.mean(), abs=0.11)
        assert spread == pytest.approx(error, abs=0.06)


@pytest.mark.parametrize(
    "values", [np.zeros((3, 2)), [], None, "1.5", [True], [1.0, math.nan], torch.tensor(math.inf)]
)
def test_what_is_no_number_per_data_point_is_refused(values):
    with pytest.raises(ValueError, match=r"one per data point \(N,\)"):
        Averages("model", "nats", {"a": values})


def test_a_table_of_html_shows_texts_as_they_are():
    assert html_table(["<a>", "b"], [["1 & 2", "3"]]) == (
        "<table><thead><tr><th>&lt;a&gt;</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1 &amp; 2</td><td>3</td></tr></tbody></table>"
    )
