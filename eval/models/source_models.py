"""A trained body with the embedding and tokenizer of one source, as a model of transformers.

Export, generation, perplexity and fine-tuning load models here, from a checkpoint or from any
transformers directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dept.checkpoint.reader import Trained, read_trained
from dept.data.corpus import GLOBAL, PreparedCorpus, PreparedSource, read_corpus
from dept.data.tokenizer_files import tokenizer_hash
from dept.errors import ConfigError
from dept.evaluation.models.architecture import assemble, token_matrices
from dept.evaluation.models.trimmed_tokenizer import trim
from dept.method.variants import VARIANTS, Vocabulary

_INPUTS = ["input_ids", "attention_mask"]  # no token types: our models refuse them in `generate`


@dataclass(frozen=True)
class SourceModel:
    """A model with the embedding and tokenizer of one source.

    Attributes:
        tokenizer: tokenizer whose ids are those of the model.
    """

    name: str
    """Name of the source, ``global``, or name of an external model."""

    model: PreTrainedModel
    """In evaluation mode, on the CPU; its ids are those of ``tokenizer``."""

    tokenizer: PreTrainedTokenizerBase

    untrained_ids: tuple[int, ...] = ()
    """Ids that the tokenizer needs although the source lacks them; only with BPE."""

    prepared: PreparedSource | None = None
    """Statistics of the source, in the tokens it was trained on; none for the global embedding."""

    @property
    def parameters(self) -> int:
        """Parameters of body and embedding; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def max_length(self) -> int:
        """Tokens that the model was built for; those of its tokenizer if its config has none."""
        return context_length(self.model) or self.tokenizer.model_max_length


