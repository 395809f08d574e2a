"""The yaml keys that are DEPT's own: each with its meaning, its default and its check."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from dept.errors import ConfigError, is_number, shown
from dept.method.sampling import RULES, UNIFORM
from dept.method.variants import VARIANTS, Variant

T = TypeVar("T")


@dataclass(frozen=True)
class DeptOptions:
    """``algorithms.dept``."""

    variant: str
    """``glob``, ``trim``, ``spec`` or ``spec_opt``: a row of ``dept/method/variants.py``."""

    local_steps: int
    """``N_local``: steps of the inner optimizer in a slot, 500 in the paper."""

    sources_per_round: int | None = None
    """``|S_t|``: how many sources are drawn each round; all of them by default."""

    sampling: str = UNIFORM
    """How they are drawn. ``uniform``: every subset of that size is equally likely, and the same
    for any number of workers; its state moves with a source to the worker that trains it, through
    ``checkpoints/sources`` of the run, which all machines must share. ``stratified``: as many of
    each group of neighbours, so that a source stays with one worker, for machines that share no
    folder; not every subset occurs, and for some numbers of workers chances differ between sources.
    """

    outer_optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    """``{name: fedavg}``, ``nesterov``, ``fedadam`` (with ``lr``, ``betas``, ``tau``), or an
    optimizer of torch in lower case, with its options. TRIM, which averages by token row, refuses
    one whose state is not by element (``adafactor``). See ``dept/method/outer_optimizer.py``."""

    inner_state: str = "reset"
    """What becomes of the inner optimizer's state of shared parameters between the slots of a
    source: ``reset`` or ``keep``. Private embeddings always keep theirs."""

    weighting: str = "uniform"
    """Weight of a source in the average: ``uniform``, or ``tokens`` of its training split."""

    ranks_per_worker: int = 1
    """Processes that train a source together, each on a part of its batch, averaging gradients at
    every step (DDP). A job of ``P`` processes has ``P / ranks_per_worker`` workers, whose number
    must divide ``sources_per_round``."""

    worker_timeout: float = 3600.0
    """Seconds that a worker waits for the slowest one where all meet: at the start and at the
    outer step. Workers that die are noticed at once."""

    icl_source: str | None = None
    """The source whose embedding reads ``icl_tasks``, in a variant that has no global one."""

    upload_sources: bool = True
    """Whether a remote ``save_folder`` (``s3://...``) gets the files of sources too: private
    embeddings, the state of inner optimizers, positions in the data. ``false`` keeps them in
    ``runs/<run_name>/checkpoints/sources`` of the machine that trains the source, and sends none of
    them; a run can then go on only where they are."""

    faults: str = "leave_out"
    """What becomes of a slot that came to a NaN or an infinity, or to an update that is an outlier:
    ``leave_out`` of the average, which is then that of the other sources of the round, with the
    source's own embedding and inner state as they were before the slot; or ``stop`` the run."""

    outlier_multiple: float | None = 10.0
    """An update is an outlier if its norm, divided by the sum of its steps' learning rates, is more
    than so many times the median of that in the last ten rounds of the source. Those of ordinary
    runs of this repository are at most 2.1 times. ``null``: none is."""

    def __post_init__(self) -> None:
        where = "algorithms.dept"
        _one_of(f"{where}.variant", self.variant, tuple(VARIANTS))
        _positive(f"{where}.local_steps", self.local_steps)
        if self.sources_per_round is not None:
            _positive(f"{where}.sources_per_round", self.sources_per_round)
        _one_of(f"{where}.sampling", self.sampling, RULES)
        _positive(f"{where}.ranks_per_worker", self.ranks_per_worker)
        if not (is_number(self.worker_timeout) and self.worker_timeout > 0):
            raise ConfigError(
                f"{where}.worker_timeout is {shown(self.worker_timeout)}: set it to seconds above 0"
            )
        outer = self.outer_optimizer
        if not isinstance(outer, Mapping) or not isinstance(outer.get("name"), str):
            raise ConfigError(
                f"{where}.outer_optimizer is {shown(self.outer_optimizer)}: write {{name: fedavg}} "
                "or another name, with its options beside it"
            )
        _one_of(f"{where}.inner_state", self.inner_state, ("reset", "keep"))
        _one_of(f"{where}.weighting", self.weighting, ("uniform", "tokens"))
        _one_of(f"{where}.upload_sources", self.upload_sources, (True, False))
        _one_of(f"{where}.faults", self.faults, ("leave_out", "stop"))
        limit = self.outlier_multiple
        if limit is not None and not (is_number(limit) and limit > 1):
            raise ConfigError(
                f"{where}.outlier_multiple is {shown(limit)}: set it to a number above 1, or null"
            )

    @property
    def sharing(self) -> Variant:
        """The row of the table of variants."""
        return VARIANTS[self.variant]


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
        _positive("train_loader.block_shards", self.block_shards)
        if self.sources is not None and len(set(self.sources)) != len(self.sources):
            raise ConfigError(f"train_loader.sources holds a name twice: {shown(self.sources)}")
        if self.sources is not None and not self.sources:
            raise ConfigError("train_loader.sources is empty: name some, or leave it out for all")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"train_loader.seed is {self.seed}: set it from 0 to {2**31 - 1}")
        if self.cache_limit is None:
            return
        if self.remote is None:
            raise ConfigError(
                "train_loader.cache_limit is for shards of train_loader.remote, which is not set: "
                "set it, or leave cache_limit out"
            )
        if isinstance(self.cache_limit, int):
            _positive("train_loader.cache_limit", self.cache_limit)

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
        if not 0 <= self.tau <= 10:
            raise ConfigError(
                f"train_loader.tau is {shown(self.tau)}: set it to 0 or more, up to 10"
            )
        if self.epoch_batches is not None:
            _positive("train_loader.epoch_batches", self.epoch_batches)


