"""The explorers of plane and cloud: what they hold, and what a reader meets in a browser."""

import base64
import copy
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vae_helpers as lab
from tools import ROOT, tiny_vae
from vae_distributions import MIN_SCALE
from vae_explorer import explore_cloud, explore_plane
from vae_figures import CLASS_COLORS
from vae_networks import mlp

SHAPE = (1, 8, 6)  # higher than wide: a mistaken axis shows
POINTS = 60  # of the plane
TEST, KEPT, EPOCHS = 120, 50, 6  # of the cloud


@pytest.fixture(scope="module")
def model():
    """Codes all over the plane, a posterior so narrow that its one sample is its mean."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    decoder = mlp(2, [16], SHAPE)
    with torch.no_grad():
        encoder[1].weight[:2] *= 4
        encoder[1].weight[2:] = 0
        encoder[1].bias[2:] = -20
        for weight in decoder.parameters():
            weight.mul_(2)
    return lab.VAE(
        lab.EncoderGaussian(encoder), lab.DecoderBernoulli(decoder), lab.PriorGaussian(2)
    )


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(POINTS, *SHAPE, generator=generator).round()
    return x, torch.arange(POINTS) % 10


@pytest.fixture(scope="module")
def density():
    """A Gaussian decoder that fits its grey images well: its −ELBO is negative. With its data."""
    generator = torch.Generator().manual_seed(6)
    x = 0.5 + 0.02 * torch.randn(POINTS, *SHAPE, generator=generator)
    torch.manual_seed(4)
    encoder, decoder = mlp(SHAPE, [], 4), mlp(2, [16], SHAPE)
    (first,), (*_, last) = (
        [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        for net in (encoder, decoder)
    )
    with torch.no_grad():
        first.weight[:2] *= 100
        first.bias.copy_(-0.5 * first.weight.sum(1))
        last.weight.mul_(0.1)
        last.bias.fill_(0.5)
    vae = lab.VAE(
        lab.EncoderGaussian(encoder), lab.DecoderGaussian(decoder, 0.05), lab.PriorGaussian(2)
    )
    return vae, x


@pytest.fixture(scope="module")
def explorer(model, data):
    return explore_plane(model, *data).data


@pytest.fixture(scope="module")
def photos():
    """Raw images and labels, told apart by their pixels; the labels are not in order."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(256, (TEST, *SHAPE), generator=generator, dtype=torch.uint8)
    images[:, :, :, :3] //= torch.randint(1, 9, (TEST, 1, 1, 1), generator=generator)
    return images, torch.randint(3, 7, (TEST,), generator=generator)


@pytest.fixture(scope="module")
def history(photos):
    """A run that kept a sample of its test points, and was far above its end before it began."""
    torch.manual_seed(8)
    vae = tiny_vae(SHAPE, decoder=lambda net: lab.DecoderGaussian(net, 0.05))
    return lab.fit(
        vae, photos[0], photos[0], epochs=EPOCHS, batch_size=20, lr=0.02, keep_points=KEPT,
        transform=lambda raw: raw / 255, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cloud(history, photos):
    return explore_cloud(history, *photos).data


def content(page):
    return json.loads(html.unescape(re.search('data-content="([^"]*)"', page)[1]))


def ink(tensor):
    """What a canvas shows of an image: 8-bit grey, dark on white."""
    return (255 * (1 - tensor.detach().numpy())).flatten()


# ------------------------------------------------------------------------------- the pages


def test_the_same_model_gives_the_same_bytes(model, data, explorer, history, photos, cloud):
    torch.manual_seed(99)
    assert explore_plane(model, *data).data == explorer
    assert explore_cloud(history, *photos).data == cloud


def test_drawing_disturbs_no_generator_and_no_weight(model, data, history, photos):
    before = [w.clone() for w in model.parameters()]
    state, other = torch.get_rng_state(), repr(np.random.get_state())
    explore_plane(model, *data)
    explore_cloud(history, *photos)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == other
    assert all(map(torch.equal, before, model.parameters()))


def test_looking_at_a_plane_changes_no_mode_and_no_running_average(data):
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 4))
    decoder = nn.Sequential(nn.Linear(2, 48), nn.BatchNorm1d(48), nn.Unflatten(1, SHAPE))
    vae = lab.VAE(
        lab.EncoderGaussian(net), lab.DecoderBernoulli(decoder), lab.PriorGaussian(2)
    ).train()
    decoder[1].eval()  # a part of it is frozen
    before = copy.deepcopy(vae.state_dict())
    explore_plane(vae, *data)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert vae.training and net[1].training and not decoder[1].training


