"""Trainers of silos that are killed and stopped, a server that is killed, and what travels.

The trainers are those of a federation, and so is the server; only Flower is left out between them.
"""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from fleet import Fleet, learned
from flower_processes import REPOSITORY
from parties import NESTEROV, SILOS, SOURCES
from training import BATCH, LOCAL_STEPS, ROUNDS

from dept.costs.transport import federation_round_bytes
from dept.data.corpus import read_corpus
from dept.transport.flower.messages import KINDS

pytestmark = pytest.mark.end_to_end

HALF = ["algorithms.dept.sources_per_round=2"]
KEEPS = "algorithms.dept.inner_state=keep"
CLIPPED = ["algorithms.dept.clip_update_norm=0.5"]


class Killed(BaseException):
    """The server dies here."""


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(1)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def one_job(prepared, fleet):
    """What one job learns with SPEC and Nesterov."""
    return learned(fleet.train(prepared, "dept_spec", "run_name=one-job", NESTEROV, processes=1))


def assert_learned(ours, theirs):
    for key, value in theirs.items():
        assert np.array_equal(ours[key], value), key


@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        ("dept_glob", ["algorithms.dept.inner_state=reset", NESTEROV, *HALF]),
        ("dept_trim", ["model.tie_word_embeddings=false", *HALF]),
        ("dept_spec_opt", ["algorithms.dept.compression={name: int4}"]),
        ("dept_spec", ["algorithms.dept.outer_optimizer={name: fedadam, lr: 0.01}", *HALF]),
        ("dept_trim", ["algorithms.dept.average={name: median}", *CLIPPED]),
        ("dept_glob", ["algorithms.dept.privacy={noise_multiplier: 0.1}", *CLIPPED]),
    ],
    ids=["glob", "trim", "spec-opt", "spec", "median", "privacy"],
)
def test_a_federation_learns_the_bits_of_one_job(
    parties, prepared, fleet, experiment, more, request
):
    name = f"same-{request.node.callspec.id}"
    state, _ = parties.train_all(experiment, name, *more)
    theirs = learned(fleet.train(prepared, experiment, f"run_name={name}", *more, processes=1))
    ours = parties.learned(name, state)
    drawn = {source for line in state.history for source in line["averaged"]}
    assert len(drawn) > 2
    wanted = {k: v for k, v in theirs.items() if k.partition("/")[0] in {"global", *drawn}}
    assert_learned(ours, wanted)


def test_what_travels_is_what_is_shared(parties, prepared):
    """Every message of a run of SPEC and one of TRIM: keys, sizes, types, and the bytes."""
    corpus = read_corpus(prepared, "tiny")
    words = set((prepared / "manual.txt").read_text().split())
    for experiment in ("dept_spec", "dept_trim"):
        name = f"travels-{experiment}"
        more = ["algorithms.dept.sources_per_round=3"]
        state, grid = parties.train_all(experiment, name, *more)
        private = [n for n in state.theta if "wte" in n or "wpe" in n]
        assert bool(private) == (experiment == "dept_trim")
        by_row = {n: tuple(state.theta[n].shape) for n in private}
        averaged = {n: tuple(v.shape) for n, v in state.theta.items() if n not in private}
        rows = {s: corpus.source(s).local_vocab_size for s in SOURCES}
        for asked, reply in grid.messages:
            if reply is None:
                assert asked.kind == "join"  # before there was a trainer
                continue
            assert asked.kind in ("join", "start", "round")
            for parcel in (asked, reply):
                assert parcel.fields.keys() == KINDS[parcel.kind].fields.keys()
                names = {n.partition("/")[2] or n for n in parcel.arrays}
                if parcel.kind == "joined":
                    assert set(parcel.arrays) == (
                        set(parcel.fields["sources"]) if by_row else set()
                    )
                    for source, ids in parcel.arrays.items():
                        assert ids.dtype == np.int32 and len(ids) == rows[source]
                else:
                    assert names <= state.theta.keys()
                    assert {a.dtype.name for a in parcel.arrays.values()} <= {"float32"}
                texts = [v for v in parcel.fields.values() if isinstance(v, str)]
                texts += [e for v in parcel.fields.values() if isinstance(v, list) for e in v]
                said = {word for text in texts for word in text.split()}
                assert not {w for w in said & words if w.isalpha() and len(w) > 6} - {*SOURCES}
                for key in parcel.metrics:
                    source, metric = key.split("/")
                    assert source in SOURCES
                    assert metric in ("train_loss", "update_norm", "loss", "bits_per_byte")
            if reply.kind == "update":
                drawn = asked.fields["drawn"]
                assert reply.fields["sources"] == drawn
                held = [rows[s] for s in drawn]
                down, up = federation_round_bytes(averaged, by_row, held, silos=1)
                assert (asked.nbytes, reply.nbytes) == (down, up)
        for line in state.history[:ROUNDS]:
            held = [rows[s] for s in line["averaged"]]
            sizes = federation_round_bytes(averaged, by_row, held, silos=3)
            assert (line["bytes_down"], line["bytes_up"]) == sizes


