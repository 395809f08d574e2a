"""The identity of a global model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def hash_of(model: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names, shapes and bits of a global model.

    Args:
        model: float32 arrays by name.
    """
    found = hashlib.sha256()
    for name in sorted(model):
        array = np.ascontiguousarray(model[name])
        found.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()
