"""The runs of a plan, in order, and the run that each must wait for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dept.errors import ConfigError
from dept.evaluation.reproduce.plan import Continuation, Downstream, Method, Plan, Study, Variations


@dataclass(frozen=True)
class Job:
    """One run of ``train.py``, or of ``eval/finetune.py`` in the stage ``downstream``.

    Attributes:
        name: name of the run.
        corpus: name of the corpus.
        stage: name of the stage.
        method: name of the method in the plan.
        seed: seed of the run.
        yaml: path of the experiment's yaml.
        overrides: ``key=value`` strings for the command line.
        baseline: whether the method is a baseline.
        source: the only source that the run, or the body it starts from, is trained on; ``None``
            for all.
        setting: name of the setting of a variation, or of the task of fine-tuning.
    """

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
    """Name of the job whose checkpoint it starts from."""

    part: str = ""
    """The part of the plan's order that it is in."""

    cost: float = 1.0
    """Of a token, for estimates."""


def jobs(plan: Plan, sources: Mapping[str, Sequence[str]]) -> list[Job]:
    """The runs of a plan: part by part, then seed by seed, each behind the one it starts from.

    Args:
        plan: what to run.
        sources: names of the sources of each corpus.

    Raises:
        ConfigError: a setting starts from one that is not before it, or a part has no runs.
    """
    result: list[Job] = []
    for seed, corpus in product(dict.fromkeys(plan.seeds), plan.corpora):
        trained = list(_pretraining(plan, corpus, seed, sources[corpus]))
        result += trained
        for stage, continuation in plan.continued.items():
            if continuation.covers(plan, corpus, seed):
                result += _continuations(plan, stage, continuation, trained)
    for stage, variations in plan.variations.items():
        result += _variations(plan, stage, variations)
    for stage, study in plan.studies.items():
        result += _study(plan, stage, study)
    if plan.downstream:
        bodies = [job for job in result if plan.downstream.covers(plan, job.corpus, job.seed)]
        result += [job for body in bodies for job in _fine_tuning(plan.downstream, body)]
    return _in_order(result, plan.order) if plan.order else result


def _in_order(found: Sequence[Job], order: Mapping[str, str]) -> list[Job]:
    """Jobs by part; a body is in the part of the first run that starts from it."""
    parts = [*order, "the rest"]
    places = {
        job.name: next(
            (i for i, pattern in enumerate(order.values()) if re.search(pattern, job.name)),
            len(order),
        )
        for job in found
    }
    for place, part in enumerate(order):
        if place not in places.values():
            raise ConfigError(f"order.{part} finds no run: correct {order[part]!r}")
    for job in reversed(found):  # a body is before what starts from it
        if job.after in places:
            places[job.after] = min(places[job.after], places[job.name])
    placed = [replace(job, part=parts[places[job.name]]) for job in found]
    return sorted(placed, key=lambda job: places[job.name])


def _pretraining(plan: Plan, corpus: str, seed: int, sources: Sequence[str]) -> Iterable[Job]:
    for name, method in plan.methods.items():
        if not method.covers(plan, corpus, seed):
            continue
        bodies = (method.sources or sources) if method.per_source else (None,)
        for source in bodies:
            of_source = () if source is None else (f"variables.source={source}",)
            own = (*_trained_with(plan, corpus, method), *of_source)
            place = {"corpus": corpus, "stage": "pretrain", "method": name, "seed": seed}
            place |= {"baseline": method.baseline, "cost": method.cost}
            yield _job(plan, method.yaml, own, **place, source=source)


def _continuations(
    plan: Plan, stage: str, continuation: Continuation, trained: Sequence[Job]
) -> Iterable[Job]:
    for body in trained:
        if body.method not in continuation.methods:
            continue
        corpus, adapts = plan.corpora[body.corpus], stage.startswith("plasticity")
        for source, draw in product(
            corpus.unseen if adapts else [None], _draws(continuation.draws)
        ):
            yield _job(
                plan,
                continuation.yaml,
                (
                    _checkpoint(body.name, plan.methods[body.method]),
                    *((f"variables.source={source}",) if adapts else corpus.continued),
                    *continuation.overrides,
                ),
                corpus=body.corpus,
                stage=stage,
                method=body.method,
                seed=body.seed,
                baseline=body.baseline,
                source=source or body.source,
                draw=draw,
                after=body.name,
                cost=body.cost,
            )


