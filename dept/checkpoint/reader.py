"""Read the trained parameters of a run from its checkpoint, for another run to start from."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dept.checkpoint.durable import is_whole
from dept.checkpoint.run_folder import SERVER_MODEL, find_checkpoint, folder_of_checkpoint
from dept.checkpoint.shared_embedding import SharedEmbedding, read_all
from dept.checkpoint.source_files import FOLDER, SourceFiles
from dept.checkpoint.trust import know_plain
from dept.errors import ConfigError

# Errors of a file that is cut short, of another kind, or holds code.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError)


@dataclass(frozen=True)
class Trained:
    """The parts of a checkpoint that describe a trained model."""

    path: Path
    parameters: Mapping[str, Tensor]
    """Parameters by name; those that the variant keeps private are placeholders."""

    tokens: list[str] | None
    """Tokens of the tokenizer that the model was built with, in the order of their ids."""

    identity: Mapping[str, Any] | None
    """Of a run of DEPT: its variant, its sources, and the hashes of their tokenizers."""

    tokens_trained: Mapping[str, int]
    """By source, of a run of DEPT."""

    round: int
    """Outer steps, or epochs, that the parameters have seen."""

    source_rounds: Mapping[str, int]
    """Of a run of DEPT, by source: the last round that it was trained in. Its file must be of that
    round, in mid-round too, since it holds the private embedding from the start of the round."""

    model_config: Mapping[str, Any]
    """The model's transformers config; empty if the checkpoint has none."""

    tokenizer: Mapping[str, Any]
    """Files of the tokenizer that the model was built with, as JSON by name; may be empty."""

    shared: Mapping[str, SharedEmbedding] | None = None
    """Of the server of a federation: private embeddings that silos have chosen to share."""

    tokenizer_hash: str = ""
    """Of the server of a federation: hash of the global tokenizer, if the variant uses it."""

    @property
    def folder(self) -> Path:
        """The folder of the run, which has its ``config.yaml``."""
        return folder_of_checkpoint(self.path)

    @property
    def corpus(self) -> str | None:
        """Name of the corpus of the run; ``None`` if it is not known, or not here."""
        if self.shared is not None:
            return None  # each silo has its part
        file = self.folder / "config.yaml"
        config: Any = OmegaConf.load(file) if file.is_file() else {}
        return (config.get("train_loader") or {}).get("corpus")

    @property
    def variant(self) -> str | None:
        """The variant of a run of DEPT."""
        return self.identity and self.identity["variant"]

    def private(self) -> dict[str, dict[str, Tensor]]:
        """Private parameters of the trained sources, by source and name.

        Raises:
            ConfigError: the files of sources are not beside the checkpoint, or it has none.
        """
        if self.shared is not None:
            return self._shared_values()
        if self.identity is None:
            raise ConfigError(
                f"{self.path} is not of a run of DEPT and has no private embeddings: set "
                f"callbacks.start_from.embedding to random or pretrained"
            )
        files, found, others = SourceFiles(self.path.parent / FOLDER), {}, []
        for source in self.identity["sources"]:
            try:
                state = files.read(source, self.round)
            except _UNREADABLE as error:
                raise ConfigError(
                    f"{files.folder / source} holds a file that cannot be read "
                    f"({str(error).splitlines()[0]}): copy it again"
                ) from error
            here = 0 if state is None else state["last_round"]
            needed = self.source_rounds.get(source, 0)
            if here != needed:
                others.append(
                    f"{files.folder / source} has {source} as of round {here}, and "
                    f"{self.path.name} belongs to its file of round {needed}: copy that file to "
                    f"this folder"
                )
            if state is not None and state["slots"]["private"]:
                found[source] = state["slots"]["private"]
        if not found:
            raise ConfigError(
                f"{files.folder} holds no private embeddings: copy it beside {self.path.name}, "
                f"or choose a run of spec or spec_opt"
            )
        if others:
            raise ConfigError(others[0])
        return found

    def _shared_values(self) -> dict[str, dict[str, Tensor]]:
        if not self.shared:
            raise ConfigError(
                f"{self.path.parent} holds no private embeddings: no silo has set "
                f"algorithms.dept.federation.share_embedding"
            )
        return {source: dict(embedding.values) for source, embedding in self.shared.items()}


def read_trained(path: str | Path) -> Trained:
    """Read a checkpoint of this repository, or any other of llm-foundry, without unpickling code.

    Args:
        path: a file, a folder of checkpoints, or the folder of a server of a federation.

    Raises:
        ConfigError: it is not a checkpoint, is cut short, or holds more than plain data.
    """
    file = find_checkpoint(path)
    if file.name == SERVER_MODEL:
        return _read_server(file)
    if zipfile.is_zipfile(file) and not is_whole(file):
        raise ConfigError(f"{file} was altered since it was written: name another one")
    try:
        know_plain()
        state = torch.load(file, map_location="cpu", weights_only=True)["state"]
        parameters = state["model"]
    except (*_UNREADABLE, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} cannot be read as a checkpoint of Composer ({str(error).splitlines()[0]}): "
            f"name another one"
        ) from error
    built = state.get("integrations", {}).get("huggingface", {})
    files = {name: file["content"] for name, file in (built.get("tokenizer") or {}).items()}
    content = files.get("tokenizer.json")
    timestamp = _counts(state.get("timestamp"))
    dept = dict(state.get("algorithms", ())).get("Dept")
    return Trained(
        path=file,
        parameters=parameters,
        tokens=content and tokens_of(content),
        identity=dept and dept["identity"],
        tokens_trained=dept["totals"]["tokens"] if dept else {},
        round=int(timestamp.get("epoch", 0)),
        source_rounds=dept["last_round"] if dept else {},
        model_config=built.get("model", {}).get("config", {}).get("content", {}),
        tokenizer=files,
    )


def _read_server(file: Path) -> Trained:
    """The global model of a server of a federation, with what its silos have shared."""
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            parameters = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = {name: about[name] for name in ("variant", "rounds", "sources", "tokenizer")}
    except (SafetensorError, OSError, KeyError) as error:
        raise ConfigError(
            f"{file} cannot be read as the model of a federation ({error}): name another one"
        ) from error
    return Trained(
        path=file,
        parameters=parameters,
        tokens=None,
        identity={
            "variant": facts["variant"],
            "sources": json.loads(facts["sources"]),
            "tokenizers": {},
        },
        tokens_trained={},
        round=int(facts["rounds"]),
        source_rounds={},
        model_config={},
        tokenizer={},
        shared=read_all(file.parent),
        tokenizer_hash=facts["tokenizer"],
    )


def tokens_of(tokenizer: Mapping[str, Any]) -> list[str]:
    """The tokens of a parsed ``tokenizer.json``, in the order of their ids."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return sorted(vocabulary, key=vocabulary.__getitem__)
    return [token for token, _ in vocabulary]  # unigram: scores come back rounded from checkpoints


def _counts(timestamp: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Composer's counts of epochs (our rounds) and batches, which may or may not be nested."""
    return (timestamp or {}).get("Timestamp", timestamp) or {}
