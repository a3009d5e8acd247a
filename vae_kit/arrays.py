"""Tensors from the arrays, tables and lists in which people keep numbers."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["as_floats", "as_tensor", "refuse_what_is_no_dataset"]


def as_tensor(data: Any) -> Any:
    """An array, a table or rows in lists as a tensor; any other data set unchanged.

    A tensor shares the memory of an array where PyTorch can. Masked and missing values become NaN.
    Raises ``TypeError`` for what holds something else than real numbers.
    """
    if isinstance(data, Tensor):
        return _real(data.to_tensor(math.nan) if hasattr(data, "to_tensor") else data.detach())
    if hasattr(data, "to_numpy"):
        data = _from_table(data)
    first = data
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(data, list) and isinstance(first, (int, float)):
        data = np.asarray(data)
    if not isinstance(data, (np.ndarray, np.generic)):
        return data
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(float), math.nan) if np.any(data.mask) else data.data
    return _from_array(data)


def as_floats(x: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Data in the model's space as a tensor of floats on the device; ``TypeError`` otherwise.

    Floats of any width and truth values have one meaning; integers may be raw images.
    """
    x = as_tensor(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor or an array of numbers, got {type(x).__name__}")
    if x.dtype == torch.uint8:
        raise TypeError(
            "bytes are no numbers in the model's space: raw images need a transform (dequantize, "
            "scale or binarize), other bytes a conversion to floats"
        )
    if not x.is_floating_point() and x.dtype != torch.bool:
        raise TypeError(f"expected floating-point numbers, got {x.dtype}: convert them to floats")
    return x.to(device, dtype, non_blocking=True)


def refuse_what_is_no_dataset(data: Any) -> None:
    """Raise ``TypeError`` for data that neither are numbers nor can be asked for single points."""
    kind = type(data).__name__
    if isinstance(data, DataLoader):
        raise TypeError("a DataLoader batches by itself: give the dataset it loads, loader.dataset")
    if isinstance(data, Mapping):
        raise TypeError(f"a {kind} has no order: give one of its values")
    if isinstance(data, tuple):
        raise TypeError(f"a tuple of {len(data)} is no data set: give its data points alone")
    if hasattr(data, "toarray"):
        raise TypeError(f"a sparse {kind} has no rows to index: give its toarray()")
    if not hasattr(data, "__getitem__") or not (hasattr(data, "__len__") or hasattr(data, "shape")):
        raise TypeError(
            f"expected a tensor, an array or a dataset with __getitem__ and __len__, got {kind}"
        )


def _real(x: Tensor) -> Tensor:
    """The tensor, if its numbers are real and lie in its memory one by one."""
    if x.is_complex():
        raise TypeError(f"{x.dtype} has two parts: give both as floats, torch.view_as_real(x)")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError("a sparse or nested tensor has no rows of one size: give x.to_dense()")
    return x


def _from_table(table: Any) -> np.ndarray:
    """The numbers of a DataFrame, or of anything else with ``to_numpy``."""
    columns: Any = getattr(table, "dtypes", None)
    if hasattr(columns, "items"):  # of pandas, which would make objects of columns that differ
        kinds = {name: getattr(dtype, "kind", "O") for name, dtype in columns.items()}
        if others := [str(name) for name, kind in kinds.items() if kind not in "fiub"]:
            listed = ", ".join(others)
            raise TypeError(f"the columns {listed} hold no real numbers: encode or leave them out")
        one_kind = len(set(columns)) == 1 and isinstance(columns.iloc[0], np.dtype)
        array = table.to_numpy() if one_kind else table.to_numpy(dtype=float, na_value=math.nan)
    else:
        array = table.to_numpy()
    whole = array.dtype.kind in "iu" and array.dtype != np.uint8  # bytes may be raw images
    return array.astype(float) if whole else array


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype.names:
        raise TypeError(
            "a structured array has named columns: give their numbers, "
            "numpy.lib.recfunctions.structured_to_unstructured(array)"
        )
    if array.dtype.kind == "c":
        raise TypeError(f"{array.dtype} has two parts: give both, array.real and array.imag")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"an array of {array.dtype} holds no real numbers: encode them as floats")
    array = np.asarray(array)
    if not array.dtype.isnative or array.dtype.itemsize > 8:
        array = array.astype(f"{array.dtype.kind}{min(8, array.dtype.itemsize)}")
    if min(array.strides, default=0) < 0:
        array = array.copy()
    with warnings.catch_warnings():  # that it is read-only does not matter: nothing is written
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
