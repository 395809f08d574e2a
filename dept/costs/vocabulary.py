"""Sizes of vocabularies: measured if the corpus is prepared, otherwise as stated in the yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dept.config.options import CorpusOptions
from dept.data.corpus import GLOBAL, read_corpus
from dept.errors import ConfigError
from dept.method.variants import Vocabulary


@dataclass(frozen=True)
class VocabularySizes:
    """Sizes of the vocabularies of an experiment.

    Attributes:
        everyone: ``|V|``, rows of a model for the global tokenizer.
        held: rows of the model that a worker trains: the mean of ``|V_k|`` over sources.
        origin: ``measured`` in the prepared corpus, or ``stated`` in the yaml.
    """

    everyone: int
    held: float
    origin: str


def vocabulary_sizes(
    config: Mapping[str, Any],
    kind: Vocabulary,
    loader: CorpusOptions | None,
    *,
    measured: bool = True,
) -> VocabularySizes:
    """The vocabularies of a yaml.

    Args:
        config: a resolved yaml, as plain containers. ``variables.vocabulary`` has ``global``,
            ``trimmed`` and ``own`` (means over sources), for machines without the corpus;
            ``vocab_size`` of the model overrides the global one, as in training.
        kind: which tokens a worker's embedding has rows for.
        loader: the loader over a prepared corpus, if the yaml has one.
        measured: use the sizes of the corpus if it is prepared here.

    Raises:
        ConfigError: a size is neither stated nor measurable.
        DataError: the corpus is half-written.
    """
    everyone, held, origin = _stated(config)
    if measured and loader is not None:
        folder = Path(loader.root) / "data" / loader.corpus
        if (folder / "corpus.json").is_file():
            everyone, held = _measured(loader, kind)
            origin = "measured"
    model = config.get("model") or {}
    built = (model.get("config_overrides") or {}).get("vocab_size", model.get("vocab_size"))
    everyone = built or everyone
    held[Vocabulary.GLOBAL] = everyone
    if everyone is None or held.get(kind) is None:
        size = "global" if everyone is None else kind.name.lower()
        corpus = f"prepare corpus {loader.corpus}" if loader else "set model.vocab_size"
        raise ConfigError(
            f"the size of the vocabulary is unknown: {corpus}, or add variables.vocabulary.{size}"
        )
    return VocabularySizes(everyone, held[kind], origin)


def _stated(config: Mapping[str, Any]) -> tuple[int | None, dict[Vocabulary, float], str]:
    stated = (config.get("variables") or {}).get("vocabulary") or {}
    held = {kind: stated.get(kind.name.lower()) for kind in Vocabulary}
    return held[Vocabulary.GLOBAL], held, "stated"


def _measured(loader: CorpusOptions, kind: Vocabulary) -> tuple[int, dict[Vocabulary, float]]:
    corpus = read_corpus(loader.root, loader.corpus)
    names = corpus.sources if loader.sources is None else loader.sources
    rows = {
        Vocabulary.GLOBAL: lambda name: corpus.tokenizers[GLOBAL].vocab_size,
        Vocabulary.TRIMMED: lambda name: corpus.source(name).local_vocab_size,
        Vocabulary.OWN: lambda name: corpus.source(name, name).vocab_size,
    }[kind]
    everyone = corpus.tokenizers[GLOBAL].vocab_size
    return everyone, {kind: sum(rows(name) for name in names) / len(names)}
