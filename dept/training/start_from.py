"""Start from the body that another run has trained, with an embedding made for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.interfaces import CallbackWithConfig
from torch import Tensor, nn

from dept.checkpoint.reader import Trained, read_trained, tokens_of
from dept.config.options import StartFromOptions, parse
from dept.data.corpus import GLOBAL, PreparedCorpus, read_corpus
from dept.data.tokenizer_files import tokenizer_hash
from dept.embeddings.combinations import COMBINATIONS
from dept.embeddings.merged import SourceEmbedding
from dept.embeddings.token_strings import strings_of
from dept.errors import ConfigError
from dept.log import log
from dept.method.live_model import parameter_roles, random_embedding, vocabulary_modules
from dept.method.streams import seed_of
from dept.method.variants import VARIANTS, Role, Vocabulary
from dept.training.algorithm import dept_of


class StartFrom(CallbackWithConfig):
    """Loads the body of a checkpoint into the built model, before its own checkpoint is loaded.

    With a mixture, the model has one embedding. With ``algorithms.dept`` every source of the run is
    new for the body, and has its own embedding.

    Args:
        train_config: the resolved config, given by llm-foundry.
        options: see :class:`dept.config.options.StartFromOptions`.
    """

    def __init__(self, train_config: dict[str, Any], **options: Any) -> None:
        self.options = parse(StartFromOptions, "callbacks.start_from", options)
        loader = train_config["train_loader"]
        self.root = Path(loader.get("root", "."))
        self.corpus = read_corpus(self.root, loader["corpus"])
        self.trained: Trained

    def init(self, state: State, logger: Logger) -> None:
        self.trained = read_trained(self.options.checkpoint)
        values = body(self.trained, state.model)
        if dept_of(state) is not None:
            pass  # each source has its own embedding: see before_load
        elif self.options.embedding == "pretrained":
            values |= pretrained(self.trained, state.model, self.corpus)
        else:
            roles = parameter_roles(state.model)
            rows = len(vocabulary_modules(state.model)[0].weight)
            drawn = random_embedding(
                state.model,
                [name for name, role in roles.items() if role is not Role.BODY],
                rows=rows,
                seed=seed_of(state.rank_zero_seed, *self._stream),
            )
            values |= drawn
            if self.options.embedding != "random":
                otherwise = {name: value.cpu() for name, value in drawn.items()}
                values |= self._merged(roles, self._strings(GLOBAL, rows), otherwise)
        for name, value in values.items():
            state.model.get_parameter(name).data.copy_(value)

    def before_load(self, state: State, logger: Logger) -> None:
        """Make embeddings of new sources, once the algorithm knows the sources of this worker."""
        dept = dept_of(state)
        if dept is None:
            return
        dept.run.slots.stream = self._stream
        if self.options.embedding == "random":
            return
        for source in dept.run.schedule.sources_of(dept.workers.place.worker):
            prepared = dept.run.loader.prepared[source]
            strings = self._strings(prepared.tokenizer, prepared.vocab_size)
            held = [strings[i] for i in dept.run.slots.vocabularies[source].token_ids.tolist()]
            private = dept.run.slots.private_of(source)
            private |= self._merged(dept.run.slots.live.roles, held, private)

    @property
    def _stream(self) -> tuple[str, int]:
        """The stream of the random embedding, different from all streams of pre-training."""
        return "start_from", self.options.embedding_seed

    def _strings(self, tokenizer: str, rows: int) -> list[str]:
        return strings_of(self.corpus.tokenizers[tokenizer].path, rows)

    def _merged(
        self, roles: Mapping[str, Role], strings: list[str], otherwise: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """An embedding for the tokens ``strings``, in this order, merged from the private ones."""
        trained = self.trained
        if trained.shared and self.options.weighting == "counts":
            raise ConfigError(
                f"{trained.path.parent} has embeddings without counts of tokens, which silos keep: "
                f"set callbacks.start_from.weighting to uniform"
            )
        corpus = read_corpus(self.root, trained.corpus or self.corpus.name)
        private, values = trained.private(), {}
        merge = COMBINATIONS[self.options.combination]
        for name, role in roles.items():
            if role is Role.POSITIONS:
                values[name] = torch.stack([of[name] for of in private.values()]).mean(dim=0)
            elif role is Role.TOKENS:
                sources = source_embeddings(trained, private, name, corpus)
                merged = merge(sources, strings, otherwise[name], weighting=self.options.weighting)
                values[name] = merged.vectors
                if dist.get_global_rank() == 0:
                    rows = ", ".join(f"{n} {origin}" for origin, n in merged.summary().items())
                    log.info(f"{name} from {len(sources)} sources: rows {rows}")
        return values


def body(trained: Trained, model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the body, by name.

    Args:
        trained: the checkpoint.
        model: the model to load them into.

    Raises:
        ConfigError: the model has another body than the checkpoint.
    """
    values = {}
    for name, role in parameter_roles(model).items():
        if role is not Role.BODY:
            continue
        here = tuple(model.get_parameter(name).shape)
        there = tuple(trained.parameters[name].shape) if name in trained.parameters else None
        if here != there:
            raise ConfigError(
                f"{name} has shape {list(here)} in this model and "
                f"{'is missing' if there is None else f'shape {list(there)}'} in {trained.path}: "
                f"set `model` to that of the checkpoint's run"
            )
        values[name] = trained.parameters[name]
    return values


