"""The file from which an interrupted run continues."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from .processes import broadcast_from_first, rank_and_size

__all__ = ["Checkpoint"]


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
