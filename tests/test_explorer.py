"""The explorers of plane and cloud: what they hold, and what a reader meets in a browser."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_learning_curve import falling, history_of
from torch import nn

from vae_helpers import VAE, DecoderBernoulli, DecoderGaussian, EncoderGaussian, PriorGaussian
from vae_kit.explorer import explore_cloud, explore_plane
from vae_kit.learning_curve import axis_limits, decimals
from vae_kit.networks import mlp

SHAPE, POINTS = (1, 8, 6), 60  # images higher than wide: a mistaken axis shows
TEST, KEPT, EPOCHS = 120, 50, 6  # of the cloud


def planar(decoder=DecoderBernoulli, **options):
    """A model with codes all over the plane, and a posterior so narrow that it is its mean."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    net = mlp(2, [16], SHAPE)
    with torch.no_grad():
        encoder[1].weight[:2] *= 4
        encoder[1].weight[2:] = 0
        encoder[1].bias[2:] = -20
        for weight in net.parameters():
            weight.mul_(2)
    return VAE(EncoderGaussian(encoder), decoder(net, **options), PriorGaussian(2))


def images(count, shape=SHAPE, seed=5):
    """Smooth 8-bit images, which lossy compression hardly changes, told apart by their levels."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (count, shape[0], 2, 1), generator=generator, dtype=torch.uint8)
    rows = levels.repeat_interleave(-(-shape[1] // 2), 2)[:, :, : shape[1]]
    return rows.expand(-1, -1, -1, shape[2])


MODEL = planar()
X = torch.rand(POINTS, *SHAPE, generator=torch.Generator().manual_seed(5)).round()
LABELS = torch.arange(POINTS) % 10
PHOTOS = images(TEST, seed=7), torch.arange(TEST) * 7 % 4 + 3
HISTORY = falling(EPOCHS, TEST, keep_points=KEPT)


@pytest.fixture(scope="module")
def pages():
    torch.manual_seed(0)
    density = planar(DecoderGaussian, scale=0.3)
    with torch.no_grad():
        for weight in density.decoder.net.parameters():
            weight.zero_()
    return {
        "plane": explore_plane(MODEL, X, LABELS).data,
        "density": explore_plane(density, 0.05 * X, LABELS).data,
        "cloud": explore_cloud(HISTORY, *PHOTOS).data,
        "colour": explore_cloud(HISTORY, images(TEST, (3, 6, 4)), PHOTOS[1]).data,
    }


def content(page):
    return json.loads(html.unescape(re.search('data-content="([^"]*)"', page)[1]))


def tiles(held, name="images"):
    """The grey levels of each image of a page's sheet, ``(count, H, W)``."""
    file = io.BytesIO(base64.b64decode(held[name].partition("base64,")[2]))
    pixels, (rows, cols) = np.asarray(Image.open(file).convert("L")).astype(float), held["tile"]
    count = len(held.get("points", held.get("labels", [])))
    places = (divmod(i, held["columns"]) for i in range(count))
    return np.stack([pixels[r * rows :, c * cols :][:rows, :cols] for r, c in places])


def test_any_container_gives_the_same_page_and_disturbs_nothing(pages):
    before, state = [w.clone() for w in MODEL.parameters()], torch.get_rng_state()
    other, (raw, labels) = repr(np.random.get_state()), PHOTOS
    assert explore_plane(MODEL, X.double().numpy(), LABELS.tolist()).data == pages["plane"]
    for same in ((raw.numpy(), labels.tolist()), (raw / 255, labels.int())):
        assert explore_cloud(HISTORY, *same).data == pages["cloud"]
    assert torch.equal(torch.get_rng_state(), state) and repr(np.random.get_state()) == other
    assert all(map(torch.equal, before, MODEL.parameters())) and MODEL.training


def test_a_page_is_whole(pages):
    for page in pages.values():
        attribute = re.search('data-content="([^"]*)"', page)[1]
        assert not set(attribute) & set("<>'\"")
        assert not re.search(r"@[A-Z]+@|https?:|import\s*\(|fetch\(|url\(|XMLHttp", page)


