"""NumPy arrays and torch tensors alike, so that an exported model decides by the same code without torch."""

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

Array: TypeAlias = Any
"""A NumPy array or a torch tensor."""


def ways(array: Array) -> ModuleType:
    """What `decide` and its neighbours need of the array's own library: `plain` (NumPy) or `tensors` (torch)."""
    if isinstance(array, np.ndarray):
        from fusioner import backend_numpy as plain

        return plain
    from fusioner import backend_torch as tensors

    return tensors


def to_numpy(array: Array) -> Shaped[np.ndarray, "..."]:
    """The same numbers as a NumPy array in this machine's memory."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
