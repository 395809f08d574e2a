"""What a run has learned, read from its checkpoint: for whoever goes on with another run."""

from __future__ import annotations

import _codecs
import datetime
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.torch_version import TorchVersion

from dept.options import ConfigError
from dept.run_folder import find_checkpoint
from dept.source_files import FOLDER, SourceFiles

# What Composer's checkpoints hold beside tensors and plain containers; nothing here runs code.
_PLAIN = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    _codecs.encode,
]


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds of a model."""

    path: Path
    parameters: Mapping[str, Tensor]
    """By name; those that the variant keeps private are placeholders."""

    tokens: list[str] | None
    """Of the tokenizer that the model was built with, in the order of their ids."""

    identity: Mapping[str, Any] | None
    """Of a run of DEPT: its variant, sources, hashes of their tokenizers."""

    tokens_trained: Mapping[str, int]
    """By source, of a run of DEPT."""

    round: int

    model_config: Mapping[str, Any]
    """Of the model as a transformers config; empty if the checkpoint has none."""

    tokenizer: Mapping[str, Any]
    """Files of the tokenizer that the model was built with, as JSON by name; may be empty."""

    @property
    def corpus(self) -> str | None:
        """Name of the corpus, as ``config.yaml`` of the run says; ``None`` if that is not there."""
        file = self.path.parent.parent / "config.yaml"
        config: Any = OmegaConf.load(file) if file.is_file() else {}
        return (config.get("train_loader") or {}).get("corpus")

    @property
    def variant(self) -> str | None:
        """The variant of a run of DEPT."""
        return self.identity and self.identity["variant"]

    def private(self) -> dict[str, dict[str, Tensor]]:
        """Private parameters by source and name, of the sources that were trained.

        Raises:
            ConfigError: files of sources are not beside the checkpoint, or it has none.
        """
        if self.identity is None:
            raise ConfigError(
                f"{self.path} is not of a run of DEPT and has no private embeddings: set "
                f"callbacks.start_from.embedding to random or pretrained"
            )
        files, found = SourceFiles(self.path.parent / FOLDER), {}
        for source in self.identity["sources"]:
            state = files.read(source, self.round, None)
            if state is not None and state["slots"]["private"]:
                found[source] = state["slots"]["private"]
        if not found:
            raise ConfigError(
                f"{files.folder} holds no private embeddings: bring it to where {self.path.name} "
                f"is, or choose a run of spec or spec_opt"
            )
        return found


def read_trained(path: str | Path) -> Trained:
    """Read a checkpoint of this repository, or any other of llm-foundry, without unpickling code.

    Args:
        path: a file, or a folder of checkpoints.

    Raises:
        ConfigError: it is no checkpoint, is cut short, or holds other than plain data.
    """
    file = find_checkpoint(path)
    try:
        with torch.serialization.safe_globals(_PLAIN):
            state = torch.load(file, map_location="cpu", weights_only=True)["state"]
        parameters = state["model"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        raise ConfigError(
            f"{file} cannot be read as a checkpoint of Composer ({str(error).splitlines()[0]}): "
            f"name another one"
        ) from error
    built = state.get("integrations", {}).get("huggingface", {})
    files = {name: file["content"] for name, file in (built.get("tokenizer") or {}).items()}
    content = files.get("tokenizer.json")
    dept = dict(state.get("algorithms", ())).get("Dept")
    return Trained(
        path=file,
        parameters=parameters,
        tokens=content and tokens_of(content),
        identity=dept and dept["identity"],
        tokens_trained=dept["totals"]["tokens"] if dept else {},
        round=_epoch(state.get("timestamp")),
        model_config=built.get("model", {}).get("config", {}).get("content", {}),
        tokenizer=files,
    )


def tokens_of(tokenizer: Mapping[str, Any]) -> list[str]:
    """The tokens of what a ``tokenizer.json`` holds, in the order of their ids."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return sorted(vocabulary, key=vocabulary.__getitem__)
    return [token for token, _ in vocabulary]  # unigram: scores come back rounded from checkpoints


def _epoch(timestamp: Mapping[str, Any] | None) -> int:
    """The number of finished rounds, which Composer keeps under several names."""
    inner = (timestamp or {}).get("Timestamp", timestamp) or {}
    return int(inner.get("epoch", 0))
