"""The yaml keys of DEPT: each with its meaning, its default and its check.

The keys of loaders are in ``loader_options.py``, those of ``callbacks.start_from`` in
``start_from_options.py``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from dept.config.federation_options import WHERE, FederationOptions
from dept.config.loader_options import (
    CorpusOptions,
    MixtureOptions,
    SourcesOptions,
    ValidationOptions,
)
from dept.config.schema import (
    FLAG,
    MAPPING,
    NULL,
    TEXT,
    Kind,
    integer,
    list_of,
    number,
    one_of,
    refuse_unknown,
)
from dept.config.start_from_options import StartFromOptions
from dept.errors import ConfigError, is_number, shown
from dept.method.moment_schedule import INTERVAL
from dept.method.sampling import RULES, UNIFORM
from dept.method.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from dept.method.aggregation import Aggregation

__all__ = [
    "CorpusOptions",
    "DeptOptions",
    "FederationOptions",
    "MixtureOptions",
    "SourcesOptions",
    "StartFromOptions",
    "ValidationOptions",
    "options_of",
    "parse",
]

T = TypeVar("T")

SECONDS = Kind("seconds above 0", lambda v: is_number(v) and v > 0)
OUTER = Kind(
    "{name: fedavg} or another name, with its options beside it",
    lambda v: isinstance(v, Mapping) and isinstance(v.get("name"), str),
)
INTERVALS = Kind(
    f"rounds of 1 or more for some of {', '.join(INTERVAL)}",
    lambda v: (
        isinstance(v, Mapping)
        and all(key in INTERVAL and integer(1).fits(rounds) for key, rounds in v.items())
    ),
)
CODED = Kind(
    "{name: none} or another name, with its options beside it",
    lambda v: isinstance(v, Mapping) and isinstance(v.get("name"), str),
)
RULE = Kind(
    "{name: mean} or another name, with its options beside it",
    lambda v: isinstance(v, Mapping) and isinstance(v.get("name"), str),
)


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
    """How sources are drawn. ``uniform``: every subset of that size is equally likely, and the same
    for any number of workers. The state of a source moves to the worker that trains it, through
    ``checkpoints/sources`` of the run, which all machines must share. ``stratified``: equally many
    from each group of neighbours, so that a source stays on one worker, for machines that share no
    folder. Then not every subset occurs, and for some numbers of workers probabilities differ
    between sources."""

    outer_optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    """``{name: fedavg}``, ``nesterov``, ``fedadam`` (with ``lr``, ``betas``, ``tau``), an optimizer
    of torch in lower case, or any other of llm-foundry's registry (``decoupled_lionw``, or your own
    from ``code_paths`` or an entry point ``llmfoundry_optimizers``), with its options. TRIM
    averages by token row and refuses an optimizer whose state is not by element (``adafactor``).
    See ``dept/method/outer_optimizer.py``."""

    compression: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    """How updates and their mean are coded: ``{name: none}``, ``bf16``, ``int8`` and ``int4``
    (``block``: numbers that share a step, 512 and 1024), ``topk`` (``density``: the fraction of
    each ``block`` that is kept, 1/64 of 4096, in ``bits``, 2). With ``error_feedback`` (true) the
    coding error of earlier updates, times ``decay`` (1, topk 0.95), is added to the next one. See
    ``docs/compression.md``."""

    average: Mapping[str, Any] = field(default_factory=lambda: {"name": "mean"})
    """How the updates of a round are combined: ``{name: mean}``; ``trimmed_mean`` (``trim``: values
    dropped at each end of a coordinate, 1); ``median``; ``krum`` (``faulty``: sources that may be
    faulty, 1) or ``multi_krum`` (``faulty``, and ``selected``: updates to average, by default all
    but as many). All rules but the mean need every update on the first worker. See
    ``docs/robust.md``."""

    clip_update_norm: float | None = None
    """The largest L2 norm of a source's update of shared parameters, of which larger ones are
    scaled down. ``null``: none is."""

    privacy: Mapping[str, Any] | None = None
    """Central differential privacy of the mean: ``{noise_multiplier: z, delta: 1.0e-5}`` adds noise
    of standard deviation ``z * clip_update_norm`` to the sum of a round. ``null``: none. See
    ``docs/robust.md``."""

    inner_state: str = "reset"
    """The inner optimizer's state of shared parameters between the slots of a source: ``reset``,
    ``keep`` (kept by the source), or ``average`` (kept, and its moments averaged over the sources
    every few rounds: ``docs/inner_state.md``). The state of private embeddings is always kept."""

    inner_state_interval: Mapping[str, Any] | None = None
    """With ``average``: after how many rounds the first and the second moment are averaged,
    ``{exp_avg: 3, exp_avg_sq: 6}`` by default. One of the two may be left out."""

    weighting: str = "uniform"
    """Weight of a source in the average: ``uniform``, or ``tokens`` of its training split."""

    ranks_per_worker: int = 1
    """Processes that train a source together, each on a part of its batch, averaging gradients at
    every step (DDP). A job of ``P`` processes has ``P / ranks_per_worker`` workers, whose number
    must divide ``sources_per_round``."""

    worker_timeout: float = 3600.0
    """Seconds that a worker waits for the slowest one when all synchronise: at the start and at the
    outer step. Workers that die are noticed at once."""

    icl_source: str | None = None
    """The source whose embedding reads ``icl_tasks``, in a variant without a global embedding."""

    upload_sources: bool = True
    """Whether files of sources are also sent to a remote ``save_folder`` (``s3://...``): private
    embeddings, the state of inner optimizers, positions in the data. With ``false`` they stay in
    ``runs/<run_name>/checkpoints/sources`` of the machine that trains the source; a run can then
    only be resumed on the machines that have them."""

    faults: str = "leave_out"
    """How to treat a slot with a NaN or an infinity, or whose update is an outlier. ``leave_out``:
    the average is that of the other sources of the round, and the private embedding and inner state
    of the source are as before the slot. ``stop``: the run stops."""

    outlier_multiple: float | None = 10.0
    """An update is an outlier if its norm, divided by the sum of its learning rates, exceeds the
    median of the source's last ten rounds by more than this factor. In ordinary runs of this
    repository the factor is at most 2.1. ``null``: no update is an outlier."""

    allow_source_changes: bool = False
    """Whether a resumed run may have other ``train_loader.sources``, or another
    ``sources_per_round``, than before. Sources then join and leave with the next round that begins
    (docs/data.md). In a federation: whether silos may bring sources that ``federation.sources``
    does not have, and take theirs out (docs/federation.md)."""

    federation: Mapping[str, Any] | None = None
    """Organisations that train together over Flower, each on its own text: see
    ``dept/config/federation_options.py`` and ``docs/federation.md``."""

    def __post_init__(self) -> None:
        where, count = "algorithms.dept", integer(1)
        checks = {
            "variant": one_of(*VARIANTS),
            "local_steps": count,
            "sources_per_round": count | NULL,
            "sampling": one_of(*RULES),
            "ranks_per_worker": count,
            "worker_timeout": SECONDS,
            "outer_optimizer": OUTER,
            "compression": CODED,
            "average": RULE,
            "clip_update_norm": number(0, above=True) | NULL,
            "privacy": MAPPING | NULL,
            "inner_state": one_of("reset", "keep", "average"),
            "inner_state_interval": INTERVALS | NULL,
            "weighting": one_of("uniform", "tokens"),
            "faults": one_of("leave_out", "stop"),
            "outlier_multiple": number(1, above=True) | NULL,
            "federation": MAPPING | NULL,
        }
        for name, kind in checks.items():
            kind.check(f"{where}.{name}", getattr(self, name))
        if self.inner_state_interval is not None and self.inner_state != "average":
            raise ConfigError(
                f"{where}.inner_state_interval is of inner_state: average, but inner_state is "
                f"{self.inner_state}: remove it, or set inner_state to average"
            )

        if self.inner_state == "average" and self.gathers:
            raise ConfigError(
                f"{where}.inner_state is average, and moments are averaged without the rule, limit "
                f"or noise of updates (average, clip_update_norm, privacy): set it to keep or reset"
            )
        if self.federation is not None:
            self._check_federation()

    @property
    def moment_interval(self) -> dict[str, int]:
        """Rounds between two averages of each moment; empty if moments are not averaged."""
        if self.inner_state != "average":
            return {}
        return {**INTERVAL, **(self.inner_state_interval or {})}

    def _check_federation(self) -> None:
        federation = self.federated
        assert federation is not None
        if self.weighting != "uniform":
            raise ConfigError(
                "algorithms.dept.weighting is tokens, which would tell the server how much text a "
                "silo has: set it to uniform in a federation"
            )
        if self.inner_state == "average":
            raise ConfigError(
                "algorithms.dept.inner_state is average, and silos send no moments: set it to keep "
                "or reset in a federation"
            )
        if federation.local_privacy is not None and self.sharing.averages_by_row:
            raise ConfigError(
                f"{WHERE}.local_privacy is set, and {self.variant} sends the token rows of a "
                f"source, which give away its vocabulary: set variant to glob, spec or spec_opt"
            )
        if federation.share_embedding and self.sharing.has_global_embedding:
            raise ConfigError(
                f"{WHERE}.share_embedding is true, and {self.variant} has no private embeddings: "
                f"remove it"
            )
        if self.sampling != UNIFORM:
            raise ConfigError(
                "algorithms.dept.sampling is stratified, which is for workers of one job: set it "
                "to uniform in a federation"
            )
        most = len(federation.sources)
        if (self.sources_per_round or 1) > most and not self.allow_source_changes:
            raise ConfigError(
                f"algorithms.dept.sources_per_round is {self.sources_per_round}, and the "
                f"federation has {most} sources: set it to that or less"
            )

    @property
    def federated(self) -> FederationOptions | None:
        """The options of the federation; ``None`` without one."""
        if self.federation is None:
            return None
        return parse(FederationOptions, WHERE, self.federation)

    @property
    def sharing(self) -> Variant:
        """The row of the table of variants."""
        return VARIANTS[self.variant]

    @property
    def gathers(self) -> bool:
        """Whether the first worker needs the update of each source, compressed or not."""
        named = self.average["name"] != "mean"
        return named or self.clip_update_norm is not None or self.privacy is not None

    def aggregation(self) -> Aggregation:
        """How the updates of a round are combined.

        Raises:
            ConfigError: a value is not allowed, or some do not fit together.
        """
        from dept.method.aggregation import Aggregation  # torch is slow to import

        return Aggregation.of(
            self.average,
            self.clip_update_norm,
            self.privacy,
            weighted=self.weighting != "uniform",
            by_row=self.sharing.averages_by_row,
        )


# The values that each annotation of an option allows in a yaml.
_KINDS = {
    "int": Kind("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": Kind("a number", is_number),
    "str": TEXT,
    "bool": FLAG,
    "list[str]": Kind("a list of names", list_of(TEXT).fits),
    "None": NULL,
}


def parse(cls: type[T], section: str, values: Any) -> T:
    """Parse a section of the yaml into the dataclass with its types and defaults.

    Args:
        cls: the dataclass.
        section: key of the section, for errors.
        values: the section.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {shown(values)}: write its options below it")
    options = {option.name: option for option in fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(section, values, options)
    for name, option in options.items():
        kinds = [_KINDS.get(kind) for kind in str(option.type).split(" | ")]
        if name in values and None not in kinds:  # otherwise the class checks it
            functools.reduce(operator.or_, kinds).check(f"{section}.{name}", values[name])
        if name not in values and option.default is MISSING and option.default_factory is MISSING:
            raise ConfigError(f"{section} lacks {name}: add it")
    return cls(**values)


def options_of(config: Mapping[str, Any]) -> tuple[DeptOptions | None, CorpusOptions | None]:
    """The options of ``algorithms.dept`` and of a loader over sources; ``None`` if there is none.

    Raises:
        ConfigError: an option is unknown, or a value is not allowed.
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