def _variations(plan: Plan, stage: str, variations: Variations) -> Iterable[Job]:
    for seed, corpus in product(variations.seeds, variations.corpora):
        names = {"pretrain": None}
        for name, setting in variations.settings.items():
            method, after = plan.methods[setting.method], None
            yaml, overrides = method.yaml, _trained_with(plan, corpus, method)
            if setting.after is not None:
                if setting.after not in names:
                    raise ConfigError(
                        f"variations.{stage}: {name!r} comes after {setting.after!r}, which is "
                        f"not before it: name pretrain, or a setting above it"
                    )
                after = names[setting.after] or f"{corpus}-pretrain-{setting.method}-s{seed}"
                yaml, overrides = setting.yaml or "continued", (_checkpoint(after, method),)
            for draw in _draws(setting.draws):
                job = _job(
                    plan,
                    yaml,
                    (*overrides, *setting.overrides),
                    corpus=corpus,
                    stage=stage,
                    method=setting.method,
                    seed=seed,
                    baseline=method.baseline,
                    setting=name,
                    draw=draw,
                    after=after,
                    cost=method.cost * setting.cost,
                )
                names[name] = job.name
                yield job


def _study(plan: Plan, stage: str, study: Study) -> Iterable[Job]:
    for seed, corpus in product(plan.seeds, plan.corpora):
        if not study.covers(plan, corpus, seed):
            continue
        bodies = []
        for name, (setting, overrides) in product(study.methods, study.settings.items()):
            method = plan.methods[name]
            own = (*_trained_with(plan, corpus, method), *overrides)
            place = {"corpus": corpus, "stage": stage, "method": name, "seed": seed}
            place |= {"setting": setting, "baseline": method.baseline, "cost": method.cost}
            bodies.append((_job(plan, method.yaml, own, **place), place))
        yield from (job for job, _ in bodies)
        if study.draws is None:
            continue
        for (body, place), draw in product(bodies, _draws(study.draws)):
            own = (_checkpoint(body.name, plan.methods[body.method]),)
            own += tuple(plan.corpora[corpus].continued)
            place = place | {"stage": f"{stage}_cpt", "draw": draw, "after": body.name}
            yield _job(plan, "continued", own, **place)


def _fine_tuning(downstream: Downstream, body: Job) -> Iterable[Job]:
    if body.stage != downstream.stage or body.method not in downstream.methods or body.draw:
        return
    source = downstream.sources.get(body.method)
    embedding = () if source is None else (f"source={source}",)
    inits = ["pretrained"] + ["random"] * (body.method == downstream.untrained)
    for task, init in product(downstream.tasks, inits):
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
            overrides=(*own, *embedding, *downstream.overrides),
            baseline=body.baseline,
            setting=setting,
            after=body.name,
        )


def _trained_with(plan: Plan, corpus: str, method: Method) -> tuple[str, ...]:
    """Overrides of pre-training."""
    of_corpus = () if method.baseline else plan.corpora[corpus].dept
    return (f"optimizer.lr={method.learning_rate}", *of_corpus, *method.overrides)


def _draws(count: int | None) -> Sequence[int | None]:
    return [None] if count is None else range(count)


def _checkpoint(run: str, method: Method) -> str:
    return f"variables.checkpoint=runs/{run}/checkpoints/{method.checkpoint}"


def _job(plan: Plan, yaml: str, overrides: Iterable[str], **place) -> Job:
    """A job of ``train.py``, named by its place in the plan."""
    setting, draw = place.get("setting"), place.get("draw")
    parts = [place[key] for key in ("corpus", "stage", "method")]
    parts += [setting and re.sub(r"[^\w.-]+", "_", setting), place.get("source")]
    parts += [f"s{place['seed']}", None if draw is None else f"d{draw}"]
    name = "-".join(filter(None, parts))
    general = (f"run_name={name}", f"variables.corpus={place['corpus']}", f"seed={place['seed']}")
    drawn = () if draw is None else (f"variables.embedding_seed={draw}",)
    every = (*general, *plan.overrides, *overrides, *drawn)
    return Job(name=name, yaml=f"yamls/{yaml}.yaml", overrides=every, **place)
