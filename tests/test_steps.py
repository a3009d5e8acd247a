"""The learning rate of a step, and the bound on its gradient."""

import math

import numpy as np
import pytest
import torch

from vae_steps import SCHEDULES, bound_gradient, checked_settings, default_batch_size


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
        # A single number has a size of its own.
        assert scalar.grad == (1e6 if math.isfinite(norm) else 0)
        left.append(weight.grad.norm().item())
    return left, optimizer


@pytest.mark.parametrize("usual_steps", [1, 5, 300])
def test_a_gradient_far_longer_than_usual_is_scaled_to_three_times_the_usual_norm(usual_steps):
    left, optimizer = stepped([2.0] * usual_steps + [1000.0, 2.0])
    assert left == pytest.approx([2.0] * usual_steps + [6.0, 2.0], rel=1e-4)
    assert optimizer.param_groups[0]["bounded"] == 1


def test_an_ordinary_gradient_is_left_as_it_is():
    norms = [50.0, *np.random.default_rng(0).uniform(1, 2.5, 300)]
    left, optimizer = stepped(norms)
    assert left == pytest.approx(norms, rel=1e-6)
    assert optimizer.param_groups[0]["bounded"] == 0


def test_a_lasting_change_of_size_is_followed():
    left, _ = stepped([1.0] * 100 + [20.0] * 400)
    assert left[100] == pytest.approx(3, rel=1e-3)
    assert left[-1] == pytest.approx(20, rel=1e-6)


def test_the_usual_norm_learns_from_what_is_left_of_a_gradient():
    left, _ = stepped([2.0] * 5 + [1000.0, 100.0])
    assert left == pytest.approx([2.0] * 5 + [6.0, 3 * (5 * 2 + 6) / 6], rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("before", [0, 10])
def test_a_gradient_that_is_not_finite_becomes_zero_and_is_counted_but_not_remembered(bad, before):
    left, optimizer = stepped([2.0] * before + [bad] + [2.0] * 3)
    assert left == pytest.approx([2.0] * before + [0.0] + [2.0] * 3)
    assert optimizer.param_groups[0]["bounded"] == 1
    assert optimizer.param_groups[0]["usual_norm"] == pytest.approx(2)


def test_a_single_number_whose_gradient_is_not_finite_stops_the_step_of_all():
    weight, scalar = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight, scalar], lr=0.1)
    weight.grad, scalar.grad = torch.ones(4), torch.tensor(math.nan)
    bound_gradient(optimizer)
    assert not weight.grad.any() and scalar.grad == 0
    assert optimizer.param_groups[0]["bounded"] == 1


def test_a_batch_whose_gradient_overflows_leaves_the_model_alone_and_training_goes_on():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], 0.1)
    for x in (1.0, 1e-300, 1.0):  # the gradient of √(w·x)² is 0/0 where it underflows
        optimizer.zero_grad()
        ((weight * x).square().sum().sqrt() * (1 if x == 1 else 0)).backward()
        before = weight.detach().clone()
        bound_gradient(optimizer)
        optimizer.step()
        assert weight.isfinite().all()
        assert torch.equal(weight, before) == (x != 1)


@pytest.mark.parametrize(
    ("points", "size"),
    [(1, 32), (150, 32), (1437, 32), (10_000, 32), (12_000, 64), (60_000, 256), (10**7, 256)],
)
def test_the_default_batch_grows_with_the_data_set(points, size):
    assert default_batch_size(points) == size


SOUND = {
    "lr": 0.1, "schedule": "one-cycle", "epochs": np.int64(3), "batch_size": None, "kl_warmup": 0,
    "seed": 0, "keep_points": None, "transform": "none",
}  # fmt: skip


def test_settings_that_make_sense_are_kept():
    kept = checked_settings(**SOUND)
    assert kept == SOUND
    assert type(kept["epochs"]) is int


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"lr": lr}, "lr must be positive") for lr in (0, math.nan, math.inf)),
        ({"schedule": "step"}, "lr must be positive and schedule"),
        *(({name: 0}, f"{name} must be") for name in ("epochs", "batch_size", "keep_points")),
        *(({name: -1}, f"{name} must be") for name in ("kl_warmup", "seed")),
        *(({name: None}, f"{name} must be") for name in ("epochs", "kl_warmup", "seed")),
        ({"epochs": 2.0}, "epochs must be a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        checked_settings(**SOUND | wrong)
