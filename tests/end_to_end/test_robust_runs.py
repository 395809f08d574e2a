"""Runs with a faulty source, with updates of limited norm and with noise: the real trainer."""

import json
import math
import shutil

import pytest
import torch
from fleet import Fleet, assert_same, learned, summary
from scipy.stats import norm
from training import LOCAL_STEPS, dept_of, train

from dept.method.source_state import Slots
from dept.method.variants import Role

pytestmark = pytest.mark.end_to_end

HONEST, NAN, ATTACKER = ("manual", "code", "mail"), "tools", "held"
ROUNDS = 2
PLAIN = [f"max_duration={ROUNDS}ep", "save_folder=null", "autoresume=false", "eval_interval=9ep"]
STILL = "optimizer.lr=1.0e-12"  # so that a run ends where it began
POISON = ["code_paths=[tests/helpers/poison.py]"]
POISON += [f"callbacks.poison={{what: loss, by: nan, source: {NAN}, step: 1}}"]


def body(trainer):
    slots = dept_of(trainer).run.slots
    return torch.cat([slots.start[name].flatten() for name in slots.live.names(Role.BODY)])


def of(*sources):
    return f"train_loader.sources=[{','.join(sources)}]"


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Before ``registries`` remembers what is registered."""
    import run_imports  # noqa: F401


@pytest.fixture
def attacked(prepared, monkeypatch, registries):
    """Trains with one source whose loss is NaN, and one that sends -100 times its update."""

    def run(experiment, *more, sources=(*HONEST, NAN, ATTACKER)):
        finish = Slots.finish

        def finish_reversed(slots, round_number):
            source, local = slots.active, finish(slots, round_number)
            if source != ATTACKER:
                return local
            rows = slots.rows(source)
            start = {n: slots.start[n][rows[n]] if n in rows else slots.start[n] for n in local}
            return {n: start[n] - 100 * (local[n] - start[n]) for n in local}

        monkeypatch.setattr(Slots, "finish", finish_reversed)
        trainer = train(prepared, experiment, "run_name=attacked", of(*sources), *more)
        monkeypatch.setattr(Slots, "finish", finish)
        return trainer

    return run


@pytest.mark.parametrize(
    ("experiment", "average", "within"),
    [
        ("dept_spec", "{name: trimmed_mean}", 1.0),
        ("dept_spec", "{name: median}", 1.0),
        ("dept_spec", "{name: krum}", 1.5),  # that of one source, instead of a mean of three
        ("dept_spec", "{name: multi_krum}", 0.01),
        ("dept_trim", "{name: multi_krum}", 0.01),
        ("dept_spec", "{name: mean}", None),
        ("dept_trim", "{name: mean}", None),
    ],
)
def test_a_source_that_reverses_its_update_moves_theta_only_under_the_mean(
    attacked, experiment, average, within
):
    """Distance from the run without it, as a multiple of how far that run went."""
    options = [*PLAIN, *POISON, "algorithms.dept.faults=leave_out"]
    alone = attacked(experiment, *options, sources=(*HONEST, NAN))
    dept = dept_of(alone)
    assert [fault["source"] for fault in dept.totals["left_out"]] == [NAN] * ROUNDS
    first = attacked(experiment, *options, STILL, sources=(*HONEST, NAN))
    went = (body(alone) - body(first)).norm()
    there = attacked(experiment, *options, f"algorithms.dept.average={average}")
    away = float((body(there) - body(alone)).norm() / went)
    if within is None:
        assert away > 10 and math.isfinite(away), away
    else:
        assert away < within, away


def test_no_round_moves_the_model_further_than_the_limit(attacked):
    options = [*PLAIN, *POISON, "algorithms.dept.clip_update_norm=0.25"]
    first = attacked("dept_glob", *options, STILL)
    there = attacked("dept_glob", *options)
    ours, theirs = (dept_of(trainer).run.slots.start for trainer in (there, first))
    moved = math.sqrt(sum(float((ours[n] - theirs[n]).square().sum()) for n in ours))
    assert 0.02 < moved <= 0.25 * ROUNDS


def test_noise_is_added_also_if_every_source_is_left_out(prepared, registries):
    """Otherwise a round without noise would give away that all of them failed."""
    options = [*PLAIN, POISON[0], "callbacks.poison={what: loss, by: nan}", "run_name=noise"]
    first = train(prepared, "dept_glob", *options)
    private = ["algorithms.dept.clip_update_norm=0.5", "algorithms.dept.privacy.noise_multiplier=2"]
    noisy = train(prepared, "dept_glob", *options, *private)
    ours, theirs = (dept_of(trainer).run.slots.start for trainer in (noisy, first))
    flat = torch.cat([(ours[n] - theirs[n]).flatten() for n in ours])
    assert float(flat.std()) == pytest.approx(2 * 0.5 / 4 * math.sqrt(ROUNDS), rel=0.02)
    assert not dept_of(noisy).run.slots.private


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(2)
    yield fleet
    fleet.close()


PRIVATE = [
    "algorithms.dept.clip_update_norm=0.5",
    "algorithms.dept.privacy={noise_multiplier: 0.8, delta: 1.0e-6}",
    "algorithms.dept.compression={name: int8, block: 64}",
]


@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("dept_trim", ["algorithms.dept.average={name: median}"]),
        ("dept_glob", [*PRIVATE, "algorithms.dept.sources_per_round=2"]),
    ],
    ids=["median-trim", "privacy-glob"],
)
def test_any_number_of_workers_and_a_kill_in_mid_round_give_the_same_bits(
    prepared, fleet, experiment, options, request
):
    name = request.node.callspec.id
    options = [
        *options,
        "algorithms.dept.outer_optimizer.name=nesterov",
        "save_interval=1ba",
        "save_num_checkpoints_to_keep=-1",
    ]
    two = fleet.train(prepared, experiment, f"run_name={name}", *options, processes=2)
    one = fleet.train(prepared, experiment, f"run_name={name}-1", *options, processes=1)
    assert_same(learned(one), learned(two))
    folder = prepared / "runs" / name / "checkpoints"
    slots = two[0]["slots_per_worker"]
    checkpoint = f"ep1-ba{slots * LOCAL_STEPS + 2}-w2-rank0.pt"
    left = prepared / "runs" / f"{name}-killed" / "checkpoints"
    shutil.copytree(folder / "sources", left / "sources")
    shutil.copy(folder / checkpoint, left)
    (left / "latest-rank0.pt").symlink_to(checkpoint)
    again = fleet.train(prepared, experiment, f"run_name={name}-killed", *options, processes=1)
    assert_same(learned(again), learned(two))
    found = [summary(prepared, run) for run in (name, f"{name}-1", f"{name}-killed")]
    assert found[0] == found[1] == found[2]
    if experiment == "dept_trim":
        assert found[0]["privacy"] is None
        return
    rounds = max(one[0]["totals"]["rounds_trained"].values())
    assert sum(one[0]["totals"]["rounds_trained"].values()) == 3 * 2
    private = found[0]["privacy"]
    at, apart = private["epsilon"], math.sqrt(rounds) / 0.8
    delta = norm.sf(at / apart - apart / 2) - math.exp(at) * norm.sf(at / apart + apart / 2)
    assert delta == pytest.approx(1e-6, rel=1e-4)
    lines = (prepared / "runs" / name / "metrics.jsonl").read_text().splitlines()
    key = "dept/privacy/epsilon"
    logged = [line[key] for line in map(json.loads, lines) if key in line]
    assert logged == sorted(logged) and logged[-1] == at and len(logged) == 3
