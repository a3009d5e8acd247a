"""The layout of the code: who may import whom, public names, and how long things may be.

Each rule is a function from source text to the sentences that it has against it; the tests ask it
about the lab, where it must have none, and about a small bad module, where it must have one.
"""

import ast
import importlib
import re

import pytest

from tools import ROOT

# What each module may import of the lab, and how many lines it may have. The lowest come first, so
# that no arrow points upwards.
ROOMS = {
    "vae_distributions": (set(), 250),
    "vae_pixels": ({"vae_distributions"}, 250),
    "vae_support": (set(), 170),
    "vae_history": (set(), 210),
    "vae_displays": (set(), 90),
    "vae_runtime": (set(), 170),
    "vae_checkpoint": ({"vae_runtime"}, 170),
    "vae_batches": ({"vae_runtime", "vae_checkpoint"}, 280),
    "vae_data": (set(), 250),
    "vae_networks": (set(), 120),
    "vae_steps": ({"vae_runtime"}, 95),
    "vae_helpers": (
        {
            "vae_distributions",
            "vae_pixels",
            "vae_support",
            "vae_history",
            "vae_runtime",
            "vae_checkpoint",
            "vae_batches",
            "vae_steps",
        },
        900,
    ),
    "vae_diagnostics": ({"vae_helpers", "vae_support"}, 100),
    "vae_convergence": ({"vae_helpers", "vae_displays", "vae_runtime"}, 270),
    "vae_canvas": (set(), 220),
    "vae_learning_curve": ({"vae_canvas", "vae_displays", "vae_helpers", "vae_convergence"}, 400),
    "vae_figures": (
        {"vae_canvas", "vae_learning_curve", "vae_helpers", "vae_convergence", "vae_diagnostics"},
        400,
    ),
    "vae_explorer": ({"vae_helpers", "vae_figures"}, 200),
}
LONGEST_FUNCTION = 55  # lines without the docstring: a screen

FILES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("vae_*.py", "train.py", "benchmarks/*.py", "tools/*.py", "tests/*.py")
    for path in sorted(ROOT.glob(pattern))
}
MODULES = {name: FILES[f"{name}.py"] for name in ROOMS}


# ------------------------------------------------------------------------------ reading code


def imported(tree):
    """``(module, names)`` of every import, wherever it stands; no names for a plain import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]


def is_private(name):
    """``_so``; neither ``__init__`` nor ``_repr_html_``, the protocols of Python and Jupyter."""
    return name.startswith("_") and not name.endswith("_")


def private_names(source):
    """Every underscored name that a file makes: functions, classes, variables and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if is_private(name):
            yield name


def top_level_names(tree):
    """What a module defines itself, and what it imports from a room of the lab."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vae_"):
            yield from (alias.name for alias in node.names)


def foreign_roots(tree):
    """The names that a file's imports from elsewhere bind, such as ``torch`` and ``np``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or node.names[0].name
            if module.split(".")[0] not in {*ROOMS, "train", "tools", "conftest", "benchmarks"}:
                yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)


# ---------------------------------------------------------------------------------- the rules


def arrows_upwards(name, source):
    """A room imports no room but those below it, and nothing of what is built upon the rooms."""
    allowed = ROOMS[name][0]
    for module, _ in imported(ast.parse(source)):
        root = module.split(".")[0]
        above = {"train", "benchmarks", "tests", "tools", "conftest"}
        if (root.startswith("vae_") or root in above or not root) and root not in allowed:
            yield f"{name} imports {module}"


def others_private_names(name, source, theirs):
    """No file uses an underscored name that another file made, ``theirs``."""
    tree = ast.parse(source)
    others, outside = theirs - set(private_names(source)), set(foreign_roots(tree))
    for module, names in imported(tree):
        yield from (f"{name} imports {module}.{n}" for n in names if n in others)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in others:
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in outside):
                yield f"{name}, line {node.lineno}, uses {node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            said = {a.value for a in node.args if isinstance(a, ast.Constant)} & others
            yield from (f"{name}, line {node.lineno}, reaches for {n}" for n in said)