def test_a_plane_holds_code_label_terms_and_both_images_of_each_point(pages):
    held, z = content(pages["plane"]), MODEL.encoder(X).mean.detach()
    near = z.abs().amax(1) <= held["limit"]
    assert near.float().mean() >= 0.98 and 2.5 <= held["limit"] <= z.abs().max() + 0.5
    assert held["beyond"] == (~near).sum()
    p = MODEL.decoder(z[near]).mean.double().detach()
    x, z = X[near].double(), z[near].double()
    distortion = -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    scale = MODEL.encoder(X[near]).stddev.double().detach()
    kl = 0.5 * (z**2 + scale**2 - 2 * scale.log() - 1).sum(1)
    expected = torch.column_stack([z, LABELS[near], distortion, kl])
    torch.testing.assert_close(torch.tensor(held["points"]).double(), expected, rtol=1e-3, atol=0.1)
    for name, truth in (("images", x), ("reconstructions", p)):
        assert np.abs(tiles(held, name) - 255 * (1 - truth[:, 0].numpy())).mean() <= 6


def test_a_cloud_holds_curve_label_and_image_of_each_point_within_the_curve_s_limits(pages):
    held, rows = content(pages["cloud"]), HISTORY.test.values
    numbers, place = np.array(held["numbers"]), {n: i for i, n in enumerate(HISTORY.test.index)}
    assert sorted(numbers) == HISTORY.test.index.tolist() and held["recorded"] == KEPT
    unit = 10.0 ** -decimals(rows[-1])
    curves = np.cumsum(held["steps"], 1) * unit
    own = rows[:, [place[n] for n in numbers]].T
    assert np.abs(curves - own).max() <= 0.5001 * unit
    assert held["labels"] == PHOTOS[1][numbers].tolist()
    assert np.abs(tiles(held) - 255 + PHOTOS[0][numbers, 0].numpy()).mean() <= 6
    assert tuple(held["range"]) == axis_limits(HISTORY)
    assert held["mean"] == pytest.approx(HISTORY.test.mean, abs=0.51 * unit)
    bands = np.quantile(rows.astype(float), (0.05, 0.25, 0.75, 0.95), axis=1)
    assert np.allclose(held["bands"], bands, atol=0.51 * unit)
    assert held["worse"] == {"since": 3, "count": int((rows[-1] > rows[3]).sum())}


@pytest.mark.parametrize(
    ("show", "message"),
    [
        (lambda: explore_plane(MODEL, X.flatten(1), LABELS), r"\(N, 1, H, W\); got \(60, 48\)"),
        (lambda: explore_plane(MODEL, X, LABELS[:5]), "60 whole numbers"),
        (lambda: explore_plane(MODEL, X, LABELS.view(60, 1)), "60 whole numbers"),
        (lambda: explore_cloud(HISTORY, PHOTOS[0].flatten(1), PHOTOS[1]), r"got \(50, 48\)"),
        (lambda: explore_cloud(HISTORY, PHOTOS[0][:9], PHOTOS[1][:9]), "120 test images"),
        (lambda: explore_cloud(HISTORY, PHOTOS[0], PHOTOS[1] / 2), "120 whole numbers"),
        (lambda: explore_cloud(history_of(np.zeros((1, 9)), epochs=1), *PHOTOS), "no finished"),
    ],
)  # fmt: skip
def test_what_cannot_be_explored_is_refused(show, message):
    with pytest.raises(ValueError, match=message):
        show()


