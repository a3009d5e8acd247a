"""What tells one run from another, and the file from which an interrupted run continues."""

import contextlib
import hashlib
import inspect
import io
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .processes import broadcast_from_first, rank_and_size

__all__ = ["Checkpoint", "describe", "digest", "digest_of_weights"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
# What PyTorch keeps in every module, beside the module's own attributes.
_OF_PYTORCH = {*vars(nn.Module()), "_compiled_call_impl"}


def describe(thing: Any, weights: bool = True) -> str:
    """What a transform or a model is made of, as a text, which is the same for equal things only.

    Functions are told by their names and modules, other objects by their types and attributes;
    without ``weights``, which training changes, modules by the shapes of theirs. It begins with "?"
    where a thing cannot be told from others: a lambda, a function made by another, an object
    without attributes or a repr.
    """
    text = _described(thing, {}, weights)
    return "? " + text.replace("? ", "") if "? " in text else text


def _described(thing: Any, seen: dict[int, Any], weights: bool) -> str:
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if id(thing) in seen:  # described already, perhaps further up: references may be circular
        return f"#{list(seen).index(id(thing))}"
    seen[id(thing)] = thing

    def listed(items: Any) -> str:
        return ", ".join(_described(item, seen, weights) for item in items)

    def by_name(attributes: dict[Any, Any]) -> str:
        return ", ".join(f"{key}={listed([value])}" for key, value in attributes.items())

    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, np.ndarray) and thing.dtype.kind not in "biufc":  # text, objects
        thing = thing.tolist()
    if isinstance(thing, (Tensor, np.ndarray)):
        return f"array {digest(thing)}"
    if isinstance(thing, (list, tuple)):
        return f"{kind}({listed(thing)})"
    if isinstance(thing, dict):
        return f"{kind}({by_name(thing)})"
    if isinstance(thing, partial):
        return f"{listed([thing.func])}({listed(thing.args)}, {by_name(thing.keywords)})"
    if inspect.ismethod(thing):
        return f"{listed([thing.__self__])}.{thing.__name__}"
    if isinstance(thing, nn.Module):
        own = {key: value for key, value in vars(thing).items() if key not in _OF_PYTORCH}
        if isinstance(thing, torch.fx.GraphModule):
            own = {"code": thing.code}
        for name, tensor in [*thing.named_parameters("", False), *thing.named_buffers("", False)]:
            own[name] = tensor if weights else (*tensor.shape, tensor.dtype)
        return f"{kind}({by_name(own | dict(thing.named_children()))})"
    if hasattr(thing, "__qualname__"):
        module = sys.modules.get(getattr(thing, "__module__", None) or "")
        found = getattr(module, thing.__qualname__, None) is thing
        unclear = "" if found or isinstance(thing, BuiltinFunctionType) else "? "
        return f"{unclear}{getattr(thing, '__module__', '')}.{thing.__qualname__}"
    if attributes := getattr(thing, "__dict__", None):
        return f"{kind}({by_name(attributes)})"
    text = repr(thing)
    return f"? {kind}" if re.search(r" at 0x[0-9a-f]+", text) else f"{kind} {text}"


def digest_of_weights(state: Mapping[str, Any]) -> str:
    """A digest of a ``state_dict``; what is no tensor there is described."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(f"{name} {describe(value)}".encode())
    return found.hexdigest()[:16]


def digest(array: Tensor | np.ndarray) -> str:
    """SHA-256 of shape, dtype and numbers, 16 hexadecimal digits.

    Of more than 1 GiB, 10,000 rows that lie evenly over all of it count.
    """
    rows = torch.as_tensor(array).detach()
    found = hashlib.sha256(f"{tuple(rows.shape)} {rows.dtype}".encode())
    if rows.nbytes > 2**30 and len(rows) > 10_000:
        even = torch.linspace(0, len(rows) - 1, 10_000, dtype=torch.float64, device="cpu")
        rows = rows[even.long().to(rows.device)]
    # Piece by piece: rows that share their memory, such as windows, would not fit in it as copies.
    size = max(1, len(rows) * 2**22 // max(1, rows.nbytes)) if rows.ndim else 1
    for piece in torch.split(rows, size) if rows.ndim else [rows]:
        found.update(piece.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


class Checkpoint:
    """A file that holds the state of a run, whole or not at all; without a path, nothing is kept.

    ``identity`` is what defines the run, by name. Raises ``ValueError`` where it leaves open what
    something is: "?" in front marks that.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: dict[str, str]) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.identity = identity
        for name, text in identity.items():
            if self.path and text.startswith("?"):
                raise ValueError(
                    f"a checkpoint cannot tell the {name} from others, {text[2:]:.200}: use "
                    "functions defined by name at the top of a module or cell"
                )

    def write(self, state: dict[str, Any]) -> None:
        """Write so that at every moment the file is the old one or the new one, whole.

        Raises ``OSError`` where it cannot be written.
        """
        if self.path is None or rank_and_size()[0] > 0:
            return
        content = io.BytesIO()  # torch.save into a file would hide what the disk says
        torch.save({"identity": self.identity, **state}, content)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(f"the checkpoint {self.path} could not be written: {error}") from error

    def read(self) -> dict[str, Any] | None:
        """The state that was written, as the first process sees the file; None without a file.

        Raises ``ValueError`` for a file that is damaged or of another run. It is left as it is.
        """
        if self.path is None:
            return None
        # The other processes may be on machines without the file.
        content = self.path.read_bytes() if rank_and_size()[0] == 0 and self.path.exists() else None
        if (content := broadcast_from_first(content)) is None:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), "cpu", weights_only=True)
            saved = state.pop("identity")
        except Exception as error:  # a damaged file makes its readers raise whatever they like
            raise ValueError(
                f"{self.path} is not a readable checkpoint: move it away to start anew"
            ) from error
        if differences := ", ".join(_differences(saved, self.identity)):
            raise ValueError(
                f"{self.path} is the checkpoint of another run, which differs in {differences}: "
                "give another file"
            )
        return state


def _differences(saved: dict[str, str], identity: dict[str, str]) -> list[str]:
    return [
        f"{name} ({saved.get(name)} there, {identity.get(name)} here)"
        if len(f"{saved.get(name)}{identity.get(name)}") < 80
        else name
        for name in saved | identity
        if saved.get(name) != identity.get(name)
    ]
