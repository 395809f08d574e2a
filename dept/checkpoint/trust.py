"""Checkpoints and tokenizers from elsewhere are data: no code in them is run.

Composer 0.32.1 reads checkpoints with ``torch.load(weights_only=False)``, and states to resume from
with ``pickle.load``; both run any code that a pickle names. ``guard`` and ``guard_resumption``
prevent this in the whole process, as Composer's later pull request 3937 does, for any origin of a
checkpoint: ``autoresume``, ``load_path``, a bucket, an archive, shards of FSDP. ``refuse_code``
refuses files on this machine before training, in one sentence.
"""

from __future__ import annotations

import codecs
import dataclasses
import datetime
import enum
import io
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from dept.checkpoint import library_patches
from dept.data.tokenizer_files import names_code
from dept.errors import ConfigError
from dept.log import log

# What an array of numpy is rebuilt by; numpy 1 had it under another name.
_RECONSTRUCT = np.empty(0).__reduce__()[0]

# What Composer's checkpoints hold besides tensors and plain containers; none of it runs code.
PLAIN = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    *(d for d in vars(np.dtypes).values() if isinstance(d, type) and issubclass(d, np.dtype)),
    _RECONSTRUCT,
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    codecs.encode,
]

# What the file `.metadata` of a sharded checkpoint (FSDP) names, besides its descriptions.
_OF_METADATA = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_DESCRIPTIONS = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)

# What a state to resume from names: counts, times, random states, tensors and plain containers.
_OF_RESUMPTION = {
    ("_codecs", "encode"),
    *(("builtins", name) for name in ("complex", "frozenset", "set", "slice")),
    *(("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    ("datetime", "timedelta"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("torch._utils", "_rebuild_tensor_v2"),
}

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FIX = f"if you trust who made it, set {FORCE}=0 in the environment"


class CodeRefused(pickle.UnpicklingError):
    """A checkpoint would have run code."""


def guard() -> None:
    """Make this process, and those that it starts, read only plain data from checkpoints.

    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=0`` in the environment turns this off.
    """
    os.environ.setdefault(FORCE, "1")
    if not _is_forced():
        return
    know_plain()
    # Composer unpacks a checkpoint that is an archive; its files must stay in the target folder.
    if hasattr(tarfile, "data_filter"):
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore
    else:
        library_patches.refuse_archives()
    library_patches.unpickle_metadata_with(_Metadata)


def guard_resumption() -> None:
    """Restrict files that Composer pickles itself; separate, since this imports Composer."""
    if _is_forced():
        library_patches.unpickle_resumption_with(_Resumption)


def _is_forced() -> bool:
    return os.environ.get(FORCE, "1") in ("1", "y", "yes", "true")


def know_plain() -> None:
    """Let ``weights_only`` accept PLAIN for the rest of the process.

    ``torch.serialization.safe_globals`` is not used: at its end it also drops earlier entries.
    """
    torch.serialization.add_safe_globals(PLAIN)


class _Metadata(pickle.Unpickler):
    """Reads the metadata of a sharded checkpoint; accepts only descriptions of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _OF_METADATA:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module in _DESCRIPTIONS and "." not in name:
            found = super().find_class(module, name)
            is_plain = dataclasses.is_dataclass(found) or isinstance(found, enum.EnumMeta)
            if is_plain and found.__module__ == module:
                return found
        # torch 2.11 replaces any error here by one that does not name the reason.
        log.error(
            f"the sharded checkpoint to load names {module}.{name}, which loading it would run, "
            f"and is not loaded: choose another one; {_FIX}"
        )
        raise CodeRefused(f"{module}.{name}")


class _Resumption(pickle.Unpickler):
    """Reads a state to resume from; accepts only counts, times, random states and tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _OF_RESUMPTION:
            return super().find_class(module, name)
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # an embedded file of torch
            return lambda content: torch.load(io.BytesIO(content), weights_only=True)
        raise CodeRefused(f"{module}.{name}")


def refuse_code(path: str | Path) -> None:
    """Refuse a checkpoint on this machine that holds more than plain data, without loading it.

    Raises:
        ConfigError: it would run code; the message names it.
    """
    if os.environ.get(FORCE, "1") == "0":
        return
    try:
        know_plain()
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # a file that is not a checkpoint fails in many ways
        raise ConfigError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}): name another "
            f"one, or remove it"
        ) from None
    if names:
        raise ConfigError(
            f"{path} holds {', '.join(sorted(names))}, which loading it would run: take another "
            f"checkpoint; {_FIX}"
        )


def check(config: Mapping[str, Any]) -> None:
    """Refuse files of a config that would run code, before anything is loaded.

    Raises:
        ConfigError: ``load_path`` holds code, or the tokenizer's folder names some.
    """
    path = str(config.get("load_path"))
    for placeholder, value in (("rank", 0), ("run_name", config.get("run_name"))):
        path = path.replace(f"{{{placeholder}}}", str(value))
    if Path(path).is_file():
        refuse_code(path)
    tokenizer = config.get("tokenizer")
    if not isinstance(tokenizer, Mapping):
        return
    name = str(tokenizer.get("name"))
    kwargs = tokenizer.get("kwargs")
    trusted = isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code")
    if not trusted and Path(name).is_dir() and names_code(name):
        raise ConfigError(
            f"tokenizer.name is {name}, whose configuration names code to run (auto_map): "
            f"use a tokenizer without it, or set tokenizer.kwargs.trust_remote_code to true"
        )


def say(error: pickle.UnpicklingError) -> str:
    """The message about a checkpoint that was refused while it was loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line] or lines[:1]
    return (
        f"the checkpoint to resume from holds more than plain data ({named[0][:160]}) and is not "
        f"loaded: choose another one; {_FIX}"
    )