def test_a_model_in_double_precision_is_explored_too(model, data, explorer):
    double = copy.deepcopy(model).double()
    points = np.array(content(explore_plane(double, data[0].double(), data[1]).data)["points"])
    single = np.array(content(explorer)["points"])
    assert np.abs(points - single)[:, [0, 1, 2, 4]].max() <= 0.002  # all but the sampled term


def test_only_the_outermost_codes_are_left_out(model, data, explorer):
    codes = model.encoder(data[0]).mean.detach().abs().amax(1)
    held = content(explorer)
    assert held["limit"] >= 2.5
    assert len(held["points"]) == int((codes <= held["limit"]).sum()) >= 58  # of 60


def test_a_plane_of_one_point_has_room_around_it(data):
    flat = tiny_vae(SHAPE, decoder=lab.DecoderBernoulli)
    with torch.no_grad():
        for weight in flat.encoder.parameters():
            weight.zero_()
    assert content(explore_plane(flat, *data).data)["limit"] == 2.5


def test_nothing_in_the_page_ends_its_attribute_or_comes_from_elsewhere(explorer, cloud):
    for page in (explorer, cloud):
        attribute = re.search('data-content="([^"]*)"', page)[1]
        assert not set(attribute) & set("<>'\"")
        assert not re.search(r"@[A-Z]+@", page)
        assert not re.search(r"https?:|import\s*\(|fetch\(|url\(|XMLHttp", page)


def test_the_style_is_of_the_explorers_only(cloud):
    style = re.search("<style>(.*?)</style>", cloud, re.DOTALL)[1]
    style = re.sub(r"/\*.*?\*/|@media[^{]*\{", "", style, flags=re.DOTALL)
    for selectors in re.findall(r"([^{}]+)\{", style):
        for selector in re.sub(r"\([^)]*\)", "", selectors).split(","):
            assert re.match(r"\s*\.(lab|plane|cloud)-explorer\b", selector), selector


