"""How fast is training from a file that is mapped, against training from memory?

``python benchmarks/large_data.py [points]``. An epoch of 100,000 images, scattered over a file of
2 million, and one of the same images in memory are measured in turn, five times, and the median of
the ratios is printed: what else the machine does then meets both alike. The file comes from the
operating system's cache, as it does for all epochs but the first where it fits there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vae_data
import vae_helpers as lab
from vae_networks import mlp

PIXELS, EPOCH, ROUNDS = 784, 100_000, 5


class Mapped(Dataset):
    """Rows of a matrix in a file, of which only those asked for are read.

    The file is mapped anew for each batch: what a mapping has touched counts as resident memory
    until it ends, or until the system needs the room.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.length = path, len(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, index: list[int]) -> torch.Tensor:
        """A whole batch."""
        return torch.from_numpy(np.load(self.path, mmap_mode="r")[index])


def write(path: Path, points: int, dims: int) -> None:
    """A file of as many random rows of bytes, written piece by piece."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (points, dims))
    for part in np.array_split(file, -(-points // 100_000)):
        part[:] = rng.integers(0, 256, part.shape, np.uint8)


def seconds(data: Dataset | torch.Tensor) -> float:
    """Duration of an epoch."""
    model = lab.VAE(
        lab.EncoderGaussian(mlp(PIXELS, [400], 2 * 20)),
        lab.DecoderBernoulli(mlp(20, [400], PIXELS)),
        lab.PriorGaussian(20),
    )
    test = torch.zeros(10, PIXELS, dtype=torch.uint8)
    settings = {"keep_points": 1000, "progress": False, "device": "cpu"}
    history = lab.fit(model, data, test, epochs=1, transform=vae_data.binarize, **settings)
    return history.seconds[0]


def main() -> None:
    """Print each round and the median of the ratios."""
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "points.npy"
        write(path, points, PIXELS)
        chosen = np.random.default_rng(1).permutation(points)[:EPOCH].tolist()
        file = Subset(Mapped(path), chosen)
        memory, ratios = Mapped(path).__getitems__(chosen), []
        for _ in range(ROUNDS):
            inside, outside = seconds(memory), seconds(file)
            ratios.append(outside / inside)
            print(f"memory {inside:.2f} s, file {outside:.2f} s, ratio {ratios[-1]:.2f}")
        gigabytes = path.stat().st_size / 1e9
        print(
            f"{points:,} points, {gigabytes:.2f} GB: from the mapped file an epoch takes "
            f"{statistics.median(ratios):.2f} x the time"
        )


if __name__ == "__main__":
    main()
