"""Sources that join and leave in mid-training: the real trainer, resumed with other sources."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from commands import TRAIN, Commands
from fleet import Fleet, assert_same, learned, summary
from training import BATCH, DEPT, LOCAL_STEPS, MPT, REPOSITORY, overrides, train

from dept.checkpoint.run_folder import progress
from dept.checkpoint.source_files import SourceFiles
from dept.data.corpus import read_corpus
from dept.method.schedule import RoundSchedule

pytestmark = pytest.mark.end_to_end

THREE, FOUR = ("manual", "code", "mail"), ("manual", "code", "mail", "tools")
WTE = "model.transformer.wte.weight"
SEED = 11  # with it, three and four sources have the same draw in round 1: see below
RUN = [
    f"seed={SEED}",
    "max_duration=4ep",
    "algorithms.dept.sources_per_round=2",
    "algorithms.dept.outer_optimizer.name=nesterov",
    "save_interval=1ba",
    "save_num_checkpoints_to_keep=-1",
]
ALLOWED = "algorithms.dept.allow_source_changes=true"
PER_ROUND = 2 * LOCAL_STEPS


def of(sources):
    return f"train_loader.sources=[{','.join(sources)}]"


def draws(sources):
    return [RoundSchedule(sources, 2, LOCAL_STEPS, SEED).drawn(t) for t in range(4)]


def test_the_draws_of_these_runs():
    assert draws(THREE)[1] == draws(FOUR)[1] == ("manual", "code")
    assert draws(FOUR)[2] == ("code", "tools") and draws(THREE)[2] == ("code", "mail")


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(2)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def three(prepared, fleet):
    """Four rounds over three sources, with a checkpoint of every batch."""
    return fleet.train(
        prepared, "dept_spec", "run_name=three-sources", of(THREE), *RUN, processes=1
    )


def leave_off(root, before, checkpoint, name):
    """Pretend that run ``name`` was killed at a checkpoint of the run ``before``."""
    folder, left = (root / "runs" / run / "checkpoints" for run in (before, name))
    shutil.copytree(folder / "sources", left / "sources")
    shutil.copy(folder / checkpoint, left)
    (left / "latest-rank0.pt").symlink_to(checkpoint)
    files, (round_index, _) = SourceFiles(left / "sources"), progress(checkpoint)
    for source in FOUR:
        for state in files.states(source):
            if state[0] > round_index:
                files.remove(source, state)


@pytest.fixture(scope="module")
def resume(prepared, fleet):
    def resume(before, checkpoint, name, sources, *more, processes=1, experiment="dept_spec"):
        leave_off(prepared, before, f"{checkpoint}-rank0.pt", name)
        options = [f"run_name={name}", of(sources), ALLOWED, *RUN, *more]
        return fleet.train(prepared, experiment, *options, processes=processes)

    return resume


@pytest.fixture(scope="module")
def joined(prepared, three, resume):
    """``tools`` joins with round 1, and is drawn for the first time in round 2."""
    return resume("three-sources", "ep1-ba6", "joined", FOUR)


def positions(results):
    found = {}
    for result in results:
        for source, position in result["positions"].items():
            found[source] = found.get(source, 0) + position
    return {source: position for source, position in found.items() if position}


def test_who_joins_is_in_the_next_draw_and_nothing_before_it_changes(prepared, three, joined):
    trained = [*draws(THREE)[:1], *draws(FOUR)[1:]]
    times = {source: sum(source in drawn for drawn in trained) for source in FOUR}
    assert times["tools"] > 0
    assert positions(joined) == {s: n * LOCAL_STEPS * BATCH for s, n in times.items()}
    assert joined[0]["totals"]["rounds_trained"] == times
    (change,) = summary(prepared, "joined")["source_changes"]
    assert change == {"round": 2, "sources": list(FOUR), "sources_per_round": 2}
    assert {*summary(prepared, "joined")["sources"]} == {*FOUR}


@pytest.mark.parametrize("checkpoint", ["ep0-ba1", "ep0-ba4"])
def test_the_batch_at_which_the_run_was_resumed_does_not_matter(
    prepared, joined, resume, checkpoint
):
    """A round that has begun is finished with its own sources."""
    name = f"in-mid-round-{checkpoint}"
    assert_same(learned(resume("three-sources", checkpoint, name, FOUR)), learned(joined))
    assert summary(prepared, name) == summary(prepared, "joined")


@pytest.mark.parametrize("processes", [1, 2])
def test_later_kills_and_other_numbers_of_workers_change_nothing(
    prepared, joined, resume, processes
):
    for before, checkpoint in (
        ("three-sources", "ep1-ba6"),
        ("joined", "ep1-ba8"),
        ("joined", "ep2-ba17"),
    ):
        name = f"again-{checkpoint}-{processes}"
        again = resume(before, checkpoint, name, FOUR, processes=processes)
        assert_same(learned(again), learned(joined))
        assert positions(again) == positions(joined)
        assert summary(prepared, name) == summary(prepared, "joined")


def test_who_leaves_before_being_drawn_was_never_there(prepared, three, joined, resume):
    """Draws are the same with and without it, so all else must be too, to the last bit."""
    name = "taken-back"
    back = resume("joined", "ep2-ba12", name, THREE)
    ours = {n: v for n, v in learned(back).items() if not n.startswith("tools/")}
    assert_same(ours, learned(three))
    assert positions(back) == positions(three)
    ours, theirs = summary(prepared, name), summary(prepared, "three-sources")
    changes = ours.pop("source_changes"), theirs.pop("source_changes")
    assert ours == theirs and [len(of) for of in changes] == [2, 0]


def test_its_embedding_is_that_of_a_source_that_was_there_and_never_drawn(
    prepared, fleet, three, resume
):
    """A seed with which four sources from the start draw ``tools`` in none of two rounds."""
    seed = next(
        seed
        for seed in range(99)
        if not any("tools" in RoundSchedule(FOUR, 2, 3, seed).drawn(t) for t in range(2))
    )
    short = [*RUN, f"seed={seed}", "max_duration=2ep"]
    there = fleet.train(prepared, "dept_spec", "run_name=there", of(FOUR), *short, processes=1)
    fleet.train(prepared, "dept_spec", "run_name=before", of(THREE), *short, processes=1)
    late = resume("before", "ep1-ba6", "late", FOUR, *short[-2:])
    name = f"tools/{WTE}"
    assert there[0]["positions"]["tools"] == 0 and late[0]["positions"]["tools"] == 0
    assert np.array_equal(learned(late)[name], learned(there)[name])


def global_of(root, run, rounds):
    """The global embedding of a checkpoint after some rounds, and its outer momentum."""
    (path,) = (root / "runs" / run / "checkpoints").glob(f"ep{rounds}-ba{rounds * PER_ROUND}-*")
    state = torch.load(path, weights_only=False)["state"]
    outer = dict(state["algorithms"])["Dept"]["outer_optimizer"]["state"]
    return state["model"][WTE], outer[WTE]["momentum_buffer"]


def test_rows_that_only_it_held_keep_value_and_outer_state_and_its_files_stay(
    prepared, fleet, resume
):
    fleet.train(prepared, "dept_trim", "run_name=trim", of(THREE), *RUN, processes=1)
    drawn = RoundSchedule(THREE, 2, LOCAL_STEPS, SEED).drawn(0)
    leaver = drawn[1]
    stay = tuple(source for source in THREE if source != leaver)
    resume("trim", "ep1-ba6", "trim-left", stay, experiment="dept_trim")
    before, after = global_of(prepared, "trim", 1), global_of(prepared, "trim-left", 4)
    corpus = read_corpus(prepared, "tiny")
    rows = {source: {*corpus.source(source).local_vocabulary().tolist()} for source in THREE}
    alone = sorted(rows[leaver] - set().union(*(rows[source] for source in stay)))
    others = sorted(set().union(*(rows[source] for source in stay)))
    assert len(alone) > 20
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[alone], new[alone]) and old[alone].abs().max() > 0
        assert not torch.equal(old[others], new[others])
    files = SourceFiles(prepared / "runs/trim-left/checkpoints/sources")
    assert files.states(leaver)[-1] >= (1, 0)
    found = summary(prepared, "trim-left")
    assert {*found["sources"]} == {*stay}
    assert found["tokens"] == 4 * PER_ROUND * BATCH * 32


def test_who_leaves_in_a_round_is_in_that_round_and_may_come_back(prepared, three, resume):
    """``mail`` is drawn in round 2, leaves with round 3, and comes back where it was."""
    stay = ("manual", "code")
    between = resume("three-sources", "ep3-ba18", "left-between", stay)
    within = resume("three-sources", "ep2-ba14", "left-within", stay, "save_interval=4ep")
    assert_same(learned(within), learned(between))
    files = SourceFiles(prepared / "runs/left-within/checkpoints/sources")
    assert files.states("mail")[-1] == (3, 0)  # written as it left, though no checkpoint was due
    longer = "max_duration=6ep"
    whole = resume("three-sources", "ep2-ba12", "mail-later", THREE)
    left = resume("three-sources", "ep2-ba12", "mail-left", stay)
    assert left[0]["totals"]["rounds_trained"]["mail"] == sum(
        "mail" in drawn for drawn in draws(THREE)[:2]
    )
    back = resume("mail-left", "ep4-ba24", "mail-back", THREE, longer)
    schedule = RoundSchedule(THREE, 2, LOCAL_STEPS, SEED)
    later = sum("mail" in schedule.drawn(t) for t in (4, 5))
    earlier = sum("mail" in drawn for drawn in draws(THREE)[:2])
    assert later and earlier
    assert positions(back)["mail"] == (earlier + later) * LOCAL_STEPS * BATCH
    assert_same(learned(whole), learned(three))


def test_several_workers_do_not_finish_a_round_of_other_sources(prepared, three):
    leave_off(prepared, "three-sources", "ep0-ba4-rank0.pt", "two-in-mid-round")
    fleet = Fleet(2)
    options = ["run_name=two-in-mid-round", of(FOUR), ALLOWED, *RUN]
    with pytest.raises(AssertionError, match="only one worker can finish it: start one worker"):
        fleet.train(prepared, "dept_spec", *options, processes=2)
    fleet.close()


def test_held_out_text_may_join_where_its_tokens_are_those_of_all(prepared, fleet, resume):
    glob = ["algorithms.dept.compression={name: int8, block: 64}"]
    fleet.train(prepared, "dept_glob", "run_name=glob", of(THREE), *RUN, *glob, processes=1)
    four = (*THREE, "held")
    late = [*glob, "seed=11"]
    one = resume("glob", "ep1-ba6", "held-joins", four, *late, experiment="dept_glob")
    two = resume("glob", "ep1-ba6", "held-2", four, *late, experiment="dept_glob", processes=2)
    assert_same(learned(one), learned(two))
    assert "held" in summary(prepared, "glob")["held_out"]
    found = summary(prepared, "held-joins")
    assert {*found["sources"]} == {*four} and not found["held_out"]
    assert found == summary(prepared, "held-2")


def test_without_the_option_a_checkpoint_of_other_sources_is_refused(prepared, three):
    checkpoint = prepared / "runs/three-sources/checkpoints/ep1-ba6-rank0.pt"
    options = ["autoresume=false", f"load_path={checkpoint}", *RUN]
    with pytest.raises(ValueError, match=r"sources = .*or set algorithms.dept.allow_source_chang"):
        train(prepared, "dept_spec", "run_name=refused", of(FOUR), *options)
    fewer = [*options, "algorithms.dept.sources_per_round=1"]
    with pytest.raises(ValueError, match=r"sources_per_round = 2, .*or set algorithms.dept.allow"):
        train(prepared, "dept_spec", "run_name=refused", of(THREE), *fewer)


# --- as a user does it ----------------------------------------------------------------------------


def arguments(root, name, sources, *more):
    steady = ["scheduler.alpha_f=1.0", "scheduler.t_warmup=0ba"]  # of any duration the same
    small = [*overrides(root), *MPT, *DEPT, *steady, f"run_name={name}", of(sources), *more]
    return [str(REPOSITORY / "yamls/dept_spec.yaml"), *small]


def test_the_same_command_with_another_source_is_refused_until_it_is_allowed(prepared):
    commands = Commands(prepared)

    def log(name):
        return (prepared / f"{name}.log").read_text()

    first = arguments(prepared, "user", THREE, "max_duration=2ep")
    commands.run("user-first", TRAIN, first)
    more = arguments(prepared, "user", FOUR, "max_duration=4ep", "save_interval=2ba")
    with pytest.raises(AssertionError):
        commands.run("user-refused", TRAIN, more)
    (said,) = [line for line in log("user-refused").splitlines() if "holds a run with" in line]
    assert "train_loader.sources" in said
    assert "set algorithms.dept.allow_source_changes: true, so that sources join" in said
    shutil.copytree(prepared / "runs/user", prepared / "runs/unkilled")

    def later():
        return len(list((prepared / "runs/user/checkpoints").glob("ep[23]-*.pt"))) > 1

    assert commands.kill("user-killed", TRAIN, [*more, ALLOWED], 9, later) == -9
    said = "from round 3 on, the sources are manual, code, mail, tools (joined: tools; left: none)"
    assert said in log("user-killed")
    commands.run("user-resumed", TRAIN, [*more, ALLOWED])
    assert "joined: tools" not in log("user-resumed")
    unkilled = arguments(prepared, "unkilled", FOUR, "max_duration=4ep", "save_interval=2ba")
    commands.run("unkilled", TRAIN, [*unkilled, ALLOWED])
    assert summary(prepared, "user") == summary(prepared, "unkilled")
    lines, before = {}, 2 * len(THREE) * LOCAL_STEPS
    for name in ("user", "unkilled"):
        every = (prepared / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        lines[name] = [
            {key: value for key, value in line.items() if not re.search("second|time|wct", key)}
            for line in map(json.loads, every)
            if line["batch"] > before
        ]
    assert len(lines["user"]) > 20 and lines["user"] == lines["unkilled"]
    left = arguments(prepared, "user", FOUR[1:], "max_duration=5ep", ALLOWED)
    commands.run("user-left", TRAIN, left)
    folder = f"{prepared}/runs/user/checkpoints/sources/manual"
    assert f"the files of sources that left stay in {folder}" in log("user-left")
    assert {*summary(prepared, "user")["sources"]} == {"code", "mail", "tools"}
    assert (prepared / "runs/user/checkpoints/sources/manual").is_dir()
