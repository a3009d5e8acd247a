"""What training needs around the model: seeds, devices, processes, the identity of a run, files.

Nothing here knows what a VAE is.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import os
import random
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = [
    "Checkpoint",
    "Precision",
    "agreed",
    "describe",
    "digest",
    "gathered",
    "network_dtype",
    "pick_device",
    "process",
    "progress_bar",
    "seed_from",
    "seeded",
    "whole_number",
]

Precision = Literal["auto", "float32", "bfloat16"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int. Raises ``ValueError`` unless it is a whole number ≥ ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


# --------------------------------------------------------------------------- seeds, devices


def seed_from(*key: int) -> int:
    """One seed from several numbers: independent streams for neighbouring keys."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Within it every generator that data or a model may draw from is seeded by ``key``.

    Afterwards each has its old state again.
    """
    generators = _generators()
    before = [read() for read, _ in generators]
    try:
        seed = seed_from(*key)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # on CPU, CUDA and MPS
        if xla := sys.modules.get(_XLA):
            xla.set_rng_state(seed)
        yield
    finally:
        for (_, write), state in zip(generators, before, strict=True):
            write(state)


_XLA = "torch_xla.core.xla_model"  # a device outside PyTorch, there once somebody imported it


def _generators() -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    """How to read and to set the state of each generator of a device that is there."""
    found: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_available():  # to count devices where there are none leaves garbage behind
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    if torch.backends.mps.is_available():
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    if xla := sys.modules.get(_XLA):
        found.append((xla.get_rng_state, xla.set_rng_state))
    return found


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device itself, or for None the fastest there is: CUDA, then MPS, then the CPU."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{torch.cuda.current_device()}"
    return torch.device(device)


def network_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype in which networks compute under autocast; None is no autocast."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f'precision must be "auto", "float32" or "bfloat16", got {precision!r}')
    fast = precision == "bfloat16"
    if precision == "auto" and device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    if precision == "auto" and device.type == "cpu":
        # Older versions of PyTorch cannot tell: there, float32 it is. Intel's AVX-512 has bfloat16,
        # but without AMX its products take twice the time of float32; on AMD a third.
        cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        vectors = cpu.get("avx512_bf16") and "Intel" not in cpu.get("cpu_name", "")
        fast = bool(cpu.get("amx_bf16") or vectors)
    return torch.bfloat16 if fast else None


# -------------------------------------------------------------------------------- processes


def process() -> tuple[int, int]:
    """(rank, number of processes) of ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(values: Tensor) -> Tensor:
    """The sum over processes, on the CPU: each wrote into its own places of a tensor of zeros."""
    if process()[1] > 1:
        dist.all_reduce(values)
    return values.cpu()


def agreed(answer: bool) -> bool:
    """The answer of the first process, in all of them."""
    answers = [answer]
    if process()[1] > 1:
        dist.broadcast_object_list(answers)
    return answers[0]


def progress_bar(shown: bool, total: int, done: int) -> Any:
    """A bar of ``total`` steps, ``done`` of them before, in the first of several processes."""
    # The notebook's kind of bar does not follow TQDM_DISABLE by itself.
    hidden = not shown or process()[0] > 0 or bool(os.environ.get("TQDM_DISABLE"))
    return tqdm(total=total, initial=done, unit="step", leave=False, disable=hidden)


# -------------------------------------------------------------------- what identifies a run


def describe(thing: Any) -> str:
    """What a transform is and what it was given; it begins with "?" where that cannot be told.

    A function can be told if it is found under its name in its module, which the body of a lambda
    or of a function made by another is not. Any other object needs a repr of its own.
    """
    if isinstance(thing, (Tensor, np.ndarray)):
        return f"array {digest(thing)}"
    if isinstance(thing, partial):
        given = [describe(a) for a in thing.args]
        given += [f"{name}={describe(value)}" for name, value in sorted(thing.keywords.items())]
        text = f"{describe(thing.func)}({', '.join(given)})"
    elif isinstance(thing, nn.Module):
        text = f"{thing!r} {[digest(value) for value in thing.state_dict().values()]}"
    elif hasattr(thing, "__qualname__"):
        module = sys.modules.get(thing.__module__ or "")
        found = getattr(module, thing.__qualname__, None)
        unclear = found is not thing and not isinstance(thing, BuiltinFunctionType)
        text = f"{'? ' * unclear}{thing.__module__}.{thing.__qualname__} {_source(thing)}".strip()
    else:
        text = repr(thing)
    if "? " in text or re.search(r" at 0x[0-9a-f]+", text):
        return "? " + text.replace("? ", "")
    return text


