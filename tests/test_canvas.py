"""Figures in files, scripts and notebooks: shown once, saved as drawn, described, as they look."""

import base64
import json
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from tools import ROOT
from vae_canvas import (
    CLASS_COLORS,
    LabFigure,
    describe,
    ink,
    new_figure,
    number,
    save_figure,
    true_minus,
)

mpl.use("Agg")
NARROW = "application/vnd.vae-lab.narrow+png"


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def drawn(narrow=False):
    figure, ax = new_figure(figsize=(3.6, 3) if narrow else (8.6, 3))
    ax.plot([1, 2, 3])
    figure.alt = "a line that rises"
    figure.narrow = None if narrow else lambda: drawn(narrow=True)
    return figure


# --------------------------------------------------------------------------- saving and showing


def test_a_saved_figure_is_what_the_notebook_shows_byte_for_byte(tmp_path):
    data, metadata = save_figure(drawn(), "it")._repr_mimebundle_()
    folder = tmp_path / "figures"
    assert sorted(file.name for file in folder.iterdir()) == ["it.png", "it.svg", "it_narrow.png"]
    assert base64.b64decode(data["image/png"]) == (folder / "it.png").read_bytes()
    assert base64.b64decode(data[NARROW]) == (folder / "it_narrow.png").read_bytes()
    assert metadata == {"image/png": {"alt": "a line that rises", "width": 860}}
    assert data["text/plain"] == "a line that rises"
    assert (folder / "it.svg").read_text().count("<svg") == 1
    with Image.open(folder / "it.png") as wide, Image.open(folder / "it_narrow.png") as narrow:
        assert wide.size == (1720, 600) and narrow.size == (720, 600)


@pytest.mark.parametrize(("side", "mode"), [(2, "P"), (50, "RGB")])
def test_a_small_file_has_lost_nothing(tmp_path, side, mode):
    figure, ax = new_figure(figsize=(2, 2))
    ax.set_axis_off()
    ax.imshow(np.random.default_rng(0).random((side, side, 3)))
    figure.alt = "colours"
    figure.savefig(tmp_path / "whole.png", dpi=200)
    save_figure(figure, "it", tmp_path)
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "it.png") as small:
        assert small.mode == mode and small.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert np.array_equal(np.asarray(small.convert("RGB")), np.asarray(whole.convert("RGB")))
    assert (tmp_path / "it.png").stat().st_size < (tmp_path / "whole.png").stat().st_size


def test_a_figure_stays_open_until_it_is_saved(tmp_path):
    figure = drawn()
    assert plt.gcf() is figure and len(plt.get_fignums()) == 1
    save_figure(figure, "it", tmp_path / "elsewhere")
    assert not plt.get_fignums()
    assert (tmp_path / "elsewhere" / "it.png").exists()


def test_without_a_folder_figures_go_where_nobody_keeps_them(monkeypatch, tmp_path):
    monkeypatch.delenv("VAE_LAB_FIGURES")
    monkeypatch.chdir(tmp_path)
    save_figure(drawn(), "it")
    assert (tmp_path / "build" / "figures" / "it.svg").exists()


def test_a_figure_of_one_s_own_is_saved_once_it_says_what_it_shows(tmp_path):
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    with pytest.raises(ValueError, match=r"figure\.alt = "):
        save_figure(figure, "own")
    assert not (tmp_path / "figures").exists()
    figure.alt = "two points"
    _, metadata = save_figure(figure, "own")._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "two points"


def test_descriptions_of_several_axes_follow_each_other():
    figure, (left, right) = new_figure(1, 2)
    assert isinstance(figure, LabFigure)
    assert describe(left, "On the left.") is figure is describe(right, "On the right.")
    assert figure.alt == "On the left. On the right."
    assert LabFigure.alt == ""


def test_the_style_of_others_is_left_alone():
    with mpl.rc_context({"font.size": 3.0, "axes.spines.top": True, "text.color": "red"}):
        before = dict(mpl.rcParams)
        save_figure(drawn(), "it")
        assert dict(mpl.rcParams) == before