def test_trainers_and_servers_that_are_killed_at_any_moment_learn_the_same(parties, one_job):
    """Each message of the server is a moment: it dies before one, or a trainer does."""
    draw = np.random.default_rng(5)
    messages = 3 * (ROUNDS + 2) + 1  # of an undisturbed run
    for attempt in range(3):
        name = f"killed-{attempt}"
        moments = {
            int(m): str(draw.choice(["server", *SILOS]))
            for m in draw.choice(np.arange(2, messages), size=3, replace=False)
        }
        at = 0

        def before_push(parcel, node, name=name, moments=moments):
            nonlocal at
            at += 1
            victim = moments.pop(at, None)
            if victim == "server":
                raise Killed
            if victim is not None:
                parties.kill(f"{victim}/trainer")
                parties.start_trainer(victim, "dept_spec", name, NESTEROV, KEEPS)

        for silo in SILOS:
            parties.start_trainer(silo, "dept_spec", name, NESTEROV, KEEPS)
        while True:
            try:
                state, _ = parties.serve_here(
                    "dept_spec", name, NESTEROV, KEEPS, before_push=before_push
                )
                break
            except Killed:
                continue
        parties.end(name)
        assert all(line["missing"] == [] for line in state.history)
        assert_learned(parties.learned(name, state), one_job)
        for newest in parties.newest(name).values():
            assert newest["position"] == ROUNDS * LOCAL_STEPS * BATCH


def test_a_trainer_that_is_killed_while_it_trains_or_saves_learns_the_same(parties, one_job):
    """Not at a message, but at any time between two of them."""
    name, draw = "killed-between", np.random.default_rng(6)
    for silo in SILOS:
        parties.start_trainer(silo, "dept_spec", name, NESTEROV, KEEPS)
    ended = threading.Event()

    def kill():
        while not ended.wait(float(draw.uniform(6, 14))):
            silo = str(draw.choice([*SILOS]))
            if parties.processes[f"{silo}/trainer"].exitcode is None:
                parties.kill(f"{silo}/trainer")
                parties.start_trainer(silo, "dept_spec", name, NESTEROV, KEEPS)

    def before_push(parcel, node):
        if parcel.kind == "round" and parcel.fields["round"] == ROUNDS:
            ended.set()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        state, _ = parties.serve_here("dept_spec", name, NESTEROV, KEEPS, before_push=before_push)
    finally:
        ended.set()
        killer.join()
    parties.end(name)
    assert_learned(parties.learned(name, state), one_job)


def test_a_silo_that_is_stopped_is_missed_once_and_its_sources_are_as_before(parties):
    name, rounds = "stopped", 6
    more = [f"max_duration={rounds}ep", "algorithms.dept.federation.round_timeout=30"]
    more += ["algorithms.dept.federation.min_sources=3", NESTEROV, KEEPS]
    files = parties.files("right", name)
    state_before = {}

    def before_push(parcel, node):
        index = parcel.fields.get("round")
        trainer = parties.processes["right/trainer"]
        if parcel.kind == "round" and index == 1 and node == 3 and not state_before:
            state_before.update(files.load("tools", files.states("tools")[-1]))
            os.kill(trainer.pid, signal.SIGSTOP)
        if parcel.kind == "round" and index == 2:
            os.kill(trainer.pid, signal.SIGCONT)
            while (1, 0) in files.states("tools") and (1, LOCAL_STEPS) not in files.states("tools"):
                time.sleep(0.2)  # until its late update is written

    state, _grid = parties.train_all("dept_spec", name, *more, before_push=before_push)
    missing = [line["missing"] for line in state.history[:rounds]]
    assert missing == [[], ["tools"], *[[]] * (rounds - 2)]
    averaged = sum("tools" in line["averaged"] for line in state.history[:rounds])
    assert 2 <= averaged < rounds
    newest = parties.newest(name)
    assert newest["tools"]["position"] == averaged * LOCAL_STEPS * BATCH
    assert newest["mail"]["position"] == rounds * LOCAL_STEPS * BATCH
    assert "the update of tools in round 2 did not reach the server" in parties.log(
        "right", "trainer"
    )


def test_a_silo_of_two_processes_learns_the_same_but_for_rounding(parties, prepared, fleet):
    """Its ranks train parts of each batch, and one of them has the socket."""
    # With eps 1e-8 a gradient that is zero but for rounding moves its parameter either way.
    name, more = "two-processes", [NESTEROV, "optimizer.eps=1e-4"]
    yaml = REPOSITORY / "yamls" / "federation" / "dept_spec.yaml"
    for silo, ranks in zip(SILOS, (2, 1, 1), strict=True):
        parties.trainer(silo, yaml, *parties.options(name, *more), ranks=ranks)
    state, _ = parties.serve_here("dept_spec", name, *more)
    parties.end(name)
    second = parties.processes["left/trainer-1"]
    second.join(600)
    assert second.exitcode == 0
    job = learned(fleet.train(prepared, "dept_spec", f"run_name={name}", *more, processes=1))
    ours = parties.learned(name, state)
    for key, value in job.items():
        np.testing.assert_allclose(ours[key], value, atol=5e-5, rtol=0, err_msg=key)
    assert not all(np.array_equal(ours[key], value) for key, value in job.items())
    summary = json.loads((parties.folder / "left" / "runs" / name / "summary.json").read_text())
    assert summary["ranks_per_worker"] == 2


def test_a_silo_of_another_yaml_is_refused_on_both_sides(parties, caplog):
    name = "differs"
    parties.start_trainer("left", "dept_spec", name)
    parties.start_trainer("middle", "dept_spec", name, "model.d_model=64")
    parties.start_trainer("right", "dept_trim", name)
    more = ["algorithms.dept.federation.round_timeout=60"]
    state, _ = parties.serve_here("dept_spec", name, *more, watched=["left"])
    assert state.history[0]["averaged"] == SILOS["left"]
    for silo, why in (
        ("middle", "model.d_model is 64 in the yaml of the silo and 32 in that of the server"),
        ("right", 'algorithms.dept.variant is "trim" in the yaml of the silo and "spec" in that'),
    ):
        trainer = parties.processes[f"{silo}/trainer"]
        trainer.join(300)
        assert trainer.exitcode == 2 and why in parties.log(silo, "trainer")
        assert any(f"silo {silo} does not take part: {why}" in r.message for r in caplog.records)