DOTS = (3, 77, 150, 215, 299)
TOP = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Explorers</title>
<meta name="viewport" content="width=device-width"><style>@media (prefers-color-scheme: dark) {
body { color: #dde; background: #111 } p { color: #ced6dd } }</style><main><h1>Explorers</h1>"""


@pytest.fixture(scope="module")
def seen(browse, pages, tmp_path_factory):
    """Everything the reader does, in one visit to a page that holds explorers of both kinds."""
    held = content(pages["plane"])
    half = held["limit"] * held["side"] / (held["side"] - 1)
    spot = [0.5 + held["points"][7][0] / 2 / half, 0.5 - held["points"][7][1] / 2 / half]
    actions = {
        "pointed": {"move": [0.31, 0.77]},
        "clicked": {"click": spot},
        "middle": {"move": [0.5, 0.5]},
        "keys": {"keys": ["ArrowRight", "ArrowRight", "ArrowUp"]},
        "left": {"keys": ["ArrowLeft"] * 100},
        "density": {"explorer": 1, "click": [0.31, 0.77]},
        "cloud": {"explorer": 2},
        **{f"dot {i}": {"explorer": 2, "dot": i} for i in DOTS},
        "walked": {"explorer": 2, "keys": ["ArrowLeft", "ArrowUp"]},
        "first": {"explorer": 2, "keys": ["ArrowLeft"] * 20},
        "top": {"explorer": 2, "keys": ["ArrowUp"] * 80 + ["x"]},
        "label": {"explorer": 2, "label": "4"},
        "worse": {"explorer": 2, "label": "got worse"},
        "all": {"explorer": 2, "label": "got worse"},
        "again": {"explorer": 2, "rerun": True, "dot": 77},
        "swiped": {"explorer": 2, "swipe": [[0.5, 0.9 - 0.1 * i] for i in range(9)]},
        "drawn": {"explorer": 0, "swipe": [[0.2 + 0.1 * i, 0.5] for i in range(7)]},
    }
    file = tmp_path_factory.mktemp("explorer") / "page.html"
    body = "".join(f'<div class="output">{page}</div>' for page in pages.values())
    file.write_text(TOP + body, encoding="utf-8")
    found = browse("explore.mjs", file, json.dumps([{"explorer": 0} | a for a in actions.values()]))
    return found | dict(zip(actions, found["states"], strict=True))


def numbers(text):
    """The numbers that a text shows, with thousands apart and true minus signs."""
    found = re.findall(r"−?\d[\d,]*(?:\.\d+)?", text)
    return [float(number.replace("−", "-").replace(",", "")) for number in found]


def test_the_image_of_the_plane_follows_pointer_and_keys(seen, pages):
    held = content(pages["plane"])
    step = 2 * held["limit"] / (held["side"] - 1)
    edge = held["limit"] + step / 2
    pointed = np.round(np.array([2 * 0.31 - 1, 1 - 2 * 0.77]) * edge / step) * step
    places = {"pointed": pointed, "middle": [0, 0], "keys": [2 * step, step]}
    for name, z in {**places, "left": [-held["limit"], step]}.items():
        assert numbers(seen[name]["at"]) == pytest.approx(list(z), abs=0.0051)
        height, width, *channels = seen[name]["images"][0]
        truth = 255 * (
            1 - MODEL.decoder(torch.tensor(np.array([z])).float()).mean[0, 0].detach().numpy()
        )
        assert np.abs(np.reshape(channels[0], (height, width)) - truth).mean() <= 6
    _, y = numbers(seen["drawn"]["at"])
    assert abs(y) < step and numbers(seen["drawn"]["at"]) != numbers(seen["left"]["at"])


def test_a_click_on_a_test_point_tells_its_elbo(seen, pages):
    _, _, label, distortion, rate = content(pages["plane"])["points"][7]
    state = seen["clicked"]
    assert state["split"][0].startswith(f"A {label}: −ELBO")
    shown = [numbers(text)[-1] for text in state["split"]]
    assert shown == pytest.approx([distortion + rate, distortion, rate], abs=0.051)
    assert state["bar"] > 0 == seen["density"]["bar"], "a negative length cannot be drawn"
    assert sorted(state["names"]) == [str(label) for label in range(10)]


def assert_shown(state, history, photos, which, epoch):
    """All of a state is true of the test point of this number, in this epoch."""
    curve = history.test.values[:, history.test.index.tolist().index(which)].astype(float)
    unit, last = 10.0 ** -decimals(history.test.values[-1]), len(history)
    assert state["which"] == f"Test image {which:,}, label {int(photos[1][which])}"
    epochs = sorted({0, epoch, last})
    names = ["before training" if e == 0 else f"epoch {e}" for e in epochs]
    assert state["rows"][::2] == names
    told = [numbers(text)[0] for text in state["rows"][1::2]]
    assert told == pytest.approx(curve[epochs].tolist(), abs=0.51 * unit)
    own = state["own"]  # its curve, as drawn, and where that lies on the screen by the scales
    assert [point["nats"] for point in own] == pytest.approx(curve.tolist(), abs=0.51 * unit)
    for ticks, side, values in (("up", "top", curve), ("across", "left", np.arange(last + 1))):
        said, lie = zip(*((numbers(t["text"])[0], t[side]) for t in state[ticks]), strict=True)
        places = np.array([point[side] for point in own])
        expected = np.polyval(np.polyfit(said, lie, 1), values)
        assert np.abs(expected - places).max() <= 1 + 2e-3 * np.ptp(places)
    assert state["ring"]["left"] == pytest.approx(own[epoch]["left"], abs=1)
    top = np.clip(own[epoch]["top"], *state["box"])
    assert state["ring"]["top"] == pytest.approx(top, abs=1.5)
    picture = photos[0][which].numpy().astype(float)
    truth = 255 - picture[[0, 0, 0]] if len(picture) == 1 else picture
    height, width, *channels = state["images"][0]
    assert np.abs(np.reshape(channels, (3, height, width)) - truth).mean() <= 12


def shown(state):
    """The number of the point that is shown, and the epoch."""
    epochs = [numbers(text)[0] for text in state["rows"][2::2]]
    return int(numbers(state["which"])[0]), int(epochs[0])


def ranked(epoch):
    """The numbers of all kept points by their value in an epoch."""
    return HISTORY.test.index[HISTORY.test.values[epoch].argsort(kind="stable")].tolist()


def test_the_cloud_opens_with_a_typical_image_and_shows_the_dot_that_is_pointed_at(seen):
    assert_shown(seen["cloud"], HISTORY, PHOTOS, ranked(EPOCHS)[KEPT // 2], EPOCHS)
    assert seen["cloud"]["limits"] == pytest.approx(axis_limits(HISTORY))
    for i in DOTS:
        state = seen[f"dot {i}"]
        dot = state["dots"][i]
        which, _ = shown(state)
        epoch = round(dot["epoch"])
        near = np.abs(HISTORY.test.values[epoch] - dot["nats"])
        if state["box"][0] + 1 < dot["top"] < state["box"][1] - 8:  # else it stands for its value
            assert which == HISTORY.test.index[near.argmin()]
            assert_shown(state, HISTORY, PHOTOS, which, epoch)
    assert seen["again"]["rows"] == seen["dot 77"]["rows"], "a cell that is run again lives"


def test_arrow_keys_walk_through_epochs_and_images(seen):
    before, epoch = shown(seen[f"dot {DOTS[-1]}"])
    order = ranked(epoch - 1)
    which = order[min(order.index(before) + 1, KEPT - 1)]
    assert_shown(seen["walked"], HISTORY, PHOTOS, which, epoch - 1)
    assert_shown(seen["first"], HISTORY, PHOTOS, which, 0)
    assert_shown(seen["top"], HISTORY, PHOTOS, ranked(0)[-1], 0)
    assert seen["top"]["heard"] == ["x"], "the page around it hears no arrow key"


def test_a_label_and_those_that_got_worse_are_singled_out(seen):
    values, labels = HISTORY.test.values, PHOTOS[1][HISTORY.test.index].numpy()
    rose = values[-1] > values[EPOCHS // 2]
    for name, own, pressed in (("label", labels == 4, "4"), ("worse", rose, "got worse")):
        state = seen[name]
        assert state["pressed"] == [pressed]
        assert len(state["chosen"]) == own.sum() * (EPOCHS + 1)
        assert shown(state)[0] in HISTORY.test.index[own]
    assert f"from epoch 3 to epoch 6, as that of {rose.sum()} of the {KEPT}" in state["words"]
    assert seen["all"]["pressed"] == [] and seen["all"]["chosen"] == []


def test_they_leave_the_page_alone_and_a_swipe_scrolls_it(seen):
    assert all(state["strangers"] == [] for state in seen["states"]), "no globals"
    assert all(state["keysKept"] for state in seen["states"]), "shortcuts of JupyterLab rest"
    assert seen["errors"] == [], "no messages, no requests"
    assert seen["swiped"]["scrolled"] > seen["again"]["scrolled"] + 50
    assert np.median(seen["milliseconds"]) < 16  # a frame at 60 per second


def test_they_suit_every_reader_theme_and_screen(seen):
    assert seen["axe"] == [] and seen["overflow"] == [] and min(seen["letters"]) >= 13
    for theme in ("light", "dark", "contrast"):
        for swatches in seen["swatches"][theme]:
            assert swatches[1] == "exact", "printed without background colours, too"
        assert len({color for color, _ in seen["swatches"][theme]}) == 2


def test_without_a_script_the_plane_is_a_picture_and_the_cloud_a_sentence(seen):
    plane, _, cloud, *_ = seen["withoutScript"]
    assert plane["text"] == "" and plane["images"][0]["alt"] and plane["images"][0]["width"] > 200
    assert cloud["images"] == [] and cloud["text"].startswith("Where scripts run, ")
