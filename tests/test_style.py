"""Figures in files, scripts and notebooks: shown once, saved as drawn, in colours of their own."""

import base64
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from vae_kit.style import (
    CLASS_COLORS,
    GREY,
    INK,
    TEST_COLOR,
    TRAIN_COLOR,
    mosaic,
    new_figure,
    save_figure,
    styled,
)

mpl.use("Agg")
NARROW = "application/vnd.vae-lab.narrow+png"


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@styled()
def drawn(narrow=False):
    figure, ax = new_figure(figsize=(3.6, 3) if narrow else (8.6, 3))
    ax.plot([1, 2, 3])
    ax.set_title("it rises")
    figure.alt = "a line that rises"
    figure.narrow = None if narrow else lambda: drawn(narrow=True)
    return figure


def test_a_saved_figure_is_what_the_notebook_shows_byte_for_byte(tmp_path):
    figure = drawn()
    assert plt.gcf() is figure
    picture = save_figure(figure, "it")
    assert not plt.get_fignums()
    data, metadata = picture._repr_mimebundle_()
    folder = tmp_path / "figures"
    assert sorted(file.name for file in folder.iterdir()) == ["it.png", "it.svg", "it_narrow.png"]
    assert base64.b64decode(data["image/png"]) == (folder / "it.png").read_bytes()
    assert base64.b64decode(data[NARROW]) == (folder / "it_narrow.png").read_bytes()
    assert metadata == {"image/png": {"alt": "a line that rises", "width": 860}}
    assert repr(picture) == data["text/plain"] == "a line that rises"
    with Image.open(folder / "it.png") as wide, Image.open(folder / "it_narrow.png") as narrow:
        assert wide.size[0] / narrow.size[0] == pytest.approx(8.6 / 3.6, rel=0.01)
        assert wide.info["dpi"][0] == pytest.approx(100 * wide.size[0] / 860, abs=0.1)


@pytest.mark.parametrize(("side", "mode"), [(4, "P"), (60, "RGB")])
def test_a_small_file_has_lost_nothing_that_is_seen(tmp_path, side, mode):
    figure, ax = new_figure(figsize=(2, 2))
    ax.set_axis_off()
    ax.imshow(np.random.default_rng(0).random((side, side, 3)))
    figure.alt = "colours"
    save_figure(figure, "it", tmp_path)
    figure.savefig(tmp_path / "whole.png", dpi=200)
    small, whole = Image.open(tmp_path / "it.png"), Image.open(tmp_path / "whole.png")
    seen, truth = (np.asarray(picture.convert("RGB")).astype(int) for picture in (small, whole))
    assert small.mode == mode and np.abs(seen - truth).max() <= 20
    assert (tmp_path / "it.png").stat().st_size < (tmp_path / "whole.png").stat().st_size


@pytest.mark.parametrize(
    ("name", "folder"), [("it", ""), ("it.png", "~/here"), ("it.svg", Path("here")), ("it", "here")]
)
def test_figures_go_where_they_are_sent(monkeypatch, tmp_path, name, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("VAE_LAB_FIGURES")
    monkeypatch.chdir(tmp_path)
    save_figure(drawn(narrow=True), name, folder)
    made = (tmp_path / "here" if folder else tmp_path / "build" / "figures").iterdir()
    assert sorted(file.name for file in made) == ["it.png", "it.svg"]


def test_a_figure_of_one_s_own_is_saved_once_it_says_what_it_shows():
    figure = plt.figure()
    with pytest.raises(ValueError, match=r"figure\.alt"):
        save_figure(figure, "own")
    figure.alt = "nothing"
    assert repr(save_figure(figure, "own")) == "nothing"


@pytest.mark.parametrize("style", ["dark_background", {"font.size": 3, "text.color": "r"}])
def test_a_figure_looks_the_same_in_every_style_of_its_user(tmp_path, style):
    save_figure(drawn(), "own", tmp_path)
    with plt.style.context(style):
        before = dict(mpl.rcParams)
        save_figure(drawn(), "other", tmp_path)
        assert dict(mpl.rcParams) == before
    for kind in (".png", "_narrow.png", ".svg"):
        own, other = ((tmp_path / f"{name}{kind}").read_bytes() for name in ("own", "other"))
        assert own == other


def test_a_notebook_shows_a_figure_once_and_described(monkeypatch):
    figure = drawn()
    assert figure._repr_mimebundle_() == {}, "scripts print words"
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    data, metadata = figure._repr_mimebundle_()
    assert data.keys() == {"text/plain", "image/png", NARROW}
    assert metadata["image/png"]["alt"] == figure.alt
    assert not plt.get_fignums(), "else it is shown again at the end of the cell"


def linear(color):
    rgb = np.array(mpl.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("color", [TRAIN_COLOR, TEST_COLOR, INK, GREY])
def test_colours_of_text_can_be_read_on_white(color):
    assert 1.05 / (linear(color) @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],  # no red cones
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],  # no green
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],  # no blue
    ],
)
def test_colours_are_told_apart_by_the_colour_blind(matrix):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]

    def seen(color):  # CIELAB, through a matrix of Machado et al. (2009)
        light = np.clip(np.array(matrix) @ linear(color), 1e-3, 1)
        x, y, z = np.cbrt(np.array(to_xyz) @ light / [0.9505, 1, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for colors in (CLASS_COLORS, (TRAIN_COLOR, TEST_COLOR)):
        pairs = ((a, b) for i, a in enumerate(colors) for b in colors[:i])
        assert min(np.linalg.norm(seen(a) - seen(b)) for a, b in pairs) > 15


def test_grey_is_ink_on_white_and_colours_stay_as_they_are():
    grey = torch.tensor([[[[0, 51], [204, 255]]]], dtype=torch.uint8)
    for kind in (grey, grey.numpy(), grey / 255, grey.tolist()):
        assert np.allclose(mosaic(kind, 1), np.array([[1, 0.8], [0.2, 0]])[..., None])
    assert mosaic(torch.eye(2).byte().view(1, 1, 2, 2), 1)[..., 0].tolist() == [[0, 1], [1, 0]]
    assert (mosaic(torch.full((1, 1, 2, 2), 1.7), 1) == 0).all()
    colour = torch.rand(3, 3, 4, 5)
    picture = mosaic(colour, 2, margin=1)
    assert picture.shape == (2 * 6, 2 * 7, 3)
    assert np.allclose(picture[7:11, 1:6], colour[2].permute(1, 2, 0))
    assert (picture[6:, 7:] == 1).all()
    for shape in ((4, 5), (2, 2, 4, 5)):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
            mosaic(torch.zeros(shape), 2)
