"""``train_loader`` over a prepared corpus, and ``eval_loader`` over one of its sources."""

from __future__ import annotations

from dataclasses import dataclass

from dept.config.schema import NULL, integer, number
from dept.data.corpus import GLOBAL
from dept.errors import ConfigError, shown


@dataclass(frozen=True)
class CorpusOptions:
    """What every ``train_loader`` over a prepared corpus knows."""

    corpus: str
    """Name of a prepared corpus: ``<root>/data/<corpus>/`` must hold it, or ``remote``."""

    root: str = "."
    """Folder that holds ``data/`` and ``tokenizers/``; with ``remote``, where they are cached."""

    remote: str | None = None
    """Folder or address (``s3://bucket/folder``, ``gs://...``) that holds ``data/<corpus>/`` and
    ``tokenizers/<corpus>/`` as they are below ``root``. What is missing there is fetched from it,
    shards only when and where they are read."""

    cache_limit: int | str | None = None
    """The most bytes of training shards that a worker keeps below ``root``: a number, or a string
    like ``500mb`` or ``20gb``. It removes those needed longest ago, even if they were there before
    the run. Processes count for themselves: a machine with four of them may hold four times as
    much. Validation shards are not counted, and stay. ``null`` keeps all."""

    sources: list[str] | None = None
    """Names of the sources to train; all of the corpus, in its order, by default. Held-out ones
    may be named too, to adapt a model to them."""

    seed: int = 17
    """Seed of the order of samples; ``${seed}`` in the yamls of this repository."""

    stage: str = "pretraining"
    """Names the stream of random numbers that the order comes from, beside ``seed``. With
    ``callbacks.start_from`` it is ``start_from`` by default, so that a body that is trained further
    does not read the first batches of its pre-training again."""

    block_shards: int = 16
    """Shards whose samples are mixed: as many of a source are needed at the same time."""

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
        """``cache_limit`` in bytes. A string costs the import of Streaming, which reads it.

        Raises:
            ConfigError: the string is no size.
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
    """Batches of an epoch; ``local_steps`` in ``std.yaml``, so that an epoch is as many steps as a
    round. All samples of the sources by default."""

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
    """Where to fetch the shards from that are not there."""