@pytest.mark.parametrize(
    ("latents", "shape", "labels", "message"),
    [
        (3, SHAPE, 4, "D = 2; got D = 3"),
        (2, (48,), 4, r"images \(N, 1, H, W\).*got \(4, 48\)"),
        (2, (3, 4, 4), 4, r"images \(N, 1, H, W\).*got \(4, 3, 4, 4\)"),
        (2, SHAPE, 5, r"labels \(N,\); got \(4, 1, 8, 6\) and \(5,\)"),
    ],
)
def test_what_cannot_be_shown_on_a_plane_is_refused(latents, shape, labels, message):
    vae = tiny_vae(shape, latents, decoder=lab.DecoderBernoulli)
    with pytest.raises(ValueError, match=message):
        explore_plane(vae, torch.zeros(4, *shape), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.flatten(1), y), r"got \(120, 48\)\. Give flattened images their shape"),
        (lambda x, y: (x.expand(-1, 2, -1, -1), y), r"one channel or three; got \(120, 2, 8, 6\)"),
        (lambda x, y: (x[:100], y[:100]), "history is of 120 test points; got 100 images"),
        (lambda x, y: (x, y[:100]), r"labels \(100,\)\. Give the images and labels of the whole"),
        (lambda x, y: (x, y[:, None]), r"labels \(120, 1\)"),
        (lambda x, y: (x, y.float()), r"whole numbers; got torch.float32: try labels.long\(\)"),
        (lambda x, y: (x.float(), y), r"from 0 to 255: give the raw images"),
        (lambda x, y: (x.float() / 255 - 0.5, y), r"from -0\.5 to 0\.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_as_a_cloud_is_refused(history, photos, change, message):
    with pytest.raises(ValueError, match=message):
        explore_cloud(history, *change(*photos))


def test_remedies_for_a_cloud_work(history, photos, cloud):
    images, labels = photos
    assert explore_cloud(history, images.flatten(1).reshape(-1, *SHAPE), labels).data == cloud
    assert explore_cloud(history, images, labels.float().long()).data == cloud
    assert explore_cloud(history, images.numpy(), labels.numpy()).data == cloud
    assert explore_cloud(history, images / 255, labels).data == cloud
    assert explore_cloud(history, images.double() / 255, labels.int()).data == cloud


def test_a_history_without_an_epoch_is_refused(photos):
    with pytest.raises(ValueError, match="no finished epoch"):
        explore_cloud(Recorded(np.zeros((1, TEST))), *photos)


def test_a_missing_page_is_named(tmp_path):
    for module in ROOT.glob("vae_*.py"):
        shutil.copy(module, tmp_path)
    script = (
        "import torch, vae_helpers as lab, vae_explorer, vae_networks as nets\n"
        "e, d = nets.mlp((1, 2, 2), [2], 4), nets.mlp(2, [2], (1, 2, 2))\n"
        "vae = lab.VAE(lab.EncoderGaussian(e), lab.DecoderBernoulli(d), lab.PriorGaussian(2))\n"
        "x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)\n"
        "vae_explorer.explore_plane(vae, x, y)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "FileNotFoundError: explorer.html is missing" in done.stderr
    assert "beside vae_explorer.py" in done.stderr


# ------------------------------------------------------------- what the page of a cloud holds


def curves_of(page):
    """The curves ``(points, epochs + 1)`` in nats that a page holds, and their points' numbers."""
    held = content(page)
    return np.cumsum(held["steps"], 1) / 10 ** held["digits"], np.array(held["numbers"])


class Recorded:
    """A history of these test values ``(epochs + 1, kept)``: as much of it as a cloud needs."""

    def __init__(self, values):
        self.test, self.test_mean = values.astype(np.float32), values.mean(1)
        self.test_points = values.shape[1]
        self.test_index = np.arange(self.test_points)

    def __len__(self):
        return len(self.test) - 1


def noise(points, shape=(1, 28, 28)):
    """Images of which no byte can be saved."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (points, *shape), generator=generator, dtype=torch.uint8)


def test_a_cloud_holds_curves_to_the_digit_that_it_shows(history, cloud):
    curves, number = curves_of(cloud)
    column = {n: i for i, n in enumerate(history.test_index.tolist())}
    assert sorted(number) == history.test_index.tolist(), "each point that the history kept"
    assert len(column) < history.test_points, "the history kept a sample"
    for curve, n in zip(curves, number.tolist(), strict=True):
        assert np.abs(curve - history.test[:, column[n]]).max() <= 0.05001
    assert content(cloud)["mean"] == pytest.approx(history.test_mean, abs=0.05001)


def tiles_of(sheet, count, columns=30):
    """The tiles ``(count, H, W)`` of a sheet that a page holds, 8-bit."""
    file = io.BytesIO(base64.b64decode(sheet.removeprefix("data:image/png;base64,")))
    pixels, (rows, cols) = np.asarray(Image.open(file).convert("L")), SHAPE[1:]
    places = (divmod(i, columns) for i in range(count))
    return np.stack([pixels[r * rows :, c * cols :][:rows, :cols] for r, c in places])


def test_a_cloud_holds_the_image_and_the_label_of_each_of_its_points(photos, cloud):
    held, (images, labels) = content(cloud), photos
    numbers = np.array(held["numbers"])
    assert (numbers != np.arange(len(numbers))).any()
    assert held["labels"] == labels[numbers].tolist()
    assert np.array_equal(tiles_of(held["images"], len(numbers)), 255 - images[numbers, 0].numpy())


def test_a_plane_holds_code_label_terms_and_both_images_of_each_point(model, data, explorer):
    held, (x, labels) = content(explorer), data
    z = model.encoder(x).mean
    near = z.abs().amax(1) <= held["limit"]
    assert len(x) * 0.98 - 1 <= near.sum() < len(x)
    x, labels, z = x[near], labels[near], z[near].detach()
    log_p = model.decoder.log_prob(x, z).detach()
    kl = 0.5 * (z**2 + MIN_SCALE**2 - 2 * math.log(MIN_SCALE) - 1).sum(1)
    expected = torch.column_stack([z, labels, -log_p, kl])
    torch.testing.assert_close(torch.tensor(held["points"]), expected, rtol=1e-3, atol=0.06)
    assert np.array_equal(tiles_of(held["images"], len(x)), (255 * (1 - x[:, 0])).numpy())
    drawn = 255 * (1 - model.decoder(z).mean[:, 0].detach())
    assert np.abs(tiles_of(held["reconstructions"], len(x)) - drawn.numpy()).max() <= 0.51
    assert held["colors"] == list(CLASS_COLORS)


@pytest.mark.parametrize(("spread", "digits"), [(70000, 0), (700, 1), (90, 2), (0.5, 4)])
def test_digits_tell_apart_a_thousandth_of_the_spread(spread, digits):
    values = np.random.default_rng(0).uniform(-spread / 2, spread / 2, (3, 2000)) / 0.9 - 3e4
    page = explore_cloud(Recorded(values), noise(2000, (1, 2, 2)), torch.arange(2000) % 10).data
    curves, number = curves_of(page)
    assert content(page)["digits"] == digits
    assert np.abs(curves - values.astype(np.float32)[:, number].T).max() <= 0.5001 * 10.0**-digits


def test_of_many_points_a_fixed_random_sample_is_held():
    values = np.random.default_rng(0).normal(-500, 100, (4, 5000))
    images, labels = noise(5000, (1, 2, 2)), torch.arange(5000) % 10
    numbers = curves_of(explore_cloud(Recorded(values), images, labels).data)[1]
    assert len(set(numbers.tolist())) == 800
    assert abs(numbers.mean() - 2500) < 5 * 5000 / np.sqrt(12 * 800), "all over the test set"


def test_bands_are_over_all_points_that_the_history_kept():
    values = np.random.default_rng(0).exponential(100, (3, 4001))
    images, labels = noise(4001, (1, 2, 2)), torch.zeros(4001, dtype=torch.int64)
    held = content(explore_cloud(Recorded(values), images, labels).data)
    expected = np.sort(values, 1)[:, [200, 1000, 3000, 3800]].T
    assert np.array(held["bands"]) == pytest.approx(expected, abs=0.051)
    assert held["recorded"] == 4001


@pytest.mark.parametrize(
    ("epochs", "shape", "ink", "least"),
    [(80, (1, 28, 28), 5, 800), (80, (1, 28, 28), 1, 300), (300, (3, 32, 32), 1, 50)],
)
def test_it_adds_at_most_600_kilobytes(epochs, shape, ink, least):
    rng = np.random.default_rng(0)
    values = 4000 / np.arange(1, epochs + 2)[:, None] + rng.normal(-600, 200, 1000)
    images = noise(1000, shape)
    images[:, :, images.shape[2] // ink :] = 0  # MNIST has ink on a fifth of its pixels
    page = explore_cloud(Recorded(values), images, torch.arange(1000) % 10).data
    assert len(page.encode()) <= 600_000
    assert len(curves_of(page)[1]) >= least


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 1)), np.full((3, 4), -7.25), np.array([[1e7, -3], [0.04, 2e6]]), np.eye(5)],
)
def test_the_range_is_never_empty_and_holds_the_end(values):
    n = values.shape[1]
    page = explore_cloud(Recorded(values), noise(n), torch.zeros(n, dtype=torch.int64)).data
    low, high = content(page)["range"]
    assert low < high
    assert low < values[-1].mean() < high


# ------------------------------------------------------------------------- in the browser


def planned(model, x, labels, page):
    """What is to be done, and what must then be seen: computed from the model alone."""
    limit, side = (content(page)[key] for key in ("limit", "side"))
    codes = model.encoder(x).mean.detach()
    near = codes.abs().amax(1) <= limit
    x, labels, codes = x[near], labels[near], codes[near]
    # The plane reaches half a step of its grid beyond the outermost grid points, at ±limit.
    step = 2 * limit / (side - 1)
    edge = limit + step / 2
    places = np.stack([edge + codes[:, 0], edge - codes[:, 1]], 1) / (2 * edge)
    return {"x": x, "labels": labels, "codes": codes, "step": step, "edge": edge, "places": places}


@pytest.fixture(scope="module")
def plan(model, data, explorer):
    return planned(model, *data, explorer)


@pytest.fixture(scope="module")
def colours(history):
    """Another run's cloud, of colour images: 2 epochs, few points, some beyond both edges."""
    rng = np.random.default_rng(2)
    values = np.concatenate([[rng.normal(9000, 10, 40)], rng.normal(-1000, 50, (2, 40))])
    values[1, 7], values[2, 7], values[1, 9] = 5000, 4000, -5000
    return Recorded(values), noise(40, (3, 5, 4)), torch.arange(40) % 2


@pytest.fixture(scope="module")
def flat():
    """The shortest run, of two points that hardly differ."""
    values = np.array([[-7.31, -7.28], [-7.26, -7.24]])
    return Recorded(values), noise(2, (1, 3, 3)), torch.tensor([5, 5])


@pytest.fixture(scope="module")
def seen(browse, explorer, cloud, colours, flat, plan, density, tmp_path_factory):
    """Everything the reader does, in one visit to a page that holds explorers of both kinds."""
    pointers = [[0.013, 0.02], [0.31, 0.77], [0.62, 0.18], [0.985, 0.99]]
    clicks = [0, 7, 23]
    dots = [3, 77, 150, 215, 299]
    second = explore_cloud(*colours).data
    at = content(second)["numbers"]  # the order of its dots in each epoch
    actions = {
        **{("pointer", i): {"move": place} for i, place in enumerate(pointers)},
        **{("click", i): {"click": plan["places"][i].tolist()} for i in clicks},
        "middle": {"move": [0.5, 0.5]},
        "keys": {"keys": ["ArrowRight", "ArrowRight", "ArrowUp"]},
        "far left": {"keys": ["ArrowLeft"] * 100},
        "entered": {"keys": ["Enter"]},
        "touched": {"touch": [[0.2, 0.2], [0.4, 0.5], [0.7, 0.9]]},
        "coloured": {"move": [0.31, 0.77], "colors": plan["places"].tolist()},
        "second": {"explorer": 1, "click": [0.31, 0.77]},
        "cloud": {"explorer": 2},
        **{("dot", i): {"explorer": 2, "dot": i} for i in dots},
        "walked": {"explorer": 2, "keys": ["ArrowLeft", "ArrowUp"]},
        "to the first": {"explorer": 2, "keys": ["ArrowLeft"] * 20},
        "to the top": {"explorer": 2, "keys": ["ArrowUp"] * 80},
        "to the last": {"explorer": 2, "keys": ["ArrowRight"] * 20 + ["x"]},
        "fingered": {"explorer": 2, "touch": [[0.2, 0.2], [0.4, 0.5], [0.7, 0.9]]},
        "labelled": {"explorer": 2, "label": "4"},
        "within": {"explorer": 2, "move": [0.6, 0.6]},
        "relabelled": {"explorer": 2, "label": "6"},
        "all": {"explorer": 2, "label": "6"},
        "above": {"explorer": 3, "dot": 2 * 40 + at.index(7)},
        "below": {"explorer": 3, "dot": 1 * 40 + at.index(9)},
        "flat": {"explorer": 4},
        "again": {"explorer": 2, "rerun": True, "dot": 77},
        "plane again": {"explorer": 0, "rerun": True, "move": pointers[1]},
    }
    pages = [
        explorer,
        explore_plane(*density, torch.zeros(POINTS, dtype=torch.int64)).data,
        cloud,
        second,
        explore_cloud(*flat).data,
    ]
    file = tmp_path_factory.mktemp("explorer") / "page.html"
    top = (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Explorers</title>'
        '<meta name="viewport" content="width=device-width">'
        "<style>@media (prefers-color-scheme: dark) {body {color: #dde; background: #111}}</style>"
        "<main><h1>Five explorers</h1>"
    )
    body = "".join(f'<div class="output">{page}</div>' for page in pages)
    file.write_text(f"{top}{body}", encoding="utf-8")
    planned_actions = json.dumps([{"explorer": 0} | action for action in actions.values()])
    found = browse("explore.mjs", file, planned_actions)
    found |= dict(zip(actions, found["states"], strict=True))
    found["pointers"] = [(p, found["pointer", i]) for i, p in enumerate(pointers)]
    found["clicks"] = [(i, found["click", i]) for i in clicks]
    found["pointed"] = [(i, found["dot", i]) for i in dots]
    found["second plan"] = planned(*density, torch.zeros(POINTS), pages[1])
    return found


def number(text):
    """The number that a text shows, with thousands apart and a true minus sign."""
    return float(re.search(r"−?[\d,]+(\.\d+)?", text)[0].replace("−", "-").replace(",", ""))


def where(state):
    return [float(n) for n in re.findall(r"-?\d+\.\d+", state["at"].replace("−", "-"))]


def drawn(state, which=0):
    height, width, *channels = state["images"][which]
    assert (height, width) == SHAPE[1:]
    assert channels[0] == channels[1] == channels[2]
    return np.array(channels[0])


def grid_point(plan, place):
    """The grid's point that is nearest to a place on the plane."""
    z = np.array([2 * place[0] - 1, 1 - 2 * place[1]]) * plan["edge"]
    return np.round(z / plan["step"]) * plan["step"]


def assert_decoded(model, state, z):
    assert where(state) == pytest.approx(list(z), abs=0.0051)
    picture = model.decoder(torch.tensor(np.array([z]), dtype=torch.float32)).mean
    assert np.abs(drawn(state) - ink(picture)).max() <= 0.51


def test_the_image_follows_the_pointer(seen, model, plan):
    shown = []
    for place, state in seen["pointers"]:
        assert_decoded(model, state, grid_point(plan, place))
        shown.append(drawn(state).tolist())
    assert len({tuple(picture) for picture in shown}) == len(shown)


def test_a_click_on_a_test_point_tells_its_elbo(seen, model, plan):
    for i, state in seen["clicks"]:
        mu, sigma = plan["codes"][i].double().numpy(), MIN_SCALE
        kl = 0.5 * (mu**2 + sigma**2 - np.log(sigma**2) - 1).sum()
        x, p = (
            plan["x"][i].double(),
            model.decoder(plan["codes"][i : i + 1]).mean[0].double().detach(),
        )
        distortion = -(x * p.log() + (1 - x) * (1 - p).log()).sum().item()
        total, reconstruction, rate = map(number, (t.split(":")[-1] for t in state["split"]))
        assert state["split"][0].startswith(f"A {plan['labels'][i]}: −ELBO")
        # One sample of a posterior of width 0.001 moves the reconstruction term a little.
        assert reconstruction == pytest.approx(distortion, abs=0.15)
        assert rate == pytest.approx(kl, abs=0.06)
        assert total == pytest.approx(reconstruction + rate, abs=0.11)
        assert np.array_equal(drawn(state, 1), ink(plan["x"][i]))
        assert np.abs(drawn(state, 2) - ink(p)).max() <= 0.51


def test_arrow_keys_move_and_enter_picks(seen, model, plan):
    assert_decoded(model, seen["middle"], np.zeros(2))
    assert_decoded(model, seen["keys"], np.array([2, 1]) * plan["step"])
    left = np.array([plan["step"] / 2 - plan["edge"], plan["step"]])
    assert_decoded(model, seen["far left"], left)
    nearest = np.hypot(*(plan["codes"].numpy() - left).T).argmin()
    assert seen["entered"]["split"][0].startswith(f"A {plan['labels'][nearest]}: ")
    assert np.array_equal(drawn(seen["entered"], 1), ink(plan["x"][nearest]))


def test_a_finger_explores_and_the_page_stays(seen, model, plan):
    assert_decoded(model, seen["touched"], grid_point(plan, [0.7, 0.9]))
    assert seen["touched"]["scrolled"] == seen["entered"]["scrolled"]


def test_a_second_explorer_lives_too_and_shows_a_density(seen, density):
    vae, plan = density[0], seen["second plan"]
    assert_decoded(vae, seen["second"], grid_point(plan, [0.31, 0.77]))
    total, reconstruction, rate = (number(t.split(":")[-1]) for t in seen["second"]["split"])
    assert reconstruction < 0 < rate
    assert total == pytest.approx(reconstruction + rate, abs=0.11)
    assert seen["second"]["bar"] == 0, "a negative length cannot be drawn"
    assert seen["entered"]["bar"] > 0


def test_each_test_point_lies_at_its_code_in_the_colour_of_its_label(seen, plan):
    from matplotlib.colors import to_rgb

    colors = 255 * np.array([to_rgb(color) for color in CLASS_COLORS])
    labels, places = plan["labels"].numpy(), plan["places"]
    checked = 0
    for i, color in enumerate(seen["coloured"]["colors"]):
        if np.abs(np.delete(places, i, 0) - places[i]).max(1).min() >= 0.015:  # not hidden
            assert color == pytest.approx(colors[labels[i]].round(), abs=2), i
            checked += 1
    assert checked >= 15


def test_no_label_of_the_plane_lies_over_another(seen):
    names = seen["middle"]["names"]
    assert sorted(name["text"] for name in names) == [str(label) for label in range(10)]
    for i, a in enumerate(names):
        for b in names[:i]:
            apart = (abs(a[side] - b[side]) >= 0.8 * a[size]
                     for side, size in (("left", "width"), ("top", "height")))  # fmt: skip
            assert any(apart), (a, b)


# ------------------------------------------------------------------ the cloud, in the browser


def assert_shown(state, history, photos, which, epoch):
    """All of a state is true of the test point of this number, in this epoch."""
    images, labels = photos
    curve = history.test[:, history.test_index.tolist().index(which)].astype(float)
    last = len(history)
    assert state["which"] == f"Test image {which:,}, label {labels[which]}"
    names = {0: "before training"} | {e: f"epoch {e}" for e in sorted({epoch, last} - {0})}
    spread = np.ptp(np.quantile(history.test[-1].astype(float), (0.05, 0.95)))
    digits = 3 - int(np.floor(np.log10(spread)))
    numbers = [f"{curve[e]:,.{digits}f}".replace("-", "−") for e in names]
    assert state["rows"][::2] == list(names.values())
    assert state["rows"][1::2] == numbers
    # Its curve, as drawn, and where that lies on the screen by the scales.
    own = state["own"]
    assert [point["epoch"] for point in own] == list(range(last + 1))
    assert np.abs(np.array([p["nats"] for p in own]) - curve).max() <= 0.5001 * 10.0**-digits
    for ticks, side, values in (("up", "top", curve), ("across", "left", np.arange(last + 1))):
        assert len({t["text"] for t in state[ticks]}) == len(state[ticks])
        said, lie = zip(*((number(t["text"]), t[side]) for t in state[ticks]), strict=True)
        places = np.array([point[side] for point in own])
        expected = np.polyval(np.polyfit(said, lie, 1), values)
        assert np.abs(expected - places).max() <= 1 + 1e-3 * np.ptp(places)
    ring, box = state["ring"], state["box"]
    assert ring["left"] == pytest.approx(own[epoch]["left"], abs=1)
    assert ring["top"] == pytest.approx(np.clip(own[epoch]["top"], *box), abs=1.5)
    picture = images[which].numpy()
    expected = 255 - picture[[0, 0, 0]] if len(picture) == 1 else picture
    height, width, *channels = state["images"][0]
    assert np.array_equal(np.reshape(channels, (3, height, width)), expected)


def shown(state):
    """The number of the point that is shown, and the epoch."""
    epochs = state["rows"][::2]
    epoch = int(epochs[1].split()[1]) if len(epochs) == 3 else None
    return int(number(state["which"])), epoch


def ranked(history, epoch):
    """The numbers of all kept points by their value in an epoch."""
    return history.test_index[history.test[epoch].argsort(kind="stable")].tolist()


def test_the_cloud_opens_with_a_hard_image_at_the_end(seen, history, photos):
    which, _ = shown(seen["cloud"])
    assert which == ranked(history, EPOCHS)[int(0.95 * KEPT)]
    assert_shown(seen["cloud"], history, photos, which, EPOCHS)


def test_a_dot_that_is_pointed_at_shows_its_image_and_its_own_curve(seen, history, photos):
    found = []
    for i, state in seen["pointed"]:
        dot = state["dots"][i]
        epoch = round(dot["epoch"])
        assert abs(dot["epoch"] - epoch) < 0.36
        near = np.abs(history.test[epoch] - dot["nats"])
        which = int(number(state["which"]))
        if state["box"][0] + 1 < dot["top"] < state["box"][1] - 8:  # else it stands for its value
            assert which == history.test_index[near.argmin()]
        assert_shown(state, history, photos, which, epoch)
        found.append(which)
    assert len(set(found)) == len(found)


def test_the_mean_is_that_of_all_test_points(seen, history):
    assert [p["nats"] for p in seen["cloud"]["mean"]] == pytest.approx(history.test_mean, abs=0.06)


def test_dots_are_of_every_point_and_every_epoch(seen, history):
    dots = seen["cloud"]["dots"]
    for epoch in range(EPOCHS + 1):
        values = np.sort([d["nats"] for d in dots if round(d["epoch"]) == epoch])
        low, high = seen["cloud"]["limits"]
        expected = np.sort(np.clip(history.test[epoch], low, high))
        assert values == pytest.approx(expected, abs=0.06)


def test_arrow_keys_walk_through_epochs_and_images(seen, history, photos):
    before, epoch = shown(seen["pointed"][-1][1])
    epoch = EPOCHS if epoch is None else epoch
    order = ranked(history, epoch - 1)
    which = order[min(order.index(before) + 1, KEPT - 1)]
    assert_shown(seen["walked"], history, photos, which, epoch - 1)
    assert_shown(seen["to the first"], history, photos, which, 0)
    hardest = ranked(history, 0)[-1]
    assert_shown(seen["to the top"], history, photos, hardest, 0)
    assert_shown(seen["to the last"], history, photos, hardest, EPOCHS)
    assert seen["to the last"]["heard"] == ["x"], "the page around it hears no arrow key"


def test_a_finger_touches_the_cloud_and_the_page_stays(seen, history, photos):
    state = seen["fingered"]
    which, epoch = shown(state)
    assert_shown(state, history, photos, which, epoch)
    top, bottom = state["box"]
    dots = [d for d in state["dots"] if round(d["epoch"]) == epoch]
    aim = top + 0.9 * (bottom - top)
    nearest = min(dots, key=lambda d: abs(d["top"] - aim))
    assert 3 <= epoch <= 5 and abs(nearest["top"] - aim) <= abs(state["ring"]["top"] - aim) + 1
    assert state["scrolled"] == seen["to the last"]["scrolled"]


def test_a_label_is_singled_out(seen, history, photos):
    labels = photos[1]
    of = {label: set(history.test_index[labels[history.test_index] == label].tolist())
          for label in (4, 6)}  # fmt: skip
    assert seen["fingered"]["pressed"] == [] and seen["fingered"]["chosen"] == []
    for name, label in (("labelled", 4), ("within", 4), ("relabelled", 6)):
        state = seen[name]
        assert state["pressed"] == [str(label)]
        which = int(number(state["which"]))
        assert which in of[label]
        assert len(state["chosen"]) == len(of[label]) * (EPOCHS + 1)
        assert state["faded"] < 0.2 < seen["fingered"]["faded"]
        assert_shown(state, history, photos, which, shown(state)[1] or EPOCHS)
    assert seen["all"]["pressed"] == [] and seen["all"]["chosen"] == []
    assert seen["all"]["faded"] == seen["fingered"]["faded"]


def test_points_beyond_the_scale_stand_at_its_edge_and_are_found(seen, colours):
    history, *photos = colours
    assert_shown(seen["above"], history, photos, 7, 2)
    assert_shown(seen["below"], history, photos, 9, 1)


def test_a_short_and_flat_run_has_a_scale_with_decimals(seen, flat):
    history, *photos = flat
    assert_shown(seen["flat"], history, photos, 1, 1)
    assert all("." in tick["text"] for tick in seen["flat"]["up"])


def test_a_cell_that_is_run_again_has_a_living_explorer(seen, history, photos, model, plan):
    first, again = seen["dot", 77], seen["again"]
    assert (again["which"], again["rows"]) == (first["which"], first["rows"])
    assert_decoded(model, seen["plane again"], grid_point(plan, [0.31, 0.77]))


def test_the_explorers_leave_the_page_alone(seen):
    assert all(state["strangers"] == [] for state in seen["states"]), "no globals"
    assert all(state["keysKept"] for state in seen["states"]), "shortcuts of JupyterLab rest"
    assert seen["errors"] == [], "no messages, no requests"
    assert max(seen["milliseconds"]) < 8  # a frame at 60 per second has 16
    assert len(seen["milliseconds"]) == 5


def test_they_suit_every_reader_and_screen(seen):
    assert seen["axe"] == []
    assert seen["overflow"] == []
    assert min(seen["letters"]) >= 13
    turned = ["invert(1) hue-rotate(180deg)"]  # what is black on white, on a dark page
    filters = [turned, turned, turned, ["none"], turned]  # but not the colour images
    dark = [["rgb(17, 17, 17)", *filter] for filter in filters]
    assert seen["grounds"] == [[["Canvas", "none"]] * 5] * 2 + [dark] * 2  # at two widths each


def test_without_a_script_the_plane_stands_as_a_picture_and_the_cloud_in_a_sentence(seen):
    plane, _, cloud, *_ = seen["withoutScript"]
    (image,) = plane["images"]
    assert image["naturalWidth"] == 41 * SHAPE[2]
    assert image["width"] > 200
    assert image["alt"].startswith("What the decoder draws")
    assert plane["text"] == ""
    assert cloud["images"] == []
    assert cloud["text"].startswith("Where scripts run, ") and cloud["height"] < 60
