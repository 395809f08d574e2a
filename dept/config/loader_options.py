"""``train_loader`` over a prepared corpus, and ``eval_loader`` over one of its sources."""

from __future__ import annotations

from dataclasses import dataclass

from dept.config.schema import NULL, integer, number
from dept.data.corpus import GLOBAL
from dept.errors import ConfigError, shown


@dataclass(frozen=True)
class CorpusOptions:
    """The options of every ``train_loader`` over a prepared corpus."""

    corpus: str
    """Name of a prepared corpus: ``<root>/data/<corpus>/`` must hold it, or ``remote``."""

    root: str = "."
    """Folder that holds ``data/`` and ``tokenizers/``; with ``remote``, where they are cached."""

    remote: str | None = None
    """Folder or address (``s3://bucket/folder``, ``gs://...``) that holds ``data/<corpus>/`` and
    ``tokenizers/<corpus>/`` as they are below ``root``. Files that are missing below ``root`` are
    fetched from it; shards only when a process reads them."""

    cache_limit: int | str | None = None
    """The most bytes of training shards that a worker keeps below ``root``: a number, or a string
    like ``500mb`` or ``20gb``. It removes the least recently used ones, even if they were there
    before the run. Each process counts separately: a machine with four of them may hold four times
    as much. Validation shards are not counted and not removed. ``null`` keeps all."""

    sources: list[str] | None = None
    """Names of the sources to train; by default all of the corpus, in its order. Held-out sources
    may be named too, to adapt a model to them."""

    seed: int = 17
    """Seed of the order of samples; ``${seed}`` in the yamls of this repository."""

    stage: str = "pretraining"
    """Names the stream of random numbers that the order comes from, beside ``seed``. With
    ``callbacks.start_from`` it is ``start_from`` by default, so that a body that is trained further
    does not read the first batches of its pre-training again."""

    block_shards: int = 16
    """How many shards are mixed by the shuffle; this many of a source are needed at a time."""

    def __post_init__(self) -> None:
        integer(1).check("train_loader.block_shards", self.block_shards)
        integer().check("train_loader.seed", self.seed)
        if self.sources is not None and len(set(self.sources)) != len(self.sources):
            raise ConfigError(f"train_loader.sources holds a name twice: {shown(self.sources)}")
        if self.sources is not None and not self.sources:
            raise ConfigError("train_loader.sources is empty: name some, or leave it out for all")
        if self.cache_limit is None:
            return
        if self.remote is None:
            raise ConfigError(
                "train_loader.cache_limit is for shards of train_loader.remote, which is not set: "
                "set it, or leave cache_limit out"
            )
        if isinstance(self.cache_limit, int):
            integer(1).check("train_loader.cache_limit", self.cache_limit)

    @property
    def cache_bytes(self) -> int | None:
        """``cache_limit`` in bytes. A string is parsed by Streaming, which is slow to import.

        Raises:
            ConfigError: the string is not a size.
        """
        if not isinstance(self.cache_limit, str):
            return self.cache_limit
        from streaming.base.util import bytes_to_int

        try:
            return bytes_to_int(self.cache_limit)
        except ValueError:
            raise ConfigError(
                f"train_loader.cache_limit is {shown(self.cache_limit)}: set it to a number of "
                "bytes, or a string like 500mb or 20gb"
            ) from None


@dataclass(frozen=True)
class SourcesOptions(CorpusOptions):
    """``train_loader`` with ``name: sources``, the loader of DEPT."""


@dataclass(frozen=True)
class MixtureOptions(CorpusOptions):
    """``train_loader`` with ``name: mixture``: all sources mixed in every batch (STD)."""

    tau: float = 0.0
    """A source is drawn with ``p_k ~ tokens_k ** tau``: 0 is uniform, 1 proportional to size."""

    epoch_batches: int | None = None
    """Batches of an epoch; ``local_steps`` in ``std.yaml``, so that an epoch has as many steps as a
    round. By default an epoch is all samples of the sources."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number(0, 10).check("train_loader.tau", self.tau)
        (integer(1) | NULL).check("train_loader.epoch_batches", self.epoch_batches)


@dataclass(frozen=True)
class ValidationOptions:
    """An entry of ``eval_loader`` with ``name: validation``: the validation split of a source. A
    yaml without ``eval_loader`` has one for each source."""

    corpus: str
    """Name of a prepared corpus."""

    source: str
    """Name of one of its sources, held-out ones included."""

    written_with: str = GLOBAL
    """``global``, or the source's name for its own tokenizer."""

    held_out: bool = False
    """Whether the run does not train on it: it is then left out of averages."""

    root: str = "."
    """Folder that holds ``data/`` and ``tokenizers/``."""

    remote: str | None = None
    """Folder or address to fetch missing shards from."""
