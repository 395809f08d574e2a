"""The yaml of a comparison: corpora, methods, and the runs of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dept.config.options import parse
from dept.errors import ConfigError
from dept.evaluation.report.names import STAGES

PLAN = Path(__file__).parent.parent / "reproduce.yaml"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a plan that may be limited to some runs."""

    seeds: list[int] | None = None
    """By default those of the plan."""

    corpora: list[str] | None = None
    """By default those of the plan."""

    def covers(self, plan: Plan, corpus: str, seed: int) -> bool:
        """Whether it is run on a corpus with a seed.

        Args:
            plan: the plan, whose seeds and corpora are the defaults.
            corpus: name of the corpus.
            seed: seed of the run.
        """
        seeds = plan.seeds if self.seeds is None else self.seeds
        return seed in seeds and corpus in (plan.corpora if self.corpora is None else self.corpora)


@dataclass(frozen=True, kw_only=True)
class Method(Part):
    """One way to pre-train.

    Attributes:
        baseline: whether the method is a baseline.
        overrides: overrides of its pre-training.
    """

    yaml: str
    """Its experiment, below ``yamls/``."""

    learning_rate: float
    """Peak of pre-training; that of continued pre-training is the same for all methods."""

    baseline: bool = False
    per_source: bool = False
    """One model for each source, instead of one over all."""

    sources: list[str] | None = None
    """With ``per_source``: the sources that have a model; by default all."""

    cost: float = 1.0
    """Of a token, beside one at the plan's ``speed``; for estimates only."""

    overrides: list[str] = field(default_factory=list)
    checkpoint: str = ""
    """File in the folder of checkpoints to start others from; the newest by default."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    unseen: list[str]
    """Its held-out sources that plasticity is measured on."""

    continued: list[str] = field(default_factory=list)
    """Overrides of continued pre-training on its mixture."""

    dept: list[str] = field(default_factory=list)
    """Overrides of pre-training on it with methods that are no baselines."""


@dataclass(frozen=True, kw_only=True)
class Continuation(Part):
    """Continued pre-training, or adaptation, of several methods.

    Attributes:
        yaml: its experiment, below ``yamls/``.
        methods: names of the methods whose bodies it continues.
        overrides: overrides of its runs.
    """

    yaml: str
    methods: list[str]
    overrides: list[str] = field(default_factory=list)
    draws: int | None = None
    """How many random embeddings to start from, one after another; the yaml's own if not given."""


@dataclass(frozen=True)
class Setting:
    """A method with other settings, or other ways to continue it.

    Attributes:
        method: name of the method in the plan.
        overrides: overrides of its runs.
    """

    method: str
    overrides: list[str] = field(default_factory=list)
    after: str | None = None
    """The setting that it starts from, of the stage before it, or ``pretrain``."""

    yaml: str | None = None
    """Experiment that continues it."""

    draws: int | None = None
    """As in a :class:`Continuation`."""

    cost: float = 1.0
    """As of a :class:`Method`."""


@dataclass(frozen=True)
class Variations:
    """Runs with other settings: to tune methods, or to learn what matters.

    Attributes:
        corpora: names of the corpora.
        seeds: seeds of the runs.
    """

    corpora: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    """:class:`Setting` by name."""

    def __post_init__(self) -> None:
        parsed = {name: parse(Setting, name, value) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", parsed)


@dataclass(frozen=True, kw_only=True)
class Study(Part):
    """One thing that is varied in several methods, and how each setting is continued.

    The runs to compare with are those of the same methods in pre-training, and in ``cpt_random``.

    Attributes:
        methods: names of methods in the plan.
        settings: overrides of pre-training by the name of a setting.
    """

    methods: list[str]
    settings: dict[str, list[str]]
    draws: int | None = None
    """How many random embeddings to continue each body from, in the stage ``<name>_cpt``; no
    continued pre-training if not given."""


@dataclass(frozen=True, kw_only=True)
class Downstream(Part):
    """Fine-tuning of bodies.

    Attributes:
        corpora: names of the corpora; here they have no default.
        methods: names of the methods whose bodies are fine-tuned.
        overrides: overrides of its runs.
    """

    corpora: list[str]
    tasks: list[str]
    """Yamls below ``eval/yamls/finetune/``."""

    methods: list[str]
    stage: str = "cpt_random"
    """What gave the bodies: continued pre-training from random embeddings, or ``pretrain``."""

    sources: dict[str, str] = field(default_factory=dict)
    """The source whose embedding is fine-tuned, by method; of others the only or global one."""

    untrained: str | None = None
    """Method whose architecture is fine-tuned from random initialisation, too."""

    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A whole comparison, as its yaml has it.

    Attributes:
        corpora: the corpora by name.
        seeds: seeds of the runs.
        methods: the methods by name.
    """

    corpora: dict[str, Corpus]

    seeds: list[int]
    methods: dict[str, Method]
    continued: dict[str, Continuation]
    """By stage."""

    variations: dict[str, Variations]
    """By stage."""

    studies: dict[str, Study] = field(default_factory=dict)
    """By the stage of their pre-training."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of every run of ``train.py``."""

    order: dict[str, str] = field(default_factory=dict)
    """Parts of the plan, the most valuable first: the first regular expression that finds the name
    of a run decides its part. Runs that none finds come last. Without parts the order is by seed,
    corpus, and place in the plan."""

    speed: float = 4000.0
    """Tokens that one core trains on in a second; for estimates only."""

    downstream: Any = None
    """:class:`Downstream`"""


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: it is no yaml, or a key is unknown or missing.
    """
    try:
        given = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{path} is not a mapping of keys: write a plan as eval/reproduce.yaml")
    for section, cls in (
        ("corpora", Corpus),
        ("methods", Method),
        ("continued", Continuation),
        ("variations", Variations),
        ("studies", Study),
    ):
        entries = given.get(section) or {}
        given[section] = {k: parse(cls, f"{path}: {section}.{k}", v) for k, v in entries.items()}
    if given.get("downstream"):
        given["downstream"] = parse(Downstream, f"{path}: downstream", given["downstream"])
    plan = parse(Plan, str(path), given)
    studied = [name for study in plan.studies for name in (study, f"{study}_cpt")]
    for stage in (*plan.continued, *plan.variations, *studied):
        if stage not in STAGES:
            raise ConfigError(f"{path}: {stage!r} is no stage: it may be {', '.join(STAGES)}")
    for name, pattern in plan.order.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{path}: order.{name} is {pattern!r}, no regular expression: {error}"
            ) from None
    for name, method in plan.methods.items():
        for corpus in set(method.corpora or ()) - set(plan.corpora):
            raise ConfigError(
                f"{path}: methods.{name} is for corpus {corpus!r}, which is not in corpora: "
                f"it may be {', '.join(plan.corpora)}"
            )
    return plan
