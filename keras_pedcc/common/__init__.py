"""Helpers that all other subpackages may use, and type aliases."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Tensor: TypeAlias = Any  # of the backend
Tensors: TypeAlias = tuple[Tensor, ...]
Array: TypeAlias = np.ndarray
ArrayLike: TypeAlias = npt.ArrayLike | Tensor
Shape: TypeAlias = tuple[int, ...]
Logs: TypeAlias = dict[str, Any] | None  # that Keras gives a callback
