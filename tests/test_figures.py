"""The figures beside the learning curve; and what holds for every figure of the lab."""

import inspect

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from test_learning_curve import falling, inside, shown_texts, verdict_of
from torch import nn

import vae_figures
from tools import generator_states, tiny_vae
from vae_canvas import CLASS_COLORS, GREY, NARROW, WIDTH
from vae_figures import (
    decoded_plane,
    new_figure,
    plot_images,
    plot_latents,
    plot_learning_curve,
    plot_manifold,
    plot_plane,
    plot_points,
    plot_rate_distortion,
    save_figure,
)

mpl.use("Agg")

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PLANE = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
MODEL = tiny_vae((1, 8, 8))
RATES = {1.0: (20.0, 70.0), 0.1: (60.0, 50.0), 10.0: (3.0, 150.0)}

FIGURES = {
    "learning curve": lambda: plot_learning_curve(falling()),
    "verdict": lambda: plot_learning_curve(verdict_of(), torch.rand(200, 1, 4, 4).mul(0)),
    "images": lambda: plot_images({"data": IMAGES, "reconstructions": IMAGES[:2]}),
    "colour": lambda: plot_images({"a": IMAGES.expand(-1, 3, -1, -1)}),
    "points": lambda: plot_points({"data": PLANE, "samples": PLANE[:9] + 1}),
    "latents": lambda: plot_latents(PLANE, torch.arange(50) % 12),
    "manifold": lambda: plot_manifold(MODEL, side=5),
    "plane": lambda: plot_plane(MODEL, PLANE, torch.arange(50) % 12),
    "rate–distortion": lambda: plot_rate_distortion(RATES),
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


# ---------------------------------------------------------------------------- all the figures


def test_every_plot_of_the_module_is_among_the_figures_tested():
    plots = {name for name in vars(vae_figures) if name.startswith("plot_")}
    used = {name for make in FIGURES.values() for name in make.__code__.co_names}
    assert plots <= used
    assert plots <= set(vae_figures.__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_drawn_twice_is_the_same_file_and_disturbs_no_generator(name, tmp_path):
    contents = []
    for _ in range(2):
        figure = None
        before = generator_states()
        with torch.random.fork_rng():
            state = torch.get_rng_state()
            figure = FIGURES[name]()
            if name != "verdict":  # whose images are drawn by the test itself
                assert torch.equal(torch.get_rng_state(), state)
        save_figure(figure, "it")
        assert generator_states() == before
        files = sorted((tmp_path / "figures").iterdir())
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_as_wide_as_the_page_legible_whole_and_described(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() == WIDTH
    assert figure.alt.endswith((".", ")"))
    for text in shown_texts(figure):
        assert text.get_fontsize() * 100 / 72 >= 13
        assert inside(text.get_window_extent(), figure.bbox)
    for ax in figure.axes:
        assert ax.get_legend() is None


@pytest.mark.parametrize("name", sorted(FIGURES.keys() - {"latents", "manifold"}))
def test_a_narrow_page_gets_a_drawing_of_its_own_legible_too(name):
    wide = FIGURES[name]()
    figure = wide.narrow()
    assert figure.get_figwidth() == NARROW
    assert figure.narrow is None and figure.alt == wide.alt
    for text in shown_texts(figure):
        assert text.get_fontsize() * 100 / 72 >= 13
        assert inside(text.get_window_extent(), figure.bbox), text.get_text()
    shown = ["images"] if name == "rate–distortion" else ["images", "lines"]  # other diagonals
    for kind in shown:
        drawn = [sum(len(getattr(ax, kind)) for ax in one.axes) for one in (wide, figure)]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["latents", "manifold"])
def test_axes_that_are_given_are_drawn_on(name):
    figure, (left, right) = new_figure(1, 2)
    plot = {"latents": (plot_latents, (PLANE, torch.arange(50) % 3)),
            "manifold": (plot_manifold, (MODEL,))}[name]  # fmt: skip
    assert "ax" in inspect.signature(plot[0]).parameters
    assert plot[0](*plot[1], ax=right) is figure
    assert right.has_data() and not left.has_data()
    assert len(plt.get_fignums()) == 1
    assert figure.alt


# --------------------------------------------------------------------------------- points


def test_points_stand_side_by_side_on_one_scale_and_are_told_with_their_extent():
    figure = plot_points({"data": PLANE, "samples": torch.tensor([[-9.04, 2], [1, 3.0]])})
    left, right = figure.axes
    assert (left.get_title("left"), right.get_title("left")) == ("data", "samples")
    assert np.array_equal(left.lines[0].get_xydata(), PLANE.numpy())
    assert right.lines[0].get_xydata().tolist() == [[pytest.approx(-9.04), 2], [1, 3]]
    figure.canvas.draw()
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert "data (50 points, " in figure.alt
    assert figure.alt.endswith("samples (2 points, −9.0 to 1.0 by 2.0 to 3.0).")


# --------------------------------------------------------------------------------- images


def shown_tiles(ax, columns):
    """What an axes with a strip of images shows, tile by tile, without their margins."""
    strip = np.asarray(ax.images[0].get_array())
    return [tile[1:-1, 1:-1] for tile in np.split(strip, columns, axis=1)]


@pytest.mark.parametrize("narrow", [False, True])
def test_images_stand_in_rows_with_names(narrow):
    rows = {"data": IMAGES, "fewer": IMAGES[:2]}
    figure = plot_images(rows, narrow=narrow)
    for ax, (name, images) in zip(figure.axes, rows.items(), strict=True):
        beside = [text.get_text() for text in ax.texts]
        assert (beside, ax.get_title("left")) == (([], name) if narrow else ([name], ""))
        tiles = shown_tiles(ax, 7)
        for tile, image in zip(tiles, images, strict=False):
            assert np.allclose(tile, 1 - image[0].numpy()[..., None], atol=1e-6)
        assert all((tile == 1).all() for tile in tiles[len(images) :])


def test_the_contrast_of_images_is_not_stretched():
    pale = torch.full((8, 1, 4, 4), 0.4)
    pale[:, :, 0] = 0.5
    figure = plot_images({"pale": pale})
    for tile in shown_tiles(figure.axes[0], 8):
        assert np.allclose(tile[0], 0.5) and np.allclose(tile[1:], 0.6)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    inside_row = pixels[:, 200:]  # right of the name
    assert inside_row.min() == pytest.approx(0.5 * 255, abs=3)


def test_colours_and_eight_bits_and_more_images_than_seven():
    colour = torch.zeros(9, 3, 4, 6)
    colour[:, 0] = 1
    figure = plot_images({"red": colour, "grey": torch.full((9, 1, 4, 6), 51, dtype=torch.uint8)})
    red, grey = figure.axes
    for tile in shown_tiles(red, 9):
        assert tile.shape == (4, 6, 3) and (tile == [1, 0, 0]).all()
    for tile in shown_tiles(grey, 9):
        assert np.allclose(tile, 0.8)


# --------------------------------------------------------------------------------- the plane


def test_each_label_has_its_colour_and_its_name_where_its_points_are():
    labels = torch.arange(50) % 10
    z = PLANE * 0.1 + 3 * torch.stack([labels % 4, labels // 4], 1)
    ax = plot_latents(z, labels).axes[0]
    drawn = {line.get_color(): line.get_xydata() for line in ax.lines}
    for label in range(10):
        assert np.array_equal(drawn[CLASS_COLORS[label]], z[labels == label].numpy())
    for text in ax.texts:
        edge = mpl.colors.to_hex(text.get_bbox_patch().get_edgecolor())
        assert edge == CLASS_COLORS[int(text.get_text())]
    first = next(text for text in ax.texts if text.get_text() == "0")
    assert first.get_position() == pytest.approx(z[labels == 0].median(0).values.tolist(), abs=0.2)


LATENTS = {
    "alone": plot_latents,
    "beside": lambda z, labels: plot_plane(MODEL, z, labels),
    "narrow": lambda z, labels: plot_plane(MODEL, z, labels).narrow(),
}


@pytest.mark.parametrize("drawing", LATENTS)
@pytest.mark.parametrize("case", ["same place", "random", "one", "line"])
def test_no_label_lies_over_another(case, drawing):
    labels = torch.arange(200) % (1 if case == "one" else 10)
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    if case == "line":
        z = z * torch.tensor([1.0, 1e-3])
    figure = LATENTS[drawing](z if case != "random" else z + labels[:, None] * 0.3, labels)
    figure.canvas.draw()
    boxes = [text.get_bbox_patch().get_window_extent() for text in figure.axes[0].texts]
    for i, box in enumerate(boxes):
        assert inside(box, figure.axes[0].get_window_extent(), slack=3)
        for other in boxes[:i]:
            gap = np.hypot(
                box.x0 + box.x1 - other.x0 - other.x1, box.y0 + box.y1 - other.y0 - other.y1
            )
            assert gap / 2 >= 0.95 * box.width
    assert figure.axes[0].get_aspect() == 1


class Coordinates(nn.Module):
    """A decoder whose picture shows z itself: z₁ in its left pixel, z₂ in its right."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, z):
        self.modes.append(self.training)
        return torch.distributions.Normal((z.view(-1, 1, 1, 2) + 2.5) / 5, 1.0)


def test_the_manifold_has_its_first_axis_to_the_right_and_its_second_upwards():
    vae = tiny_vae((1, 8, 8))
    vae.decoder = Coordinates()
    ax = plot_manifold(vae, side=3).axes[0]
    (image,) = ax.images
    shown = 1 - np.asarray(image.get_array())[..., 0]
    assert shown[:, 0::2] == pytest.approx(np.array([[0, 0.5, 1]] * 3))  # along a row z₁ grows
    assert shown[:, 1::2] == pytest.approx(np.array([[1] * 3, [0.5] * 3, [0] * 3]))  # z₂ falls
    left, right, bottom, top = image.get_extent()
    # The centre of the outermost tiles is at ±2.5.
    assert [left + (right - left) / 6, top - (top - bottom) / 6] == pytest.approx([-2.5, 2.5])
    assert image.origin == "upper"


def test_the_contrast_of_the_manifold_is_not_stretched():
    vae = tiny_vae((1, 8, 8))
    for parameter in vae.decoder.parameters():
        nn.init.constant_(parameter, 0.0)
    with torch.no_grad():  # pictures of 0.4 with a row of 0.5
        vae.decoder.net[-2].bias.copy_(torch.where(torch.arange(64) < 8, 0.5, 0.4))
    (image,) = plot_manifold(vae, side=3).axes[0].images
    seen = image.to_rgba(image.get_array())[..., :3].reshape(3, 8, 24, 3)
    assert np.allclose(seen[:, 0], 0.5, atol=0.01) and np.allclose(seen[:, 1:], 0.6, atol=0.01)


def test_to_look_at_the_plane_changes_nothing():
    vae = tiny_vae((1, 8, 8))
    vae.decoder = Coordinates()
    vae.train()
    plane = decoded_plane(vae, 2.0, 4)
    assert plane.shape == (16, 1, 1, 2)
    assert (5 * plane[:, 0, 0] - 2.5)[[0, 3, 15]].tolist() == pytest.approx(
        np.array([[-2, 2], [2, 2], [2, -2]]), abs=1e-6
    )
    assert vae.decoder.modes == [False] and vae.decoder.training


# ------------------------------------------------------------------------------- rate–distortion


POINTS = {
    "positive": RATES,
    "negative": {1.0: (20, -900), 4.0: (10, -870)},
    "mixed": {0.5: (40.0, -15.0), 1.0: (25.0, -3.0), 8.0: (2.0, 60.0)},
    "single": {1.0: (14.0, 70.0)},
    "constant": {1.0: (5.0, 9.0), 2.0: (5.0, 9.0)},
    "nothing": {1.0: (0.0, 0.0)},
    "huge": {1.0: (2e6, 5e9), 2.0: (1e6, 6e9)},
    "steep": {0.1: (120, -950), 1: (30, -905.0), 10: (4, -640)},
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", POINTS)
def test_rate_and_distortion_are_drawn_on_one_scale_whatever_their_signs(kind, narrow):
    points = POINTS[kind]
    figure = plot_rate_distortion(points, narrow=narrow)
    figure.canvas.draw()
    ax = figure.axes[0]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < right and bottom < top  # neither axis is upside down
    box = ax.get_window_extent()
    assert box.width / (right - left) == pytest.approx(box.height / (top - bottom), rel=1e-3)
    (curve,) = (line for line in ax.lines if line.get_marker() == "o")
    assert curve.get_xydata().tolist() == [list(map(float, points[b])) for b in sorted(points)]
    for x, y in curve.get_xydata():
        assert left <= x < right and bottom < y < top
    sums = {round(float(np.sum(row)), 3) for line in ax.lines if line is not curve
            for row in line.get_xydata()}  # fmt: skip
    best = min(sum(pair) for pair in points.values())
    assert any(s == pytest.approx(best, abs=1e-3) for s in sums)
    visible = [s for s in sums if left + bottom < s < right + top]
    assert len(visible) >= 3
    for text in shown_texts(figure):
        assert inside(text.get_window_extent(), figure.bbox), text.get_text()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", ["positive", "negative", "mixed", "steep"])
def test_points_and_diagonals_are_named_and_no_line_strikes_through_a_name(kind, narrow):
    points = POINTS[kind]
    figure = plot_rate_distortion(points, narrow=narrow)
    figure.canvas.draw()
    ax = figure.axes[0]
    names = [text for text in ax.texts if text.get_text().startswith("β")]
    assert [text.get_text() for text in names] == [f"β = {beta:g}" for beta in sorted(points)]
    for text in names:
        assert tuple(text.xy) == tuple(points[float(text.get_text()[4:])])
        assert text.get_bbox_patch().get_facecolor() == (1, 1, 1, 1)  # it hides what lies below
    top, panel = ax.get_ylim()[1], ax.get_window_extent()
    for text in set(ax.texts) - set(names):
        x, y = text.get_position()
        assert y == top and text.get_color() == GREY
        assert float(text.get_text().replace("−", "-").replace(",", "")) == pytest.approx(x + y)
        assert text.get_window_extent().y0 >= panel.y1 - 0.01  # rounding
    (lowest,) = (b for b in points if sum(points[b]) == min(map(sum, points.values())))
    assert f"at β = {lowest:g}" in ax.get_title("left").replace("\n", " ")
    assert f"at β = {lowest:g}" in figure.alt
