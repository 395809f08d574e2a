"""How torch and the C library work on a CPU: the same float32, in less time."""

from __future__ import annotations

import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare() -> None:
    """Do both in a process that trains, unless it has a GPU."""
    if not torch.cuda.is_available():
        keep_memory()
        multiply_with_onednn()


def keep_memory() -> None:
    """Let the C library keep what is freed, for the next step.

    By default glibc returns large blocks to the system, such as the logits of each step, and the
    system clears every page that it gives out again. A C library without ``mallopt`` is left alone.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def multiply_with_onednn() -> None:
    """Let torch multiply float32 matrices with oneDNN, which is faster than MKL on AMD.

    Torch takes oneDNN for it where precision ``medium`` permits to compute in bfloat16. oneDNN does
    so with AMX only; on CPUs without, which this is for, it computes in float32.
    """
    has_amx = torch.cpu._is_amx_tile_supported()
    if not has_amx and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("medium")
