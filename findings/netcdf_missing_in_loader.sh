#!/usr/bin/env bash
# A netCDF variable is a sequence, so torch's DataLoader takes it as a data set as it is.
# Expected: a missing value reaches the batch as NaN, or default_collate refuses masked arrays.
# Seen: one file, two answers, neither a NaN. Missing in a variable with one dimension: 0.0, in a batch of
# float64 (a batch that lacks nothing is float32, or int32 for integers). Missing in a variable
# with two: the raw fill value, 9.97e36. No warning speaks of masks or missing values.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 netCDF4==1.7.5.1.post1 numpy==2.4.6
env/bin/python - <<'PY'
import warnings

import netCDF4
import numpy as np
import torch
from torch.utils.data import DataLoader

print("torch", torch.__version__, "netCDF4", netCDF4.__version__, "numpy", np.__version__)
with netCDF4.Dataset("rain.nc", "w") as file:
    file.createDimension("day", 4)
    file.createDimension("place", 2)
    total = file.createVariable("total", "f4", ("day",))
    count = file.createVariable("count", "i4", ("day",))
    rain = file.createVariable("rain", "f4", ("day", "place"))
    total[:] = np.ma.masked_array([1, 2, 3, 4], mask=[0, 1, 0, 0])
    count[:] = np.ma.masked_array([1, 2, 3, 4], mask=[0, 1, 0, 0])
    rain[:] = np.arange(1, 9).reshape(4, 2)
    rain[1, 1] = np.ma.masked

with netCDF4.Dataset("rain.nc") as file, warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    batches = {name: list(DataLoader(file[name], batch_size=2)) for name in ("total", "count", "rain")}
for name, pair in batches.items():
    print(name, *[f"{batch.tolist()} {batch.dtype}" for batch in pair])
assert not any(word in str(w.message).lower() for w in said for word in ("mask", "missing", "fill"))
for name, full in (("total", torch.float32), ("count", torch.int32)):
    lacking, whole = batches[name]
    assert lacking.tolist() == [1.0, 0.0] and lacking.dtype == torch.float64, "handled otherwise now"
    assert whole.tolist() == [3, 4] and whole.dtype == full
assert batches["rain"][0][1, 1] > 9e36, "handled otherwise now"
PY