def hidden_interface(name, source):
    """A module opens with ``__all__``, and that names its own things and those of rooms below."""
    tree = ast.parse(source)
    body = tree.body[1 if ast.get_docstring(tree) else 0 :]
    while body and (
        isinstance(body[0], (ast.Import, ast.ImportFrom))
        or (isinstance(body[0], ast.If) and ast.unparse(body[0].test) == "TYPE_CHECKING")
    ):
        body = body[1:]
    if not ast.get_docstring(tree):
        yield f"{name} has no docstring"
    if not (
        body and isinstance(body[0], ast.Assign) and ast.unparse(body[0].targets[0]) == "__all__"
    ):
        yield f"{name} does not open with __all__"
        return
    offered, known = ast.literal_eval(body[0].value), set(top_level_names(tree))
    yield from (f"{name}.__all__ has {n}, which is not its own" for n in offered if n not in known)
    yield from (f"{name}.__all__ has the private {n}" for n in offered if n.startswith("_"))
    overview = ast.get_docstring(tree) or ""
    if re.search(r"^={3,} +={3,}", overview, re.M):  # a table of what is in the module
        missing = [n for n in offered if not re.search(rf"\b{n}\b", overview)]
        yield from (f"{name}'s overview lacks {n}" for n in missing)


def too_long(name, source):
    """A room keeps its bound, and each function fits on a screen, its docstring not counted."""
    lines = len(source.splitlines())
    bound = ROOMS.get(name, (None, lines))[1]
    if lines > bound:
        yield f"{name} has {lines} lines, more than {bound}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False):
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"{name}.{node.name} has {length} lines, more than {LONGEST_FUNCTION}"


