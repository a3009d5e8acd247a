"""What identifies a run, and the file from which it continues."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import os
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae_runtime import process

__all__ = ["Checkpoint", "describe", "digest"]


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