def pretrained(trained: Trained, model: nn.Module, corpus: PreparedCorpus) -> dict[str, Tensor]:
    """The global embedding that was trained with the body (of STD, GLOB and TRIM), by name.

    Args:
        trained: the checkpoint.
        model: the model to load it into.
        corpus: the corpus of this run, whose tokenizer must be that of the checkpoint.

    Raises:
        ConfigError: there is no global embedding, or it is of another tokenizer.
    """
    path = corpus.tokenizers[GLOBAL].path / "tokenizer.json"
    if trained.variant is not None and not VARIANTS[trained.variant].has_global_embedding:
        raise ConfigError(
            f"{trained.path} is of {trained.variant}, which has no global embedding: set "
            f"callbacks.start_from.embedding to random or merged"
        )
    is_same = (
        tokenizer_hash(path.parent) == trained.tokenizer_hash
        if trained.shared is not None
        else tokens_of(json.loads(path.read_text())) == trained.tokens
    )
    if not is_same:
        raise ConfigError(
            f"{trained.path} was trained with another tokenizer than {path.parent}: prepare the "
            f"corpus with that one, or set callbacks.start_from.embedding to random"
        )
    names = [name for name, role in parameter_roles(model).items() if role is not Role.BODY]
    return {name: trained.parameters[name] for name in names}


def source_embeddings(
    trained: Trained, private: dict[str, dict[str, Tensor]], name: str, corpus: PreparedCorpus
) -> dict[str, SourceEmbedding]:
    """A private token matrix of each source, with the strings of its rows.

    Args:
        trained: the checkpoint.
        private: its private parameters, by source and name.
        name: name of the matrix.
        corpus: the corpus of the sources.

    Raises:
        ConfigError: the corpus was prepared with other tokenizers than the run.
    """
    if trained.shared is not None:
        return {
            source: SourceEmbedding(
                tokens=shared.tokens,
                vectors=shared.values[name],
                counts=torch.ones(len(shared.tokens)),
            )
            for source, shared in trained.shared.items()
        }
    own = VARIANTS[trained.variant].vocabulary is Vocabulary.OWN
    result = {}
    for source, values in private.items():
        prepared = corpus.source(source, source if own else GLOBAL)
        if prepared.tokenizer_hash != trained.identity["tokenizers"][source]:
            raise ConfigError(
                f"{trained.path} was trained on {source} with another tokenizer than corpus "
                f"{corpus.name} has: prepare the corpus as it was"
            )
        rows = range(prepared.vocab_size) if own else prepared.local_vocabulary()
        strings = strings_of(corpus.tokenizers[prepared.tokenizer].path, prepared.vocab_size)
        counts = torch.from_numpy(prepared.counts()).double()
        # Counts of tokens trained on, not of the corpus: sources of all sizes train equally long.
        counts *= trained.tokens_trained.get(source, 0) / counts.sum()
        result[source] = SourceEmbedding(
            tokens=tuple(strings[i] for i in rows),
            vectors=values[name],
            counts=counts[torch.as_tensor(rows)],
        )
    return result
