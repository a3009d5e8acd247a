"""Runs of doubled length that share a trunk, and the verdict on them."""

import copy
import os
from pathlib import Path
from typing import Any

import torch

from vae_helpers import VAE

from .batches import Transform
from .checkpoint import Checkpoint, digest_of_weights
from .checks import positive_number, warn_of_other_weights, whole_number
from .convergence import Convergence, convergence
from .history import History
from .optimization import decay_start
from .processes import progress_bar
from .settings import Settings
from .training import Progress, Run, prepare_run

__all__ = ["fit_doubling"]


def fit_doubling(
    model: VAE,
    train: Any,
    test: Any,
    *,
    epochs: int,
    tolerance: float,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = True,
    transform: Transform | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
    **settings: Any,
) -> Convergence:
    """Train ``model`` for E/4, E/2 and E epochs from the same first weights, and judge the runs.

    Until its rate decays a run is the beginning of any longer one, so each goes on from where the
    one before began to decay: all three cost 1.19 E epochs. ``settings`` are ``fit``'s. The model
    ends with the weights of the run to keep, of ``Convergence.keep`` epochs.

    With a ``checkpoint``, that file keeps what the runs share, and one beside it each run: the same
    call goes on where it was interrupted, and a call for twice the epochs trains what is new only.
    Raises ``ValueError`` after Ctrl-C (the files stay), and if E is no multiple of 4.
    """
    if whole_number("epochs", epochs) % 4:
        raise ValueError(f"epochs must be a multiple of 4, for runs of E/4, E/2, E; got {epochs}")
    tolerance = positive_number("tolerance", tolerance)
    lengths, runs, ends = (epochs // 4, epochs // 2, epochs), [], {}
    total = decay_start(epochs) + sum(length - decay_start(length) for length in lengths)
    given, trunk = digest_of_weights(model.state_dict()), _Trunk(checkpoint)
    with progress_bar(progress is True, "epoch", total) as bar:

        def watch(history: History) -> Any:
            bar.update()
            bar.set_postfix_str(f"run of {history.settings.epochs}, {history.last()}")
            return progress(history) if callable(progress) else None

        for length in lengths:
            numbers = Settings(epochs=length, **settings)
            with prepare_run(model, train, test, numbers, transform, device, workers) as run:
                finished = trunk.complete(run, watch)
            runs.append(run.history)
            ends[length] = copy.deepcopy(model.state_dict())
            if not finished:
                break
    if given not in map(digest_of_weights, (trunk.content["first"], *ends.values())):
        warn_of_other_weights(checkpoint)
    verdict = convergence(*runs, tolerance=tolerance)
    model.load_state_dict(ends[verdict.keep])
    return verdict


class _Trunk:
    """What runs of all lengths share: their first weights, and training at a constant rate.

    It is kept in the file ``path``, and each run in one beside it.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.content: dict[str, Any] = {}

    def complete(self, run: Run, progress: Progress) -> bool:
        """Train a run's missing epochs; False where ``progress`` or Ctrl-C stopped it early."""
        self._enter(run)
        length = run.settings.epochs
        file = self.path and self.path.with_name(f"{self.path.name}-{length}")
        resumed = run.resume(Checkpoint(file, run.identity))
        if not resumed and 0 < self.content["epochs"] <= decay_start(length):
            run.restore(copy.deepcopy(self.content["state"]))
        return run.complete(progress, self._keep)

    def _enter(self, run: Run) -> None:
        """Give a run the first weights: those in the file, or its own if it is the first."""
        if not self.content:
            identity = {name: text for name, text in run.identity.items() if name != "epochs"}
            self.checkpoint = Checkpoint(self.path, identity)
            if (saved := self.checkpoint.read()) is None:
                saved = {"first": copy.deepcopy(run.model.state_dict()), "epochs": 0}
                self.checkpoint.write(saved)
            self.content = saved
        run.set_first_weights(self.content["first"])

    def _keep(self, run: Run) -> None:
        """Take over a run that is about to decay."""
        if len(run.history) > self.content["epochs"]:
            self.content |= {"state": copy.deepcopy(run.state()), "epochs": len(run.history)}
            self.checkpoint.write(self.content)
