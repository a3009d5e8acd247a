"""Seeds, generators, precision and whole numbers."""

import contextlib
import random

import numpy as np
import pytest
import torch

from tools import generator_states
from vae_runtime import agreed, network_dtype, seed_from, seeded, whole_number

# ------------------------------------------------------------------------------- randomness


def draws():
    return (
        torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)],
    )  # fmt: skip


def test_a_key_seeds_every_generator_and_another_key_seeds_each_otherwise():
    found = {}
    for key in ((0, 1), (0, 1), (1, 0), (0, 2), (0,), (2**40, 1)):
        with seeded(*key):
            again = draws()
        assert found.setdefault(key, again) == again
    for generator in zip(*found.values(), strict=True):
        assert len({tuple(drawn) for drawn in generator}) == len(found)


def test_what_was_seeded_leaves_the_global_generators_as_they_were_also_after_an_error():
    before = generator_states()
    with seeded(0, 1):
        draws()
    assert generator_states() == before
    with contextlib.suppress(RuntimeError), seeded(0, 1):
        draws()
        raise RuntimeError
    assert generator_states() == before


def test_seeds_of_neighbouring_keys_are_independent_numbers_of_64_bits():
    drawn = set()
    for key in range(300):
        with seeded(key):
            drawn.add((np.random.rand(), random.random(), torch.rand(()).item()))
    assert all(len(set(numbers)) == 300 for numbers in zip(*drawn, strict=True))
    seeds = [seed_from(a, b) for a in range(60) for b in range(60)]
    assert len(set(seeds)) == len(seeds)
    assert seed_from(3, 4) == seed_from(3, 4)
    bits = np.array([[s >> k & 1 for k in range(64)] for s in seeds])
    # Each bit is a fair coin: 3,600 tosses deviate by less than five standard errors of 1/120.
    assert np.abs(bits.mean(0) - 0.5).max() < 5 / 120
    assert np.abs((bits[1:] == bits[:-1]).mean(0) - 0.5).max() < 5 / 120


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_any_seed_of_64_bits_will_do(seed):
    found = []
    for _ in range(2):
        with seeded(seed):
            found.append(draws())
    assert found[0] == found[1]


# ------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        ({}, None),
        ({"avx512_bf16": False, "amx_bf16": False}, None),
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, None),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_is_fast_at_it(cpu, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    device = torch.device("cpu")
    assert network_dtype("auto", device) == dtype
    assert network_dtype("float32", device) is None
    assert network_dtype("bfloat16", device) == torch.bfloat16
    assert network_dtype("auto", torch.device("mps")) is None


# --------------------------------------------------------------------------- small things


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_of_numpy_is_one_and_becomes_pythons(value):
    assert whole_number("n", value) == 3
    assert type(whole_number("n", value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, np.float64(2), True, np.bool_(True), "3", None])
def test_anything_else_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1") as error:
        whole_number("n", value)
    assert repr(value) in str(error.value)


def test_one_process_agrees_with_itself():
    assert agreed(True) is True
    assert agreed(False) is False
