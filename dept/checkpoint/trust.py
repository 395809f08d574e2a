"""Checkpoints and tokenizers from elsewhere are data: nothing in them is run.

Composer loads checkpoints with ``torch.load(weights_only=False)``, which runs whatever a pickle
says. ``guard`` closes that for a whole process, wherever a checkpoint comes from: ``autoresume``,
``load_path``, a bucket, an archive, shards of FSDP. ``refuse_code`` says it in a sentence for files
on this machine, before training.
"""

from __future__ import annotations

import _codecs
import collections
import dataclasses
import datetime
import enum
import os
import pathlib
import pickle
import platform
import tarfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from dept.data.tokenizer_files import names_code
from dept.errors import ConfigError

# What Composer's checkpoints hold beside tensors and plain containers; nothing here runs code.
PLAIN = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    _codecs.encode,
]

# What the file `.metadata` of a checkpoint in shards (FSDP) holds.
_METADATA = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("pathlib", "PosixPath"): pathlib.PosixPath,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}
_DESCRIPTIONS = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_MEND = f"if you trust who made it, set {FORCE}=0 in the environment"


class CodeRefused(pickle.UnpicklingError):
    """A checkpoint would have run code."""


def guard() -> None:
    """Let this process, and those that it starts, take nothing but plain data from checkpoints.

    The environment may say otherwise: ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=0``.
    """
    if os.environ.setdefault(FORCE, "1") not in ("1", "y", "yes", "true"):
        return
    know_plain()
    # Composer unpacks a checkpoint that is an archive; no file of it may go elsewhere.
    if hasattr(tarfile, "data_filter"):
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # type: ignore
    else:  # Python below 3.10.12 and 3.11.4, hence that of Debian 12
        tarfile.TarFile.extractall = _refuse_archive  # type: ignore[method-assign]
    from torch.distributed.checkpoint import filesystem

    filesystem.pickle = types.SimpleNamespace(  # type: ignore[assignment]
        load=lambda file: _Metadata(file).load(), dump=pickle.dump
    )


def _refuse_archive(archive: tarfile.TarFile, *_: Any, **__: Any) -> None:
    raise ConfigError(
        f"{archive.name} is an archive, which Python {platform.python_version()} cannot unpack "
        f"safely: take Python 3.10.12, 3.11.4, 3.12 or unpack it"
    )


def know_plain() -> None:
    """Let ``weights_only`` take PLAIN, from here on.

    Not ``torch.serialization.safe_globals``, which in its end forgets what was known before, too.
    """
    torch.serialization.add_safe_globals(PLAIN)


class _Metadata(pickle.Unpickler):
    """Of a checkpoint in shards: takes descriptions of tensors alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA:
            return _METADATA[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module in _DESCRIPTIONS and "." not in name:
            found = super().find_class(module, name)
            is_plain = dataclasses.is_dataclass(found) or isinstance(found, enum.EnumMeta)
            if is_plain and found.__module__ == module:
                return found
        raise CodeRefused(f"{module}.{name}")


def refuse_code(path: str | Path) -> None:
    """Refuse a checkpoint on this machine that holds more than plain data, without loading it.

    Raises:
        ConfigError: it names what would be run.
    """
    if os.environ.get(FORCE, "1") == "0":
        return
    try:
        know_plain()
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # what is no checkpoint at all fails in many ways
        raise ConfigError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}): name another "
            f"one, or remove it"
        ) from None
    if names:
        raise ConfigError(
            f"{path} holds {', '.join(sorted(names))}, which loading it would run: take another "
            f"checkpoint; {_MEND}"
        )


def check(config: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, what a config names and would run code.

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
            f"bring a tokenizer without, or set tokenizer.kwargs.trust_remote_code to true"
        )


def say(error: pickle.UnpicklingError) -> str:
    """One sentence about a checkpoint that was refused while it was loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line] or lines[:1]
    return (
        f"the checkpoint to go on from holds more than plain data ({named[0][:160]}) and is not "
        f"loaded: take another one; {_MEND}"
    )