def names_that_are_not_there(name, source):
    """What a script takes of a room, the room has: no test runs all scripts from end to end."""
    tree, rooms = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            rooms |= {a.asname or a.name: a.name for a in node.names if a.name in ROOMS}
    taken = [(module, n) for module, names in imported(tree) if module in ROOMS for n in names]
    taken += [
        (rooms[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in rooms
    ]
    for module, taken_name in taken:
        if not hasattr(importlib.import_module(module), taken_name):
            yield f"{name} takes {taken_name} of {module}, which has none"


# ------------------------------------------------------------------------------------ the lab

PRIVATE_NAMES = {name: set(private_names(source)) for name, source in FILES.items()}


def test_the_rooms_are_all_of_the_lab_and_their_arrows_point_downwards():
    assert {path.stem for path in ROOT.glob("vae_*.py")} == set(ROOMS)
    below = set()
    for name, (allowed, _) in ROOMS.items():
        assert allowed <= below
        below.add(name)
    # Independent of data and task: none of its arrows leads to data, networks, figures, verdicts.
    assert not ROOMS["vae_helpers"][0] & {
        f"vae_{n}"
        for n in (
            *("data", "networks", "diagnostics", "convergence"),
            *("canvas", "learning_curve", "figures", "explorer"),
        )
    }


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_lies_below_it(name):
    assert not list(arrows_upwards(name, MODULES[name]))


@pytest.mark.parametrize("name", FILES)
def test_no_file_uses_another_s_underscored_name(name):
    theirs = set().union(*(names for other, names in PRIVATE_NAMES.items() if other != name))
    assert not list(others_private_names(name, FILES[name], theirs))


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_first_what_it_offers(name):
    assert not list(hidden_interface(name, MODULES[name]))


@pytest.mark.parametrize("name", ROOMS)
def test_a_star_import_brings_what_a_room_offers_and_nothing_of_pytorch(name):
    module, brought = importlib.import_module(name), {}
    exec(f"from {name} import *", brought)
    assert brought.keys() - {"__builtins__"} == set(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for offered in brought.values():
        assert not str(getattr(offered, "__module__", "")).startswith("torch")


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_and_its_functions_keep_their_bounds(name):
    assert not list(too_long(name, MODULES[name]))


SCRIPTS = [name for name in FILES if not name.startswith(("vae", "tests"))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_function_of_a_script_fits_on_a_screen(name):
    assert not list(too_long(name, FILES[name]))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_takes_of_the_lab_is_there(name):
    assert not list(names_that_are_not_there(name, FILES[name]))


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_has_tests_of_its_own(name):
    assert list(ROOT.glob(f"tests/test_{name.removeprefix('vae_')}*.py"))


# --------------------------------------------------------------------- bad modules are noticed

HEAD = '"""A module."""\n\nimport torch\n\n'


@pytest.mark.parametrize(
    "line",
    [
        "import vae_data",
        "import vae_figures as figures",
        "from vae_networks import mlp",
        "import os, vae_explorer",
        "def late():\n    from vae_convergence import fit_doubling",
        "if TYPE_CHECKING:\n    from vae_convergence import Convergence",
        "from .vae_data import scale",
        "from . import vae_data",
        "import train",
        "from benchmarks.large_data import write",
        "from conftest import figures",
    ],
)
def test_an_arrow_upwards_is_noticed(line):
    assert list(arrows_upwards("vae_helpers", HEAD + line))
    assert not list(arrows_upwards("vae_helpers", HEAD + "from vae_runtime import seeded"))


@pytest.mark.parametrize(
    "line",
    [
        "import vae_helpers as lab\nlab.mlp(2, [], 2)",
        "def late():\n    import vae_helpers\n    return vae_helpers.mlp",
        "from vae_helpers import VAE, mlp",
    ],
)
def test_a_name_that_has_moved_is_noticed(line):
    assert list(names_that_are_not_there("some", HEAD + line))
    assert not list(names_that_are_not_there("some", HEAD + line.replace("mlp", "VAE")))


@pytest.mark.parametrize(
    "line",
    [
        "from vae_helpers import _hidden",
        "import vae_helpers as lab\nlab._hidden()",
        "import vae_helpers\nvae_helpers.VAE._hidden",
        "def use(model):\n    return model.part._hidden",
        "import vae_helpers as lab\nmonkeypatch.setattr(lab, '_hidden', 0)",
        "import vae_helpers as lab\ngetattr(lab, '_hidden')",
    ],
)
def test_another_s_underscored_name_is_noticed(line):
    assert list(others_private_names("some", HEAD + line, {"_hidden"}))


@pytest.mark.parametrize(
    "line",
    [
        "def _hidden():\n    return _hidden()",  # its own
        "class A:\n    def __init__(self):\n        self._hidden = 1\n\nA()._hidden",
        "torch._hidden",  # PyTorch's
        "import torch.nn as nn\nnn.modules._hidden",
        "from vae_helpers import hidden",
    ],
)
def test_one_s_own_and_a_library_s_underscored_names_are_free(line):
    assert not list(others_private_names("some", HEAD + line, {"_hidden"}))


def test_the_private_names_of_a_file_are_found():
    source = (
        "_a = _b = 0\ndef _c(_argument): pass\nclass _D:\n    _e: int = 0\n"
        "    def f(self):\n        self._g, other = 1, _not_made\n    def __h__(self): pass\n"
        "    def _repr_html_(self): pass\n"
    )
    assert set(private_names(source)) == {"_a", "_b", "_c", "_D", "_e", "_g"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def f(): pass", "does not open with"),
        ("LIMIT = 1\n__all__ = ['LIMIT']", "does not open with"),
        ("__all__ = ['f']", "not its own"),
        ("__all__ = ['torch']", "not its own"),
        ("from torch import nn\n__all__ = ['nn']", "not its own"),
        ("__all__ = ['_f']\ndef _f(): pass", "private"),
    ],
)
def test_a_module_without_a_proper_all_is_noticed(body, said):
    assert any(said in sentence for sentence in hidden_interface("some", HEAD + body))


@pytest.mark.parametrize(
    "body",
    [
        "__all__ = ['f', 'A', 'LIMIT']\nLIMIT: int = 1\ndef f(): pass\nclass A: pass",
        "from vae_history import History\n__all__ = ['History']",
        "if TYPE_CHECKING:\n    import numpy\n\n__all__ = []",
    ],
)
def test_a_proper_all_passes(body):
    assert not list(hidden_interface("some", HEAD + body))


def test_an_overview_that_lacks_a_public_name_is_noticed():
    overview = '"""A module.\n\n====  ====\none   f\n====  ====\n"""\n'
    assert not list(hidden_interface("some", overview + "__all__ = ['f']\ndef f(): pass"))
    found = list(hidden_interface("some", overview + "__all__ = ['g']\ndef g(): pass"))
    assert found == ["some's overview lacks g"]
    assert any("docstring" in said for said in hidden_interface("some", "__all__ = []"))


def test_what_is_too_long_is_noticed():
    bound = ROOMS["vae_networks"][1]
    assert not list(too_long("vae_networks", "x = 1\n" * bound))
    assert list(too_long("vae_networks", "x = 1\n" * (bound + 1)))
    line, text = "    x = 1\n", '    """' + "Text.\n" * 80 + '    """\n'
    assert not list(too_long("some", "def f():\n" + text + line * (LONGEST_FUNCTION - 1)))
    assert list(too_long("some", "def f():\n" + line * LONGEST_FUNCTION))
    method = "class A:\n    def f(self):\n" + ("    " + line) * LONGEST_FUNCTION
    assert list(too_long("some", method))
