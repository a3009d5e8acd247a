"""The figures beside the learning curve; and what holds for every figure of the lab."""

import io
import random

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from test_learning_curve import assert_legible, falling

from vae_kit.figures import (
    plot_images,
    plot_latents,
    plot_points,
    plot_rate_distortion,
    plot_terms,
)
from vae_kit.learning_curve import plot_learning_curve
from vae_kit.style import CLASS_COLORS, NARROW, WIDTH

mpl.use("Agg")

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PLANE = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 12
RATES = {1.0: (20.0, 70.0), 0.1: (60.0, 50.0), 10.0: (3.0, 150.0)}

FIGURES = {
    "learning curve": lambda kind: plot_learning_curve(falling(n=5), kind(IMAGES)),
    "images": lambda kind: plot_images({"data": kind(IMAGES), "fewer": kind(IMAGES[:2])}),
    "points": lambda kind: plot_points({"data": kind(PLANE), "samples": kind(PLANE[:9] + 1)}),
    "latents": lambda kind: plot_latents(kind(PLANE), kind(LABELS)),
    "terms": lambda kind: plot_terms(falling(3)),
    "rate–distortion": lambda kind: plot_rate_distortion(RATES),
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_any_container_gives_the_same_file_and_drawing_disturbs_no_generator(name):
    files, states = [], []
    for kind in (torch.clone, torch.Tensor.numpy, torch.Tensor.tolist):
        file = io.BytesIO()
        FIGURES[name](kind).savefig(file, format="png", dpi=50)
        files.append(file.getvalue())
        states.append(
            (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
        )
    assert files[0] == files[1] == files[2] and states[0] == states[1] == states[2]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_legible_whole_and_described_wide_and_narrow(name):
    wide = FIGURES[name](torch.clone)
    assert NARROW < wide.get_figwidth() <= WIDTH and wide.alt
    assert_legible(wide)
    if wide.narrow:
        narrow = wide.narrow()
        assert narrow.get_figwidth() == NARROW
        assert narrow.alt == wide.alt and narrow.narrow is None
        assert_legible(narrow)
    for ax in wide.axes:
        assert ax.get_legend() is None
        assert not ax.axison or not (ax.spines.top.get_visible() or ax.spines.right.get_visible())


def test_points_stand_side_by_side_on_one_scale():
    figure = plot_points({"data": PLANE, "samples": torch.tensor([[-9.04, 2], [1, 3.0]])})
    left, right = figure.axes
    assert (left.get_title("left"), right.get_title("left")) == ("data", "samples")
    assert np.allclose(left.lines[0].get_xydata(), PLANE)
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    with pytest.raises(ValueError, match=r"\(N, 2\); got \(50, 3\)"):
        plot_points({"space": torch.zeros(50, 3)})


@pytest.mark.parametrize("narrow", [False, True])
def test_images_stand_in_rows_with_names_and_their_contrast_is_not_stretched(narrow):
    pale, colour = torch.full((9, 1, 4, 4), 0.4), torch.rand(2, 3, 4, 4)
    pale[:, :, 0] = 0.5
    figure = plot_images({"pale": pale, "colour": colour}, narrow=narrow)
    for ax, name in zip(figure.axes, ("pale", "colour"), strict=True):
        beside = [text.get_text() for text in ax.texts]
        assert (beside, ax.get_title("left")) == (([], name) if narrow else ([name], ""))
    rows = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    tiles = [[tile[1:-1, 1:-1] for tile in np.split(row, 9, axis=1)] for row in rows]
    for tile in tiles[0]:
        assert np.allclose(tile[0], 0.5) and np.allclose(tile[1:], 0.6)
    for i, tile in enumerate(tiles[1]):
        assert np.allclose(tile, colour[i].permute(1, 2, 0) if i < 2 else 1)


@pytest.mark.parametrize("case", ["same place", "one", "line", "apart"])
def test_each_label_has_its_colour_and_a_name_among_its_points_and_over_no_other(case):
    labels = torch.arange(200) % (1 if case == "one" else 10)
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    z = z * torch.tensor([1.0, 1e-3]) if case == "line" else z
    z = z / 10 + 3 * torch.stack([labels % 4, labels // 4], 1) if case == "apart" else z
    figure = plot_latents(z, labels)
    figure.canvas.draw()
    ax = figure.axes[0]
    drawn = {line.get_color(): line.get_xydata() for line in ax.lines}
    for text in ax.texts:
        name = int(text.get_text())
        assert mpl.colors.to_hex(text.get_bbox_patch().get_edgecolor()) == CLASS_COLORS[name]
        assert np.allclose(drawn[CLASS_COLORS[name]], z[labels == name])
        if case == "apart":
            assert text.get_position() == pytest.approx(np.median(z[labels == name], 0), abs=0.5)
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    for a, b in ((a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
        assert np.hypot(*(a.p0 + a.p1 - b.p0 - b.p1) / 2) >= 0.95 * a.width


POINTS = [
    RATES,
    {0.2: (45.3, 71.4), 1.0: (24.6, 78.0), 4.0: (11.2, 110.3)},
    {0.5: (40.0, -15.0), 1.0: (25.0, -3.0), 8.0: (2.0, 60.0)},
    {1.0: (0.0, 0.0)},
    {1.0: (2e6, 5e9), 2.0: (1e6, 6e9)},
]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("points", POINTS)
def test_rate_and_distortion_are_drawn_on_one_scale_and_no_label_covers_anything(points, narrow):
    figure = plot_rate_distortion(points, narrow=narrow)
    assert_legible(figure)
    ax = figure.axes[0]
    (left, right), (bottom, top), box = ax.get_xlim(), ax.get_ylim(), ax.get_window_extent()
    assert 0 < box.width / (right - left) == pytest.approx(box.height / (top - bottom), rel=1e-3)
    diagonal, curve = ax.lines
    assert curve.get_xydata().tolist() == [list(map(float, points[b])) for b in sorted(points)]
    lowest = min(points, key=lambda beta: sum(points[beta]))
    assert diagonal.get_xy1() == points[lowest] and diagonal.get_slope() == -1
    for text, beta in zip(ax.texts, sorted(points), strict=True):
        label = text.get_window_extent()
        assert text.get_text().startswith(f"β = {beta:g}: ")
        dots = ax.transData.transform(curve.get_xydata())
        assert not any(label.contains(x, y) for x, y in dots)
        x, y = ax.transData.transform(points[lowest])
        assert label.x0 + label.y0 > x + y, "above the diagonal"
        others = [other.get_window_extent() for other in ax.texts if other is not text]
        assert not any(label.overlaps(other) for other in others)


@pytest.mark.parametrize("epochs", [1, 5])
def test_the_terms_add_up_to_the_test_average_of_each_epoch(epochs):
    history = falling(epochs)
    curves = [ax.lines[0].get_xydata() for ax in plot_terms(history).axes]
    assert curves[0][:, 0].tolist() == list(range(1, epochs + 1))
    assert np.allclose(curves[0][:, 1] + curves[1][:, 1], history.test.mean[1:])
    assert curves[1][:, 1].tolist() == history.kl[1:].tolist()
