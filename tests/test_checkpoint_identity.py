"""What tells runs apart: transforms with their arguments, and data."""

import importlib.util
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import vae_data
from tools import run, tiny_vae
from vae_checkpoint import describe, digest

POINTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------- transforms, told apart


def noise(x, std=0.1):
    return x + std * torch.randn_like(x)


def scaled(x, by=2.0, *, offset=0.0):
    return by * x + offset


def called(function, x):
    return function(x)


class Shift:
    """A callable object that says its settings."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by

    def __repr__(self):
        return f"Shift({self.by})"

    def shifted(self, x):
        return x + self.by


class Silent(Shift):
    __repr__ = object.__repr__


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(6, 6)


def normalised(mean):
    net = nn.BatchNorm1d(6).eval()
    net.running_mean.fill_(mean)
    return net


MEANS = np.arange(6.0)
DIFFERENT = {
    "None and a function": (None, noise),
    "functions": (noise, scaled),
    "an argument by name": (partial(noise, std=0.1), partial(noise, std=10)),
    "an argument and none": (noise, partial(noise, std=10)),
    "an argument by place": (partial(torch.mul, 2.0), partial(torch.mul, 3.0)),
    "names of arguments": (partial(scaled, by=2.0), partial(scaled, offset=2.0)),
    "functions of partials": (partial(noise, std=2.0), partial(vae_data.scale, std=2.0)),
    "partials of partials": (partial(partial(scaled, by=2.0)), partial(partial(scaled, by=3.0))),
    "arrays": (partial(torch.sub, other=MEANS), partial(torch.sub, other=MEANS + 1e-9)),
    "an entry in the middle of a long array": (
        partial(torch.sub, other=torch.zeros(5000)),
        partial(torch.sub, other=torch.zeros(5000).index_fill(0, torch.tensor(2500), 1.0)),
    ),
    "tensors": (partial(torch.sub, other=POINTS), partial(torch.sub, other=POINTS.flip(0))),
    "objects": (Shift(1), Shift(2)),
    "objects within partials": (
        partial(called, Shift(1)),
        partial(called, Shift(2)),
    ),
    "weights": (linear(0), linear(1)),
    "buffers": (normalised(0.0), normalised(1.0)),
    "kinds of modules": (nn.ReLU(), nn.SiLU()),
    "built-in functions": (torch.bernoulli, torch.sigmoid),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_transforms_that_differ_are_told_apart_and_equal_ones_are_not(kind):
    first, second = DIFFERENT[kind]
    assert describe(first) != describe(second)
    assert not describe(first).startswith("?") and not describe(second).startswith("?")
    assert describe(first) == describe(first)


def test_arguments_tell_the_same_in_any_order_and_equal_weights_in_any_object():
    assert describe(partial(scaled, by=1.0, offset=2.0)) == describe(
        partial(scaled, offset=2.0, by=1.0)
    )
    assert describe(linear(3)) == describe(linear(3))
    assert describe(Shift(3)) == describe(Shift(3))
    assert describe(partial(torch.sub, other=MEANS)) == describe(
        partial(torch.sub, other=MEANS.copy())
    )


def test_a_function_is_known_by_its_defaults():
    first = describe(scaled)
    before = scaled.__defaults__
    scaled.__defaults__ = (3.0,)
    try:
        assert describe(scaled) != first
    finally:
        scaled.__defaults__ = before
    assert describe(scaled) == first


def from_file(folder, source):
    """The function ``transform`` of a module that is this source."""
    path = folder / f"module_{abs(hash(source))}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("own_transforms", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_transforms"] = module
    spec.loader.exec_module(module)
    return module.transform


def test_a_function_is_known_by_its_code_whatever_its_comments_and_layout(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_transforms", None)
    descriptions = [
        describe(from_file(tmp_path, source))
        for source in (
            "def transform(x):\n    return 2 * x\n",
            "def transform(x):\n\n    # twice\n    return (2 *\n        x)\n",
            "def transform(x):\n    return 3 * x\n",
        )
    ]
    assert descriptions[0] == descriptions[1] != descriptions[2]


def made(by):
    def transform(x):
        return by * x

    return transform


UNCLEAR = {
    "a lambda": lambda x: 2 * x,
    "a function made by another": made(2.0),
    "an object without a repr of its own": Silent(2.0),
    "a lambda within a partial": partial(called, lambda x: 2 * x),
    "a silent object within a partial": partial(called, Silent(2.0)),
    "a silent object in a list": partial(called, [Silent(2.0)]),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_cannot_be_told_apart_begins_with_a_question_mark(kind):
    assert describe(UNCLEAR[kind]).startswith("? ")
    assert "? " not in describe(UNCLEAR[kind])[2:]


@pytest.mark.parametrize("kind", ["a lambda", "a function made by another",
                                  "an object without a repr of its own"])  # fmt: skip
def test_it_is_refused_with_a_checkpoint_only_and_each_remedy_works(kind, tmp_path):
    assert len(run(tiny_vae(), POINTS, batch_size=20, transform=UNCLEAR[kind])) == 1
    with pytest.raises(ValueError, match="cannot tell the transform") as error:
        run(tiny_vae(), POINTS, transform=UNCLEAR[kind], checkpoint=tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    remedies = {
        "a function defined at the top of a module": scaled,
        "functools.partial(function, argument=value)": partial(scaled, by=2.0),
        "an object whose repr names its settings": Shift(2.0),
    }
    for number, (said, transform) in enumerate(remedies.items()):
        assert said in str(error.value)
        path = tmp_path / f"{number}.pt"
        for _ in range(2):  # the second call finds the first one's checkpoint
            settings = {"batch_size": 20, "transform": transform, "checkpoint": path}
            assert len(run(tiny_vae(), POINTS, **settings)) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (partial(noise, std=0.1), partial(noise, std=10)),
        (Shift(1.0), Shift(2.0)),
        (linear(0), linear(1)),
    ],
)
def test_a_checkpoint_of_a_transform_is_not_continued_with_another(before, after, tmp_path):
    settings = {"checkpoint": tmp_path / "run.pt", "batch_size": 20}
    run(tiny_vae(), POINTS, transform=before, **settings)
    with pytest.raises(ValueError, match="another run, which differs in transform"):
        run(tiny_vae(), POINTS, transform=after, **settings)


# --------------------------------------------------------------------------- data, told apart


@pytest.mark.parametrize(
    "other",
    [
        100 * POINTS,
        POINTS.flip(0),
        POINTS.flip(1),
        POINTS.double(),
        POINTS.half(),
        POINTS[:-1],
        POINTS.view(20, 2, 3),
        POINTS.view(6, 20),
        POINTS + 1e-6 * (torch.arange(20) == 7)[:, None],
    ],
)
def test_data_of_other_numbers_order_type_or_shape_have_another_digest(other):
    assert digest(other) != digest(POINTS)
    assert digest(POINTS) == digest(POINTS.clone()) == digest(POINTS.numpy())
    assert len(digest(POINTS)) == 16


def test_a_digest_is_of_the_numbers_whatever_lies_between_them_in_memory():
    wide = torch.randn(20, 12)
    assert digest(wide[:, ::2]) == digest(wide[:, ::2].contiguous())
    assert digest(POINTS.T.contiguous().T) == digest(POINTS)
    assert digest(torch.zeros(())) != digest(torch.ones(()))
    assert digest(torch.zeros(0, 3)) != digest(torch.zeros(0, 4))
    assert digest(torch.zeros(3, dtype=torch.int32)) != digest(torch.zeros(3))  # the same bytes
    assert digest(torch.ones(3, dtype=torch.bfloat16)) != digest(torch.ones(3).half())
    assert digest(nn.Parameter(POINTS)) == digest(POINTS)


def test_of_more_than_a_gibibyte_rows_from_all_over_count():
    # Windows into four megabytes of memory, each a byte further than the one before.
    base = torch.zeros(2**22, dtype=torch.uint8)
    rows = base.as_strided((2**22 - 300, 300), (1, 1))
    assert rows.nbytes > 2**30
    found = {digest(rows)}
    for place in (0, 2**21, 2**22 - 1000):
        base[place : place + 500] = 1  # every 419th row counts
        found.add(digest(rows))
        base[place : place + 500] = 0
    assert len(found) == 4
    assert digest(rows) in found


@pytest.mark.parametrize("other", [100 * POINTS, POINTS.flip(0), POINTS.half()])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_checkpoint_is_not_continued_on_other_data(split, other, tmp_path):
    path = tmp_path / "run.pt"
    run(tiny_vae(), POINTS, checkpoint=path)
    data = {"train": POINTS, "test": POINTS} | {split: other}
    with pytest.raises(ValueError, match=f"another run, which differs in {split} "):
        run(tiny_vae(), data["train"], test=data["test"], checkpoint=path)
