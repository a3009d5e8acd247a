"""What tells one experiment from another."""

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["describe", "digest", "digest_of_weights"]

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