@dataclass(frozen=True)
class StartFromOptions:
    """``callbacks.start_from``: a body that another run has trained, for continued pre-training on
    a mixture, or for new sources of SPEC and SPEC-OPT."""

    checkpoint: str
    """A Composer checkpoint, or a folder of them, of which the newest is taken:
    ``runs/<run_name>/checkpoints``."""

    embedding: str = "random"
    """``random``: drawn from a stream of its own, the same for every method; ``pretrained``: the
    global one of the checkpoint (STD, GLOB, TRIM); ``merged``: made from the private ones of its
    sources (SPEC, SPEC-OPT), by token string (``embeddings/merged.py``); ``mapping``: the same, but
    as a file says for the tokens that are in it. A new source has no pretrained one."""

    embedding_seed: int = 0
    """Names a draw of the random embedding: 0, 1, 2, ... are independent of one another, and of all
    that pre-training drew."""

    mapping: str | None = None
    """That file: ``{token: {source: {token of the source: weight}}}`` in JSON, as
    trans-tokenization yields (``dept/embeddings/mapping.py``)."""

    weighting: str = "counts"
    """Of sources that hold the same token: by ``counts`` of it, or ``uniform``."""

    def __post_init__(self) -> None:
        where = "callbacks.start_from"
        kinds = ("random", "pretrained", "merged", "mapping")
        _one_of(f"{where}.embedding", self.embedding, kinds)
        _one_of(f"{where}.weighting", self.weighting, ("counts", "uniform"))
        if not 0 <= self.embedding_seed < 2**31:
            raise ConfigError(
                f"{where}.embedding_seed is {self.embedding_seed}: set it from 0 to {2**31 - 1}"
            )
        if (self.embedding == "mapping") != (self.mapping is not None):
            raise ConfigError(
                f"{where}.mapping is {shown(self.mapping)} and {where}.embedding "
                f"{self.embedding}: embedding: mapping needs a file, and no other does"
            )


def parse(cls: type[T], section: str, values: Any) -> T:
    """The options of ``section`` of the yaml.

    Raises:
        ConfigError: a key is unknown or missing, or a value cannot be.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {shown(values)}: write its options below it")
    known = [option.name for option in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it knows {', '.join(known)}"
            raise ConfigError(f"{section} has no option {shown(key)}: {hint}")
    for option in fields(cls):  # type: ignore[arg-type]
        if option.name in values:
            _of_type(f"{section}.{option.name}", values[option.name], str(option.type))
        elif option.default is MISSING and option.default_factory is MISSING:
            raise ConfigError(f"{section} lacks {option.name}: add it to the yaml")
    return cls(**values)


def options_of(config: Mapping[str, Any]) -> tuple[DeptOptions | None, CorpusOptions | None]:
    """The options of ``algorithms.dept`` and of a loader over sources; ``None`` if there is none.

    Raises:
        ConfigError: an option is unknown or has no such value.
    """
    algorithms = config.get("algorithms") or {}
    loader = config.get("train_loader") or {}
    for section, given in (("algorithms", algorithms), ("train_loader", loader)):
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section} is {shown(given)}: write its options below it")
    dept = (
        parse(DeptOptions, "algorithms.dept", algorithms["dept"]) if "dept" in algorithms else None
    )
    loader = dict(loader)
    kinds = {"sources": SourcesOptions, "mixture": MixtureOptions}
    kind = kinds.get(str(loader.pop("name", "")))
    sources = parse(kind, "train_loader", loader) if kind else None
    if (dept is not None) != (kind is SourcesOptions):
        raise ConfigError(
            "algorithms.dept and train_loader.name: sources need each other: give both, or neither"
        )
    return dept, sources


# What annotations of options mean in a yaml.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: is_number(v)),
    "str": ("a text", lambda v: isinstance(v, str) and v.strip() != "" and "\0" not in v),
    "list[str]": (
        "a list of names",
        lambda v: isinstance(v, (list, tuple)) and all(isinstance(n, str) and n for n in v),
    ),
    "None": ("null", lambda v: v is None),
}


def _of_type(option: str, value: Any, annotation: str) -> None:
    kinds = annotation.split(" | ")
    if not all(kind in _TYPES for kind in kinds):
        return  # for the class to check
    if not any(_TYPES[kind][1](value) for kind in kinds):
        expected = " or ".join(_TYPES[kind][0] for kind in kinds)
        raise ConfigError(f"{option} is {shown(value)}: set it to {expected}")


def _one_of(option: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {shown(value)}: set it to one of {', '.join(choices)}")


def _positive(option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ConfigError(f"{option} is {shown(value)}: set it to a whole number of 1 or more")
