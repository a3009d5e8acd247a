"""The learning rate of a step, and the bound on its gradient."""

import math

import numpy as np
import pytest
import torch

from vae_steps import SCHEDULES, bound_gradient, check_rate


def test_one_cycle_rises_for_a_tenth_and_falls_to_zero_as_a_cosine():
    done = np.linspace(0, 1, 1001)
    rate = SCHEDULES["one-cycle"](done)
    assert rate[0] == pytest.approx(1 / 11)  # not from zero: the first step is one
    assert rate.argmax() == 100
    assert rate[100] == pytest.approx(1)
    assert rate[-1] == pytest.approx(0, abs=1e-12)
    assert rate[550] == pytest.approx(0.5, abs=1e-9)  # half way down
    assert np.all(np.diff(rate[:101]) > 0)
    assert np.all(np.diff(rate[100:]) < 0)
    assert np.array_equal(SCHEDULES["constant"](done), np.ones(1001))


def stepped(norms):
    """The norms that are left of gradients of these norms, one after the other."""
    weight, scalar = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight, scalar], lr=0.1)
    left = []
    for norm in norms:
        weight.grad, scalar.grad = torch.full((4,), norm / 2), torch.tensor(1e6)
        bound_gradient(optimizer)
        assert scalar.grad == 1e6  # a single number has a size of its own
        left.append(weight.grad.norm().item())
    return left, optimizer


def test_a_gradient_far_longer_than_usual_is_scaled_to_three_times_the_usual_norm():
    left, optimizer = stepped([2.0] * 100 + [1000.0, 2.0])
    assert left == pytest.approx([2.0] * 100 + [6.0, 2.0], rel=1e-4)
    assert optimizer.param_groups[0]["bounded"] == 1


def test_an_ordinary_gradient_is_left_as_it_is_and_so_are_the_first_hundred():
    norms = [50.0, *np.random.default_rng(0).uniform(1, 2.5, 300)]
    left, optimizer = stepped(norms)
    assert left == pytest.approx(norms, rel=1e-6)
    assert optimizer.param_groups[0]["bounded"] == 0


def test_a_lasting_change_of_size_is_followed():
    left, _ = stepped([1.0] * 100 + [20.0] * 400)
    assert left[100] == pytest.approx(3, rel=1e-3)
    assert left[-1] == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(("lr", "schedule"), [(0, "constant"), (math.nan, "constant"), (1, "step")])
def test_a_rate_that_makes_no_sense_is_refused(lr, schedule):
    with pytest.raises(ValueError, match="lr must be positive and schedule"):
        check_rate(lr, schedule)
