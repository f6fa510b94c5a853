"""Weights that Keras wrote (HDF5): tensors by the names that its layers would have in a fresh session."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEST = "model_weights"
"""Where a file of `Model.save` has what `Model.save_weights` puts at the top."""
TO_TORCH = {5: (4, 3, 0, 1, 2), 4: (3, 2, 0, 1), 2: (1, 0)}
"""Axes of kernels, by their number: Keras has inputs and outputs last, torch has outputs and inputs first."""


def read_keras(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file of Keras 1 or 2, with axes in torch's order; spatial axes stay as they are.

    Keras numbers the layers of a session, so that the names in a file depend on what was built before. Here layers of a
    kind are counted anew, in the order of the file: `conv3d`, `conv3d_1` and so on, each with `.kernel` and `.bias`.

    Source: https://rdrr.io/pkg/keras/man/save_model_weights_hdf5.html (attributes `layer_names` and `weight_names`).

    Raises:
        ValueError: There is no h5py, or the file is damaged or not of this layout.
    """
    try:
        h5py = import_module("h5py")
    except ImportError as error:
        raise ValueError(f"{path} is a file of Keras, which h5py reads: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            return keras_tensors(file)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no weights file of Keras 1 or 2: {error}") from error


def keras_tensors(file: Any) -> dict[str, Tensor]:
    """Return the tensors of an open file.

    Args:
        file: A group of h5py, or what behaves alike: a mapping with `attrs`.

    Raises:
        ValueError: It lists no layers.
    """
    root = file if "layer_names" in file.attrs else file.get(NEST)
    if root is None:
        raise ValueError(f"it has no attribute layer_names, neither at its top nor in {NEST}")
    layers = {name: _texts(root[name].attrs["weight_names"]) for name in _texts(root.attrs["layer_names"])}
    layers = {name: weights for name, weights in layers.items() if weights}
    found = {}
    for (name, weights), counted in zip(layers.items(), _counted(layers), strict=True):
        for weight in weights:
            kind = weight.rpartition("/")[2].partition(":")[0]
            found[f"{counted}.{kind}"] = _in_torch_order(torch.from_numpy(np.array(root[name][weight])))
    return found


def _texts(values: Iterable[str | bytes]) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else str(each) for each in values]


def _counted(names: Iterable[str]) -> Iterator[str]:
    """Yield the names that layers get in a fresh session."""
    seen: Counter[str] = Counter()
    for name in names:
        kind = re.sub(r"_\d+$", "", name)
        yield f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1


def _in_torch_order(tensor: Tensor) -> Tensor:
    return tensor.permute(TO_TORCH.get(tensor.ndim, tuple(range(tensor.ndim)))).contiguous()