def _source(function: Any) -> str:
    """A digest of a function's code, whatever its comments and layout, and of its defaults."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ""
    text = ast.dump(tree) + repr(getattr(function, "__defaults__", None))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(array: Tensor | np.ndarray) -> str:
    """SHA-256 of shape, dtype and numbers, 16 hexadecimal digits.

    Of more than 1 GiB, 10,000 rows that lie evenly over all of it count.
    """
    rows = torch.as_tensor(array).detach()
    found = hashlib.sha256(f"{tuple(rows.shape)} {rows.dtype}".encode())
    if rows.nbytes > 2**30 and len(rows) > 10_000:
        rows = rows[torch.linspace(0, len(rows) - 1, 10_000, dtype=torch.float64).long()]
    found.update(rows.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


# ------------------------------------------------------------------------------ checkpoints


class Checkpoint:
    """A file that holds a run after each epoch; without a path, nothing is kept.

    ``settings`` are what defines the run. Raises ``ValueError`` where they leave open which
    transform that is.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = settings
        transform = settings["transform"]
        if self.path is not None and transform.startswith("?"):
            raise ValueError(
                f"a checkpoint cannot tell the transform {transform[2:]} from others: make it a "
                "function defined at the top of a module or of a notebook's cell, "
                "functools.partial(function, argument=value), or an object whose repr names its "
                "settings"
            )

    def write(self, state: dict[str, Any]) -> None:
        """Write so that at every moment the file is the old one or the new one, whole.

        Raises ``OSError`` where it cannot be written.
        """
        if self.path is None or process()[0] > 0:
            return
        content = io.BytesIO()  # torch.save into a file would hide what the disk says
        torch.save({"settings": self.settings, **state}, content)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint {self.path} could not be written ({error}); the model in memory "
                f"is usable, trained for {len(state['history']['seconds'])} epochs"
            ) from error

    def read(self) -> dict[str, Any] | None:
        """The state that was written, as the first process sees the file; None without a file.

        Raises ``ValueError`` for a file that is damaged or of another run. It is left as it is.
        """
        if self.path is None:
            return None
        rank, world = process()
        content = [self.path.read_bytes() if rank == 0 and self.path.exists() else None]
        if world > 1:  # the others may be on machines without the file
            dist.broadcast_object_list(content)
        if content[0] is None:
            return None
        try:
            state = _unsealed(content[0])
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(
                f"{self.path} is not a readable checkpoint (truncated or corrupted?): it was left "
                "as it is; move it away to start anew"
            ) from error
        self._refuse_another_run(state["settings"])
        return state

    def _refuse_another_run(self, saved: dict[str, Any]) -> None:
        differences = [
            f"{key} ({saved.get(key)} there, {value} here)" if len(str(value)) < 40 else key
            for key, value in self.settings.items()
            if saved.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{self.path} is the checkpoint of another run, which differs in "
                f"{', '.join(differences)}: go on with that run's arguments, or give another file"
            )


def _unsealed(content: bytes) -> dict[str, Any]:
    # torch.load looks at no checksum, and those of its zip file do not cover the headers.
    saved, seal = content[:-32], content[-32:]
    if hashlib.sha256(saved).digest() != seal:
        raise ValueError("the checksum does not fit")
    state: dict[str, Any] = torch.load(io.BytesIO(saved), "cpu", weights_only=True)
    if set(state) != {"settings", "model", "optimizer", "history"}:
        raise ValueError(f"it holds {', '.join(state)}")
    return state
