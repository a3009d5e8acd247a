"""Networks against the same layers put together by hand, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vae_kit.networks import Residual, conv_decoder, conv_encoder, mlp, residual_mlp


@pytest.mark.parametrize(
    "inputs", [3, (3,), (), (3, 5, 7), [1, 4], (np.int64(4),), np.prod((2, 3))]
)
def test_perceptrons_map_shape_to_shape(inputs):
    start = tuple(np.ravel(inputs).astype(int))
    for outputs, end in ((2, (2,)), ((), ()), ((2, 3), (2, 3))):
        for net in (mlp(inputs, [], outputs), residual_mlp(inputs, 6, 2, outputs)):
            for points in (5, 0):
                assert net(torch.zeros(points, *start)).shape == (points, *end)


def by_hand(x, weights):
    """W₃ SiLU(W₂ SiLU(W₁ x + b₁) + b₂) + b₃ for as many layers as there are."""
    weights = list(weights)
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = F.silu(x @ weight.T + bias)
    return x @ weights[-2].T + weights[-1]


def test_mlp_has_an_activation_between_its_layers_and_none_after_the_last():
    net, x = mlp((1, 2, 3), [8, 4], (2, 2)).double(), 3 * torch.randn(50, 1, 2, 3).double()
    expected = by_hand(x.flatten(1), net.parameters()).view(50, 2, 2)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_residual_mlp_is_a_layer_then_blocks_then_an_activation_and_a_layer():
    net, x = residual_mlp(5, 7, 2, 3).double(), torch.randn(50, 5).double()
    first, *middle, activation, last = net
    h = by_hand(x, first.parameters())
    assert len(middle) == 2 and all(type(block) is Residual for block in middle)
    for block in middle:
        h = h + by_hand(h, block.parameters())
    assert type(activation) is nn.SiLU
    expected = by_hand(F.silu(h), last.parameters())
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


# Saved models rest on the names of parameters, and results on the order in which their first values
# are drawn: each network's call, and its layers in that order.
DRAWN = {
    mlp: (((1, 4, 4), [5, 4], (2, 3)), "1 Linear 16 5, 3 Linear 5 4, 5 Linear 4 6"),
    residual_mlp: (
        ((1, 4, 4), 5, 1, (2, 3)),
        "2.0 Linear 5 5, 2.2 Linear 5 5, 1 Linear 16 5, 4 Linear 5 6",
    ),
    conv_encoder: (((3, 8, 12), 6, 4), "0 Conv2d 3 4 4, 2 Conv2d 4 8 4, 5 Linear 48 6"),
    conv_decoder: (
        (6, (3, 8, 12), 4),
        "0 Linear 6 48, 3 ConvTranspose2d 8 4 4, 5 ConvTranspose2d 4 3 4",
    ),
}


@pytest.mark.parametrize("network", DRAWN)
def test_parameters_have_their_names_and_are_drawn_in_their_order(network):
    arguments, layers = DRAWN[network]
    torch.manual_seed(7)
    found = network(*arguments).state_dict()
    torch.manual_seed(7)
    for place, kind, *sizes in map(str.split, layers.split(",")):
        for name, value in getattr(nn, kind)(*map(int, sizes)).state_dict().items():
            assert torch.equal(found.pop(f"{place}.{name}"), value)
    assert not found


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 12)])
def test_the_convolutional_pair_is_each_other_s_mirror_without_an_activation_at_its_ends(shape):
    pair = conv_encoder(shape, 6), conv_decoder(6, shape)
    code = pair[0](torch.randn(2, *shape))
    assert code.shape == (2, 6)
    assert pair[1](code).shape == (2, *shape)
    for network, x in zip(pair, (torch.randn(2, *shape), code), strict=True):
        with torch.no_grad():
            list(network.parameters())[-1].fill_(-100)  # where SiLU would be 0
        assert (network(x) < -50).all()
        assert sum(isinstance(layer, nn.SiLU) for layer in network) == 2


def test_sides_that_are_no_multiples_of_four_can_be_encoded_and_are_decoded_smaller():
    assert conv_encoder((1, 7, 10), 6)(torch.zeros(2, 1, 7, 10)).shape == (2, 6)
    assert conv_decoder(6, (1, 7, 10))(torch.zeros(2, 6)).shape == (2, 1, 4, 8)