class TrainedRun:
    """The models in a checkpoint: one for each source that has an embedding, and the global one.

    Args:
        checkpoint: a file, or a folder of checkpoints, as ``runs/<run_name>/checkpoints``.
        root: folder that holds ``data/`` and ``tokenizers/``, if not where the run had it.

    Attributes:
        trained: what the checkpoint holds.
        folder: of the run, above that of its checkpoints.
        config: of the run, resolved; empty if there is no ``config.yaml`` beside the checkpoints.

    Raises:
        ConfigError: it is not a checkpoint, or holds no model of transformers.
    """

    def __init__(self, checkpoint: str | Path, root: str | Path | None = None) -> None:
        self.trained: Trained = read_trained(checkpoint)
        self.folder = self.trained.folder
        file = self.folder / "config.yaml"
        content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
        self.config: dict[str, Any] = content
        self._config_file, self._root = file, root
        if self.trained.shared is not None:
            self.trained = replace(self.trained, model_config=self._config_of_server())
        if not self.trained.model_config:
            raise ConfigError(
                f"{self.trained.path} does not say of which architecture it is: name a checkpoint "
                f"of a model that llm-foundry built"
            )

    @cached_property
    def corpus(self) -> PreparedCorpus:
        """The corpus that it was trained on.

        Raises:
            ConfigError: the run's ``config.yaml`` is missing.
            DataError: the corpus is.
        """
        loader = self.config.get("train_loader") or {}
        if "corpus" not in loader:
            raise ConfigError(
                f"{self._config_file} does not exist or names no corpus, and sources have their "
                f"vocabularies from it: copy it to the folder of the run"
            )
        return read_corpus(self._root or loader.get("root", "."), loader["corpus"])

    @cached_property
    def private(self) -> dict[str, dict[str, Tensor]]:
        """Private parameters by source and name, of the sources that were trained."""
        return self.trained.private()

    @property
    def names(self) -> list[str]:
        """Names that :meth:`model` accepts: ``global`` first, if there is a global embedding."""
        identity = self.trained.identity
        if identity is None:
            return [GLOBAL]
        if self.trained.shared is not None:  # the tokenizers of sources are in their silos
            return [GLOBAL]
        if VARIANTS[identity["variant"]].has_global_embedding:
            return [GLOBAL, *identity["sources"]]
        return list(self.private)

    def model(self, name: str | None = None, *, native: bool = True) -> SourceModel:
        """The model of a source, or with the global embedding.

        Args:
            name: one of :attr:`names`; by default ``global``, or the only one.
            native: prefer a model of transformers to llm-foundry's MPT where both can.

        Raises:
            ConfigError: there is no such embedding, or the corpus was prepared with another
                tokenizer than the run.
            DataError: the corpus is missing.
        """
        names = self.names
        if name is None and (names[0] == GLOBAL or len(names) == 1):
            name = names[0]
        if name not in names:
            asked = "one must be chosen" if name is None else f"{name!r} is none of them"
            raise ConfigError(f"{self.trained.path} has embeddings of {', '.join(names)}: {asked}")
        variant = VARIANTS[self.trained.variant] if self.trained.variant else None
        if name == GLOBAL or variant is None:
            model = self._assembled(self.trained.parameters, native)
            return _source_model(GLOBAL, model, self._global_tokenizer())
        prepared = self.prepared(name)
        whole = _read_tokenizer(self.corpus.tokenizers[prepared.tokenizer].path)
        values = dict(self.trained.parameters)
        if not variant.has_global_embedding:
            values |= self.private[name]
        if variant.vocabulary is not Vocabulary.TRIMMED:
            return _source_model(name, self._assembled(values, native), whole, prepared=prepared)
        rows = prepared.local_vocabulary()
        tokenizer, extra = trimmed(whole, rows.tolist())
        unknown = whole.unk_token_id if whole.unk_token_id is not None else whole.eos_token_id
        unknown_row = int((rows < unknown).sum())
        for key in (f"model.{name}" for name in token_matrices(self.trained.model_config)):
            if key not in values:
                continue  # tied to the other one
            held = values[key]
            if variant.has_global_embedding:
                held = held[torch.from_numpy(rows)]
            values[key] = torch.cat([held, held[[unknown_row] * extra]])
        untrained = tuple(range(len(rows), len(rows) + extra))
        return _source_model(name, self._assembled(values, native), tokenizer, untrained, prepared)

    def prepared(self, name: str) -> PreparedSource:
        """A source of a run of DEPT, in the tokens that the run has it in.

        Raises:
            ConfigError: the corpus was prepared with another tokenizer than the run.
            DataError: the corpus is missing.
        """
        assert self.trained.identity is not None
        own = VARIANTS[self.trained.identity["variant"]].vocabulary is Vocabulary.OWN
        prepared = self.corpus.source(name, name if own else GLOBAL)
        if prepared.tokenizer_hash != self.trained.identity["tokenizers"][name]:
            raise ConfigError(
                f"{self.trained.path} was trained on {name} with another tokenizer than corpus "
                f"{self.corpus.name} has: prepare the corpus as it was"
            )
        return prepared

    def _global_tokenizer(self) -> PreTrainedTokenizerBase:
        name = str((self.config.get("tokenizer") or {}).get("name", ""))
        if self.trained.shared is not None:
            return self._tokenizer_of_server(name)
        if self.config.get("train_loader", {}).get("corpus"):
            name = str(self.corpus.tokenizers[GLOBAL].path)
        if not name:
            raise ConfigError(
                f"{self._config_file} does not exist or names no tokenizer: copy it to the folder "
                f"of the run"
            )
        return _read_tokenizer(name)

    def _tokenizer_of_server(self, name: str) -> PreTrainedTokenizerBase:
        path = Path(self._root or ".") / name
        if not path.is_dir() or tokenizer_hash(path) != self.trained.tokenizer_hash:
            raise ConfigError(
                f"{path} is not the global tokenizer of the federation: copy that of a silo there"
            )
        return _read_tokenizer(path)

    def _config_of_server(self) -> dict[str, Any]:
        """The architecture, from the yaml of a federation, whose server builds no model."""
        trained = self.trained
        if not VARIANTS[str(trained.variant)].has_global_embedding:
            raise ConfigError(
                f"{trained.path} is the body alone, since {trained.variant} has no global "
                f"embedding: use a model of a silo, or start from this folder with "
                f"callbacks.start_from"
            )
        from dept.costs.meta_device import build  # llm-foundry takes half a minute

        # The vocabulary is that of the parameters in the end; here it must only be large enough.
        rows = max(len(value) for value in trained.parameters.values())
        return dict(build(self.config["model"], rows).model.config.to_dict())

    def _assembled(self, parameters: Mapping[str, Tensor], native: bool) -> PreTrainedModel:
        values = {key.removeprefix("model."): value for key, value in parameters.items()}
        try:
            return assemble(self.trained.model_config, values, native=native)
        except ConfigError as error:
            raise ConfigError(f"{self.trained.path}: {error}") from error


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model reads at a time, if its config says so."""
    names = ("max_seq_len", "max_position_embeddings", "n_positions")
    return next((n for name in names if (n := getattr(model.config, name, None))), None)


def _source_model(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    untrained: tuple[int, ...] = (),
    prepared: PreparedSource | None = None,
) -> SourceModel:
    made = SourceModel(name, model, tokenizer, untrained, prepared)
    tokenizer.model_max_length = made.max_length  # ours say it has no end
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            if config is not None:  # of a model that cannot generate
                setattr(config, role, getattr(tokenizer, role))
    return made


def _read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(path, model_input_names=_INPUTS, trust_remote_code=False)


def trimmed(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int]
) -> tuple[PreTrainedTokenizerFast, int]:
    """A tokenizer that has only some tokens; and how many more it needs (:func:`trim`).

    Args:
        tokenizer: tokenizer with a backend of ``tokenizers``; it stays as it is.
        token_ids: ids of the tokens to keep.

    Returns:
        The new tokenizer, and the number of further tokens that it needs.

    Raises:
        ValueError: the tokenizer is neither Unigram nor BPE, Unigram lacks its unknown token among
            ``token_ids``, or BPE has a prefix or suffix of subwords.
    """
    content, extra = trim(json.loads(tokenizer.backend_tokenizer.to_str()), token_ids)
    kept = {token["content"] for token in content["added_tokens"]}
    roles: dict[str, Any] = {}
    for role, tokens in tokenizer.special_tokens_map.items():
        if isinstance(tokens, str):
            roles |= {role: tokens} if tokens in kept else {}
        else:  # additional_special_tokens
            roles[role] = [token for token in tokens if token in kept]
    return (
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(content)),
            model_max_length=tokenizer.model_max_length,
            model_input_names=_INPUTS,
            clean_up_tokenization_spaces=False,
            **roles,
        ),
        len(extra),
    )


def load(
    path: str | Path, source: str | None = None, root: str | Path | None = None
) -> SourceModel:
    """A model from a checkpoint of ours, a transformers directory, or a name on the hub.

    Args:
        path: of either kind.
        source: which embedding of a checkpoint.
        root: of the corpus of a checkpoint.

    Raises:
        ConfigError: there is nothing, or no such embedding; an external model has none to choose.
    """
    if is_checkpoint(path):
        return TrainedRun(path, root).model(source)
    if source is not None:
        raise ConfigError(f"{path} is no checkpoint, and has one embedding: leave --source out")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no checkpoint and no model of transformers that can be read "
            f"({str(error).splitlines()[0]})"
        ) from error
    return SourceModel(Path(path).name, model, tokenizer)


def is_checkpoint(path: str | Path) -> bool:
    """Whether it is a checkpoint of ours, or a folder of them; otherwise transformers loads it."""
    path = Path(path)
    return path.is_file() or (path.is_dir() and not (path / "config.json").is_file())
