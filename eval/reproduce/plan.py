"""What a comparison consists of: the runs of a plan, in order, and what each must wait for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from dept.config.options import parse
from dept.errors import ConfigError

STAGES = (
    "tuning",
    "pretrain",
    "cpt_random",
    "cpt_random_long",
    "cpt_pretrained",
    "cpt_merged",
    "tuning_cpt",
    "plasticity",
    "plasticity_long",
    "stability",
    "study",
    "downstream",
)

PLAN = Path(__file__).parent.parent / "reproduce.yaml"


@dataclass(frozen=True)
class Method:
    """One way to pre-train."""

    yaml: str
    """Its experiment, below ``yamls/``."""

    learning_rate: float
    """Peak of pre-training; that of continued pre-training is the same for all methods."""

    baseline: bool = False
    per_source: bool = False
    """One model for each source, instead of one over all."""

    overrides: list[str] = field(default_factory=list)
    checkpoint: str = ""
    """File in the folder of checkpoints to go on from; the newest by default."""

    seeds: list[int] | None = None
    """Those of the plan by default."""

    corpora: list[str] | None = None
    """As well."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus."""

    unseen: list[str]
    """Its held-out sources that plasticity is measured on."""

    continued: list[str] = field(default_factory=list)
    """Overrides of continued pre-training on its mixture."""


@dataclass(frozen=True)
class Continuation:
    """Continued pre-training, or adaptation, of several methods."""

    yaml: str
    methods: list[str]
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    corpora: list[str] | None = None
    draws: int | None = None
    """How many random embeddings to start from, one after another; the yaml's own if not given."""


@dataclass(frozen=True)
class Setting:
    """A method with other settings, or other ways to go on from it."""

    method: str
    overrides: list[str] = field(default_factory=list)
    after: str | None = None
    """What it goes on from: another setting of the stage before it, or ``pretrain``."""

    yaml: str | None = None
    """Experiment to go on with."""

    draws: int | None = None
    """As of a :class:`Continuation`."""


@dataclass(frozen=True)
class Variations:
    """Runs with other settings: to tune methods, or to learn what matters."""

    corpora: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    """:class:`Setting` by name."""

    def __post_init__(self) -> None:
        parsed = {name: parse(Setting, name, value) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", parsed)


@dataclass(frozen=True)
class Downstream:
    """Fine-tuning of what continued pre-training from random embeddings gave."""

    corpora: list[str]
    tasks: list[str]
    """Yamls below ``eval/yamls/finetune/``."""

    methods: list[str]
    untrained: str | None = None
    """Method whose architecture is fine-tuned from random initialisation, too."""

    overrides: list[str] = field(default_factory=list)

    seeds: list[int] | None = None
    """All of the plan by default."""


@dataclass(frozen=True)
class Plan:
    """A whole comparison, as its yaml has it."""

    corpora: dict[str, Corpus]

    seeds: list[int]
    methods: dict[str, Method]
    continued: dict[str, Continuation]
    """By stage."""

    variations: dict[str, Variations]
    """By stage."""

    overrides: list[str] = field(default_factory=list)
    """Of every run of ``train.py``."""

    downstream: Any = None
    """:class:`Downstream`"""


@dataclass(frozen=True)
class Job:
    """One run of ``train.py``, or of ``eval/finetune.py`` in the stage ``downstream``."""

    name: str
    corpus: str
    stage: str
    method: str
    seed: int
    yaml: str
    overrides: tuple[str, ...]
    baseline: bool = False
    source: str | None = None
    setting: str | None = None
    draw: int | None = None
    """Which random embedding it starts from."""

    after: str | None = None
    """Name of the job whose checkpoint it goes on from."""


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
    ):
        entries = given.get(section) or {}
        given[section] = {k: parse(cls, f"{path}: {section}.{k}", v) for k, v in entries.items()}
    if given.get("downstream"):
        given["downstream"] = parse(Downstream, f"{path}: downstream", given["downstream"])
    plan = parse(Plan, str(path), given)
    for stage in (*plan.continued, *plan.variations):
        if stage not in STAGES:
            raise ConfigError(f"{path}: {stage!r} is no stage: it may be {', '.join(STAGES)}")
    for name, method in plan.methods.items():
        for corpus in set(method.corpora or ()) - set(plan.corpora):
            raise ConfigError(
                f"{path}: methods.{name} is for corpus {corpus!r}, which is not in corpora: "
                f"it may be {', '.join(plan.corpora)}"
            )
    return plan


def jobs(plan: Plan, sources: Mapping[str, Sequence[str]]) -> list[Job]:
    """The runs of a plan: seed by seed, what is gone on from before what goes on.

    Args:
        plan: what to run.
        sources: names of the sources of each corpus.

    Raises:
        ConfigError: a setting goes on from one that is not before it.
    """
    result: list[Job] = []
    for seed in dict.fromkeys(plan.seeds):
        for corpus in plan.corpora:
            trained = list(_pretraining(plan, corpus, seed, sources[corpus]))
            result += trained
            for stage, continuation in plan.continued.items():
                seeds = plan.seeds if continuation.seeds is None else continuation.seeds
                of = plan.corpora if continuation.corpora is None else continuation.corpora
                if seed in seeds and corpus in of:
                    result += _continuations(plan, stage, continuation, trained)
    for stage, variations in plan.variations.items():
        result += _variations(plan, stage, variations)
    if plan.downstream:
        seeds = plan.seeds if plan.downstream.seeds is None else plan.downstream.seeds
        bodies = [job for job in result if job.seed in seeds]
        result += [job for body in bodies for job in _fine_tuning(plan.downstream, body)]
    return result


