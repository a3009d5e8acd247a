"""The explorer of the latent plane: what it holds, and what a reader meets in a browser."""

import copy
import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_vae
from torch import nn

import vae_helpers as lab

SHAPE = (1, 8, 6)  # higher than wide: a mistaken axis shows
POINTS = 60


@pytest.fixture(scope="module")
def model():
    """Codes all over the plane, a posterior so narrow that its one sample is its mean."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    decoder = lab.mlp(2, [16], SHAPE)
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
    encoder, decoder = lab.mlp(SHAPE, [], 4), lab.mlp(2, [16], SHAPE)
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
    return lab.explore_plane(model, *data).data


def content(page):
    return json.loads(html.unescape(re.search('data-content="([^"]*)"', page)[1]))


def ink(tensor):
    """What a canvas shows of an image: 8-bit grey, dark on white."""
    return (255 * (1 - tensor.detach().numpy())).flatten()


# ------------------------------------------------------------------------------- the page


def test_the_same_model_gives_the_same_bytes(model, data, explorer):
    torch.manual_seed(99)
    assert lab.explore_plane(model, *data).data == explorer


def test_drawing_disturbs_no_generator_and_no_weight(model, data):
    before = [w.clone() for w in model.parameters()]
    state = torch.get_rng_state()
    lab.explore_plane(model, *data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_in_double_precision_is_explored_too(model, data, explorer):
    double = copy.deepcopy(model).double()
    points = np.array(content(lab.explore_plane(double, data[0].double(), data[1]).data)["points"])
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
    assert content(lab.explore_plane(flat, *data).data)["limit"] == 2.5


def test_nothing_in_the_page_ends_its_attribute_or_comes_from_elsewhere(explorer):
    attribute = re.search('data-content="([^"]*)"', explorer)[1]
    assert not set(attribute) & set("<>'\"")
    assert not re.search(r"@[A-Z]+@", explorer)
    assert not re.search(r"https?:|import\s*\(|fetch\(|url\(|XMLHttp", explorer)


@pytest.mark.parametrize(
    ("latents", "shape", "labels", "message"),
    [
        (3, SHAPE, 4, "D = 2; got D = 3"),
        (2, (48,), 4, r"images \(N, 1, H, W\).*got \(4, 48\)"),
        (2, (3, 4, 4), 4, r"images \(N, 1, H, W\).*got \(4, 3, 4, 4\)"),
        (2, SHAPE, 5, r"labels \(N,\); got \(4, 1, 8, 6\) and \(5,\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(latents, shape, labels, message):
    vae = tiny_vae(shape, latents, decoder=lab.DecoderBernoulli)
    with pytest.raises(ValueError, match=message):
        lab.explore_plane(vae, torch.zeros(4, *shape), torch.zeros(labels, dtype=torch.int64))


def test_a_missing_page_is_named(tmp_path):
    shutil.copy(ROOT / "vae_helpers.py", tmp_path)
    script = (
        "import torch, vae_helpers as lab\n"
        "e, d = lab.mlp((1, 2, 2), [2], 4), lab.mlp(2, [2], (1, 2, 2))\n"
        "vae = lab.VAE(lab.EncoderGaussian(e), lab.DecoderBernoulli(d), lab.PriorGaussian(2))\n"
        "lab.explore_plane(vae, torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "FileNotFoundError: explorer.html is missing" in done.stderr
    assert "beside vae_helpers.py" in done.stderr


# ------------------------------------------------------------------------- in the browser


def planned(model, x, labels, page):
    """What is to be done, and what must then be seen: computed from the model alone."""
    limit, side = (content(page)[key] for key in ("limit", "side"))
    codes = model.encoder(x).mean.detach()
    kept = codes.abs().amax(1) <= limit
    x, labels, codes = x[kept], labels[kept], codes[kept]
    # The plane reaches half a step of its grid beyond the outermost grid points, at ±limit.
    step = 2 * limit / (side - 1)
    edge = limit + step / 2
    places = np.stack([edge + codes[:, 0], edge - codes[:, 1]], 1) / (2 * edge)
    return {"x": x, "labels": labels, "codes": codes, "step": step, "edge": edge, "places": places}


@pytest.fixture(scope="module")
def plan(model, data, explorer):
    return planned(model, *data, explorer)


@pytest.fixture(scope="module")
def seen(browse, explorer, plan, density, tmp_path_factory):
    """Everything the reader does, in one visit to a page that holds two explorers."""
    pointers = [[0.013, 0.02], [0.31, 0.77], [0.62, 0.18], [0.985, 0.99]]
    clicks = [0, 7, 23]
    actions = [
        *({"explorer": 0, "move": place} for place in pointers),
        *({"explorer": 0, "click": plan["places"][i].tolist()} for i in clicks),
        {"explorer": 0, "move": [0.5, 0.5]},
        {"explorer": 0, "keys": ["ArrowRight", "ArrowRight", "ArrowUp"]},
        {"explorer": 0, "keys": ["ArrowLeft"] * 100},
        {"explorer": 0, "keys": ["Enter"]},
        {"explorer": 0, "touch": [[0.2, 0.2], [0.4, 0.5], [0.7, 0.9]]},
        {"explorer": 0, "move": [0.31, 0.77], "colors": plan["places"].tolist()},
        {"explorer": 1, "click": [0.31, 0.77]},
    ]
    second = lab.explore_plane(*density, torch.zeros(POINTS, dtype=torch.int64)).data
    page = tmp_path_factory.mktemp("explorer") / "page.html"
    top = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Two explorers</title>'
    page.write_text(f"{top}{explorer}<hr>{second}", encoding="utf-8")
    found = browse("explore.mjs", page, json.dumps(actions))
    states = iter(found["states"])
    found["pointers"] = [(place, next(states)) for place in pointers]
    found["clicks"] = [(i, next(states)) for i in clicks]
    for name in ("middle", "keys", "far left", "entered", "touched", "coloured", "second"):
        found[name] = next(states)
    found["second plan"] = planned(*density, torch.zeros(POINTS), second)
    return found


def where(state):
    return [float(n) for n in re.findall(r"-?\d+\.\d+", state["at"].replace("−", "-"))]


def drawn(state, which=0):
    height, width, pixels = state["images"][which]
    assert (height, width) == SHAPE[1:]
    return np.array(pixels)


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
        mu, sigma = plan["codes"][i].double().numpy(), lab.MIN_SCALE
        kl = 0.5 * (mu**2 + sigma**2 - np.log(sigma**2) - 1).sum()
        x, p = (
            plan["x"][i].double(),
            model.decoder(plan["codes"][i : i + 1]).mean[0].double().detach(),
        )
        distortion = -(x * p.log() + (1 - x) * (1 - p).log()).sum().item()
        total, reconstruction, rate = (
            float(re.search(r"\d+\.\d+", text)[0]) for text in state["split"]
        )
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
    total, reconstruction, rate = (
        float(re.search(r"-?\d+\.\d+", text.replace("−", "-"))[0])
        for text in seen["second"]["split"]
    )
    assert reconstruction < 0 < rate
    assert total == pytest.approx(reconstruction + rate, abs=0.11)
    assert seen["second"]["bar"] == 0, "a negative length cannot be drawn"
    assert seen["entered"]["bar"] > 0


def test_each_test_point_lies_at_its_code_in_the_colour_of_its_label(seen, plan):
    from matplotlib.colors import TABLEAU_COLORS, to_rgb

    colors = 255 * np.array([to_rgb(color) for color in TABLEAU_COLORS.values()])
    labels, places = plan["labels"].numpy(), plan["places"]
    names = np.array([np.sort(places[labels == label], 0)[3] for label in range(10)])
    checked = 0
    for i, color in enumerate(seen["coloured"]["colors"]):
        others = np.delete(places, i, 0)
        hidden = np.abs(others - places[i]).max(1).min() < 0.015
        hidden |= np.abs(names - places[i]).max(1).min() < 0.06 or min(places[i]) < 0.06
        hidden |= max(places[i]) > 0.9
        if not hidden:
            assert color == pytest.approx(colors[labels[i]].round(), abs=2), i
            checked += 1
    assert checked >= 15


def test_it_is_fast_and_silent(seen):
    assert seen["milliseconds"] < 4  # a frame at 60 per second has 16
    assert seen["errors"] == []


def test_without_a_script_the_plane_stands_as_a_picture(seen):
    (image,) = seen["withoutScript"]["images"]
    assert image["naturalWidth"] == 41 * SHAPE[2]
    assert image["width"] > 200
    assert image["alt"].startswith("What the decoder draws")
    assert seen["withoutScript"]["text"] == ""
