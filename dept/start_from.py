"""Going on from what another run has learned: its body, and an embedding made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger
from llmfoundry.interfaces import CallbackWithConfig
from torch import Tensor

from dept.corpus import GLOBAL, PreparedCorpus, read_corpus
from dept.options import ConfigError, StartFromOptions, parse
from dept.swap import parameter_roles
from dept.trained import Trained, read_trained, tokens_of
from dept.variants import Role


class StartFrom(CallbackWithConfig):
    """Puts the body of a checkpoint into the model as built, before its own checkpoint is loaded.

    Args:
        train_config: the resolved config, given by llm-foundry.
        options: see :class:`dept.options.StartFromOptions`.
    """

    def __init__(self, train_config: dict[str, Any], **options: Any) -> None:
        self.options = parse(StartFromOptions, "callbacks.start_from", options)
        loader = train_config.get("train_loader") or {}
        self.corpus = read_corpus(Path(loader.get("root", ".")), loader["corpus"])

    def init(self, state: State, logger: Logger) -> None:
        trained = read_trained(self.options.checkpoint)
        values = body(trained, state.model)
        values |= embedding(trained, state.model, self.options, self.corpus)
        for name, value in values.items():
            parameter = state.model.get_parameter(name)
            parameter.data.copy_(value)


def body(trained: Trained, model) -> dict[str, Tensor]:
    """The parameters of the body, by name.

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
                f"let `model` be that of the checkpoint's run"
            )
        values[name] = trained.parameters[name]
    return values


def embedding(
    trained: Trained, model, options: StartFromOptions, corpus: PreparedCorpus
) -> dict[str, Tensor]:
    """Token matrices and positions to start with, by name; none where the model's own do.

    Raises:
        ConfigError: the checkpoint has no such embedding, or of another tokenizer.
    """
    if options.embedding == "random":
        return {}
    names = [n for n, role in parameter_roles(model).items() if role is not Role.BODY]
    if options.embedding == "pretrained":
        return pretrained(trained, names, corpus)
    raise NotImplementedError


def pretrained(trained: Trained, names: list[str], corpus: PreparedCorpus) -> dict[str, Tensor]:
    """The global embedding that was trained with the body (of STD, GLOB and TRIM)."""
    path = corpus.tokenizers[GLOBAL].path / "tokenizer.json"
    if trained.variant in {"spec", "spec_opt"}:
        raise ConfigError(
            f"{trained.path} is of {trained.variant}, which has no global embedding: set "
            f"callbacks.start_from.embedding to random or merged"
        )
    if tokens_of(json.loads(path.read_text())) != trained.tokens:
        raise ConfigError(
            f"{trained.path} was trained with another tokenizer than {path.parent}: prepare the "
            f"corpus with that one, or set callbacks.start_from.embedding to random"
        )
    return {name: trained.parameters[name] for name in names}
