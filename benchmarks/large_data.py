"""How fast is training from a file that is mapped, against training from memory?

``python benchmarks/large_data.py [points]``. Both are measured in turn, five times, and the median
of the ratios is printed: what else the machine does then meets both alike. The file comes from the
operating system's cache, as it does for all epochs but the first where it fits there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vae_helpers as lab

DIMS, BATCH, ROUNDS = 32, 1024, 5


class Mapped(Dataset):
    """Rows of a matrix in a file, of which only those asked for are read."""

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, index: list[int]) -> torch.Tensor:
        """A whole batch."""
        return torch.from_numpy(self.rows[index])


def seconds(data: Dataset | torch.Tensor) -> float:
    """Duration of an epoch."""
    model = lab.VAE(
        lab.EncoderGaussian(lab.mlp(DIMS, [128, 128], 16)),
        lab.DecoderGaussian(lab.mlp(8, [128, 128], DIMS)),
        lab.PriorGaussian(8),
    )
    test = torch.zeros(10, DIMS)
    settings = {"batch_size": BATCH, "cloud": 1000, "progress": False, "device": "cpu"}
    return lab.fit(model, data, test, epochs=1, **settings).seconds[0]


def main() -> None:
    """Print each round and the median of the ratios."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.npy"
        np.save(path, np.random.default_rng(0).standard_normal((points, DIMS), np.float32))
        memory, file = torch.from_numpy(np.load(path)), Mapped(path)
        ratios = []
        for _ in range(ROUNDS):
            inside, outside = seconds(memory), seconds(file)
            ratios.append(outside / inside)
            print(f"memory {inside:.2f} s, file {outside:.2f} s, ratio {ratios[-1]:.2f}")
        del file
        print(f"{points:,} points: a mapped file takes {statistics.median(ratios):.2f} x the time")


if __name__ == "__main__":
    main()