def test_savefig_in_a_script_saves_what_was_drawn(tmp_path):
    script = (
        "import matplotlib.pyplot as plt, vae_canvas\n"
        "figure, ax = vae_canvas.new_figure()\n"
        "ax.plot([1, 2, 3])\n"
        "plt.savefig('it.png')\n"
        "plt.show()\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120,
        env={"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "HOME": str(tmp_path)},
    )  # fmt: skip
    with Image.open(tmp_path / "it.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 100


SETUP = """
import matplotlib.pyplot as plt
import torch
from vae_figures import LabFigure, new_figure, plot_latents, plot_learning_curve, save_figure
from vae_helpers import History
history = History({"epochs": 2}, 9, 9)
history.add_test(torch.rand(9))
for _ in range(2):
    history.add_epoch(torch.rand(9), torch.rand(9), 1.0, 1e-3, 0)
z, labels = torch.randn(30, 2), torch.arange(30) % 3
figure, axes = new_figure(1, 2)
plt.close(figure)
"""

CELLS = {  # how many pictures each shows
    "plot_learning_curve(history)": 1,
    "figure = plot_learning_curve(history)": 1,
    "plot_learning_curve(history); plt.savefig('saved.png')": 1,
    "plot_learning_curve(history)\nplt.show()": 1,
    "plot_learning_curve(history)\nplot_latents(z, labels)": 2,
    "save_figure(plot_learning_curve(history), 'it')": 1,
    "figure, (left, right) = new_figure(1, 2)\nplot_latents(z, labels, left)\n"
    "plot_latents(z, labels, right)": 1,
    "shown = save_figure(plot_latents(z, labels), 'it')": 0,
    "figure = plot_latents(z, labels); plt.close(figure)": 0,
    "figure": 1,
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The outputs of each cell, from a real kernel."""
    folder = tmp_path_factory.mktemp("notebook")
    sources = [SETUP, *CELLS]
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": source, "outputs": [],
         "execution_count": None} for i, source in enumerate(sources)
    ]  # fmt: skip
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "it.ipynb").write_text(json.dumps(notebook))
    command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--stdout", "it.ipynb"]
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env=env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)["cells"]
    return folder, {source: cell["outputs"] for source, cell in zip(sources, made, strict=True)}


@pytest.mark.parametrize("source", CELLS)
def test_a_notebook_shows_a_figure_once_and_described(executed, source):
    outputs = executed[1][source]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == CELLS[source]
    assert len(pictures) == len(outputs)
    for output in pictures:
        shown = output["metadata"]["image/png"]
        assert shown["alt"] and shown["width"] == 860
        assert (NARROW in output["data"]) == ("learning" in shown["alt"].lower())


def test_savefig_in_a_notebook_saves_what_was_drawn(executed):
    with Image.open(executed[0] / "saved.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 100


# ---------------------------------------------------------------------- numbers, colours, ink


@pytest.mark.parametrize(
    ("x", "digits", "text"),
    [
        (1163, None, "1,163"), (-0.25, None, "−0.25"), (2.5e9, None, "2.5×10⁹"), (0, None, "0"),
        (1e-7, None, "1×10⁻⁷"), (-3e12, 1, "−3×10¹²"), (1234.56, 1, "1,234.6"),
        (-873.25, 0, "−873"), (-0.04, 1, "0.0"), (9.9996e8, None, "1×10⁹"), (5, 2, "5.00"),
    ],
)  # fmt: skip
def test_numbers_are_written_in_one_style(x, digits, text):
    assert number(x, digits) == text


def test_minus_signs_are_true_and_hyphens_stay():
    said = "test -ELBO from -5.4 to -30 (-100 to -6), one-cycle, test - train, 3-5"
    assert (
        true_minus(said) == "test −ELBO from −5.4 to −30 (−100 to −6), one-cycle, test − train, 3-5"
    )


def colour_blind(matrix, rgb):
    """CIELAB of a colour as it is seen through a matrix of Machado et al. (2009)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ np.clip(matrix @ linear, 1e-3, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],  # no red cones
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],  # no green
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],  # no blue
    ],
)
def test_the_colours_of_ten_classes_are_told_apart_by_the_colour_blind(matrix):
    seen = [colour_blind(np.array(matrix), np.array(mpl.colors.to_rgb(c))) for c in CLASS_COLORS]
    assert len(seen) == 10
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 15  # of matplotlib's own ten colours two are 4.6 apart


def test_grey_is_ink_on_white_and_colours_stay_as_they_are():
    grey = torch.tensor([[[0, 51], [204, 255]]], dtype=torch.uint8)
    assert ink(grey)[0].tolist() == pytest.approx(np.array([[1, 0.8], [0.2, 0]]), abs=1e-6)
    assert torch.equal(ink(grey / 255), ink(grey))
    assert ink(grey).shape == (3, 2, 2)
    colour = torch.rand(3, 2, 2)
    assert torch.equal(ink(colour), colour)
    assert torch.equal(ink(torch.full((1, 2, 2), 1.7)), torch.zeros(3, 2, 2))