def _pretraining(plan: Plan, corpus: str, seed: int, sources: Sequence[str]) -> Iterable[Job]:
    for name, method in plan.methods.items():
        if seed not in (plan.seeds if method.seeds is None else method.seeds):
            continue
        if corpus not in (plan.corpora if method.corpora is None else method.corpora):
            continue
        for source in sources if method.per_source else (None,):
            of_source = () if source is None else (f"variables.source={source}",)
            own = (*method.overrides, *of_source)
            yield _job(plan, method, name, corpus, "pretrain", seed, own, source=source)


def _continuations(
    plan: Plan, stage: str, continuation: Continuation, trained: Sequence[Job]
) -> Iterable[Job]:
    for job in trained:
        if job.method not in continuation.methods:
            continue
        method = plan.methods[job.method]
        corpus, adapts = plan.corpora[job.corpus], stage.startswith("plasticity")
        places = product(corpus.unseen if adapts else [None], _draws(continuation.draws))
        for source, draw in places:
            own = (
                f"variables.checkpoint=runs/{job.name}/checkpoints/{method.checkpoint}",
                *((f"variables.source={source}",) if adapts else corpus.continued),
                *continuation.overrides,
                *_drawn(draw),
            )
            yield _job(
                plan,
                Method(yaml=continuation.yaml, learning_rate=0.0, baseline=job.baseline),
                job.method,
                job.corpus,
                stage,
                job.seed,
                own,
                source=source or job.source,
                draw=draw,
                after=job.name,
            )


def _variations(plan: Plan, stage: str, variations: Variations) -> Iterable[Job]:
    for seed in variations.seeds:
        for corpus in variations.corpora:
            names = {"pretrain": None}
            for name, setting in variations.settings.items():
                method, after = plan.methods[setting.method], None
                overrides = (*method.overrides, *setting.overrides)
                if setting.after is not None:
                    if setting.after not in names:
                        raise ConfigError(
                            f"variations.{stage}: {name!r} comes after {setting.after!r}, which is "
                            f"not before it: name pretrain, or a setting above it"
                        )
                    after = names[setting.after] or f"{corpus}-pretrain-{setting.method}-s{seed}"
                    checkpoint = f"runs/{after}/checkpoints/{method.checkpoint}"
                    overrides = (f"variables.checkpoint={checkpoint}", *setting.overrides)
                    method = Method(setting.yaml or "continued", 0.0, method.baseline)
                for draw in _draws(setting.draws):
                    job = _job(
                        plan,
                        method,
                        setting.method,
                        corpus,
                        stage,
                        seed,
                        (*overrides, *_drawn(draw)),
                        setting=name,
                        draw=draw,
                        after=after,
                    )
                    names[name] = job.name
                    yield job


def _draws(count: int | None) -> Sequence[int | None]:
    return [None] if count is None else range(count)


def _drawn(draw: int | None) -> tuple[str, ...]:
    return () if draw is None else (f"variables.embedding_seed={draw}",)


def _fine_tuning(downstream: Downstream, body: Job) -> Iterable[Job]:
    if body.stage != "cpt_random" or body.corpus not in downstream.corpora:
        return
    if body.method not in downstream.methods or body.draw:
        return
    for task in downstream.tasks:
        for init in ("pretrained", "random"):
            if init == "random" and body.method != downstream.untrained:
                continue
            setting = task if init == "pretrained" else f"{task}-untrained"
            name = f"{body.corpus}-downstream-{body.method}-{setting}-s{body.seed}"
            checkpoint = f"checkpoint=runs/{body.name}/checkpoints"
            own = (f"run_name={name}", checkpoint, f"init={init}", f"seed={body.seed}")
            yield Job(
                name=name,
                corpus=body.corpus,
                stage="downstream",
                method=body.method,
                seed=body.seed,
                yaml=f"eval/yamls/finetune/{task}.yaml",
                overrides=(*own, *downstream.overrides),
                baseline=body.baseline,
                setting=setting,
                after=body.name,
            )


def _job(
    plan: Plan,
    method: Method,
    name: str,
    corpus: str,
    stage: str,
    seed: int,
    overrides: tuple[str, ...],
    *,
    source: str | None = None,
    setting: str | None = None,
    draw: int | None = None,
    after: str | None = None,
) -> Job:
    parts = [corpus, stage, name, setting and re.sub(r"[^\w.-]+", "_", setting), source, f"s{seed}"]
    parts += [] if draw is None else [f"d{draw}"]
    run_name = "-".join(part for part in parts if part)
    rate = (f"optimizer.lr={method.learning_rate}",) if method.learning_rate else ()
    general = (f"run_name={run_name}", f"variables.corpus={corpus}", f"seed={seed}")
    return Job(
        name=run_name,
        corpus=corpus,
        stage=stage,
        method=name,
        seed=seed,
        yaml=f"yamls/{method.yaml}.yaml",
        overrides=(*general, *plan.overrides, *rate, *overrides),
        baseline=method.baseline,
        source=source,
        setting=setting,
        draw=draw,
        after=after,
    )
