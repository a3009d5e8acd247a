"""Networks against the same layers put together by hand, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vae_networks import Residual, conv_decoder, conv_encoder, mlp, residual_mlp

SHAPES = [3, (3,), (), (1, 4, 4), (3, 5, 7)]
IMAGES = [(1, 4, 4), (3, 8, 12), (1, 28, 28)]


def dims(size):
    return (size,) if isinstance(size, int) else size


@pytest.mark.parametrize("inputs", SHAPES)
@pytest.mark.parametrize("outputs", [2, (2,), (), (2, 3)])
@pytest.mark.parametrize("hidden", [[], [8], [8, 4]])
@pytest.mark.parametrize("points", [5, 1, 0])
def test_mlp_maps_shape_to_shape(inputs, outputs, hidden, points):
    net = mlp(inputs, hidden, outputs)
    assert net(torch.zeros(points, *dims(inputs))).shape == (points, *dims(outputs))
    assert [layer.out_features for layer in net if isinstance(layer, nn.Linear)][:-1] == hidden


@pytest.mark.parametrize("inputs", SHAPES)
@pytest.mark.parametrize("outputs", [2, (), (2, 3)])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_residual_mlp_maps_shape_to_shape(inputs, outputs, blocks):
    net = residual_mlp(inputs, 6, blocks, outputs)
    assert net(torch.zeros(5, *dims(inputs))).shape == (5, *dims(outputs))
    assert sum(isinstance(layer, Residual) for layer in net) == blocks


def by_hand(x, weights):
    """W₃ SiLU(W₂ SiLU(W₁ x + b₁) + b₂) + b₃ for as many layers as there are."""
    weights = list(weights)
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = F.silu(x @ weight.T + bias)
    return x @ weights[-2].T + weights[-1]


@pytest.mark.parametrize("hidden", [[], [8], [8, 4]])
def test_mlp_has_an_activation_between_its_layers_and_none_after_the_last(hidden):
    net, x = mlp((1, 2, 3), hidden, (2, 2)).double(), 3 * torch.randn(50, 1, 2, 3).double()
    expected = by_hand(x.flatten(1), net.parameters()).view(50, 2, 2)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        list(net.parameters())[-1].fill_(-100)  # where SiLU would be 0
    assert (net(x) < -50).all()


def test_a_residual_block_adds_to_its_input():
    block = Residual(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)).double()
    x = torch.randn(50, 4).double()
    expected = x + by_hand(x, block.parameters())
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(block(x), x)


def test_residual_mlp_is_a_layer_then_blocks_then_an_activation_and_a_layer():
    net, x = residual_mlp(5, 7, 2, 3).double(), torch.randn(50, 5).double()
    p = net.state_dict()
    h = x @ p["0.weight"].T + p["0.bias"]
    for block in ("1", "2"):
        layers = (p[f"{block}.{layer}.{kind}"] for layer in (0, 2) for kind in ("weight", "bias"))
        h = h + by_hand(h, layers)
    expected = F.silu(h) @ p["4.weight"].T + p["4.bias"]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


# Saved models and published curves rest on the names of parameters and on the order in which their
# first values are drawn: each network beside its layers in the order of drawing.
DRAWN = {
    "mlp": (
        lambda: mlp((1, 4, 4), [5, 4], (2, 3)),
        lambda: {"1": nn.Linear(16, 5), "3": nn.Linear(5, 4), "5": nn.Linear(4, 6)},
    ),
    "mlp of vectors": (
        lambda: mlp(6, [5], 3),
        lambda: {"0": nn.Linear(6, 5), "2": nn.Linear(5, 3)},
    ),
    "residual_mlp": (
        lambda: residual_mlp((1, 4, 4), 5, 2, (2, 3)),
        lambda: (
            {f"{b}.{i}": nn.Linear(5, 5) for b in (2, 3) for i in (0, 2)}
            | {"1": nn.Linear(16, 5), "5": nn.Linear(5, 6)}
        ),
    ),
    "conv_encoder": (
        lambda: conv_encoder((3, 8, 12), 6, width=4),
        lambda: {"0": nn.Conv2d(3, 4, 4), "2": nn.Conv2d(4, 8, 4), "5": nn.Linear(48, 6)},
    ),
    "conv_decoder": (
        lambda: conv_decoder(6, (3, 8, 12), width=4),
        lambda: {
            "0": nn.Linear(6, 48),
            "3": nn.ConvTranspose2d(8, 4, 4),
            "5": nn.ConvTranspose2d(4, 3, 4),
        },
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_parameters_have_their_names_and_are_drawn_in_their_order(name):
    network, layers = DRAWN[name]
    torch.manual_seed(7)
    found = network().state_dict()
    torch.manual_seed(7)
    expected = nn.ModuleDict({key.replace(".", "-"): made for key, made in layers().items()})
    expected = {key.replace("-", "."): value for key, value in expected.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("shape", IMAGES)
def test_the_convolutional_pair_is_each_other_s_mirror(shape):
    code = conv_encoder(shape, 6)(torch.zeros(2, *shape))
    assert code.shape == (2, 6)
    assert conv_decoder(6, shape)(code).shape == (2, *shape)


def test_a_pixel_reaches_only_the_codes_of_its_neighbourhood():
    """10 × 10 pixels, of which the first three rows and columns are padding for the first code."""
    layers = conv_encoder((1, 16, 16), 3, width=2)[:4]
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    layers(x)[..., 0, 0].sum().backward()
    seen = x.grad[0, 0] != 0
    assert seen[:7, :7].all()
    assert seen.sum() == 49


@pytest.mark.parametrize("shape", IMAGES)
def test_the_convolutional_pair_has_no_activation_at_its_ends(shape):
    for network, x in (
        (conv_encoder(shape, 6), torch.randn(3, *shape)),
        (conv_decoder(6, shape), torch.randn(3, 6)),
    ):
        with torch.no_grad():
            list(network.parameters())[-1].fill_(-100)
        assert (network(x) < -50).all()
        assert sum(isinstance(layer, nn.SiLU) for layer in network) == 2


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 4, 6), (4, 4), (7,), (2, 3, 4, 4)])
def test_the_convolutional_pair_refuses_images_that_it_cannot_halve_twice(shape):
    for make in (lambda: conv_encoder(shape, 6), lambda: conv_decoder(6, shape)):
        with pytest.raises(ValueError, match=r"channels, height, width.*multiples of 4"):
            make()


def test_a_length_may_be_a_numpy_integer_and_a_shape_any_sequence():
    by_numpy = mlp(np.prod((2, 3)), [4], np.int64(2))
    assert by_numpy(torch.zeros(5, 6)).shape == (5, 2)
    for shape in ([1, 4, 4], torch.Size([1, 4, 4]), (np.int64(1), np.int32(4), 4)):
        assert mlp(2, [4], shape)(torch.zeros(5, 2)).shape == (5, 1, 4, 4)
        assert mlp(shape, [4], 2)(torch.zeros(5, 1, 4, 4)).shape == (5, 2)
