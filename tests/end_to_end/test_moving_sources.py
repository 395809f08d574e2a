"""Sources that one worker trains after another: what they have learned goes with them."""

import json
import shutil
from types import SimpleNamespace

import icl_tasks
import pytest
from fleet import Fleet, assert_same, learned, summary
from omegaconf import OmegaConf
from refusals import refusal
from s3 import BUCKET, S3Server
from training import BATCH, LOCAL_STEPS, load

from dept.checkpoint.run_folder import folder_of
from dept.checkpoint.source_files import SourceFiles, states_among
from dept.errors import ConfigError, NotSaved
from dept.method.schedule import RoundSchedule
from dept.training import command, moves
from dept.training.run import Held

SOURCES = ("manual", "code", "mail", "tools")
ROUNDS = 7
HALF = ["algorithms.dept.sources_per_round=2", f"max_duration={ROUNDS}ep"]
FIVE = ["train_loader.sources=[manual,code,mail,tools,held]", "algorithms.dept.sources_per_round=3"]


def schedule(workers=2):
    return RoundSchedule(SOURCES, 2, LOCAL_STEPS, 17, workers)


def test_these_runs_have_sources_that_move_there_and_back():
    moving = [schedule().moving(t - 1, t) for t in range(1, ROUNDS)]
    assert moving[0] == {"mail": (1, 0)} and moving[4] == {"mail": (0, 1)}
    assert moving[5] == {"code": (0, 1)} and not any(moving[1:4])


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(3)
    yield fleet
    fleet.close()


def positions(results):
    """Of each source, from the worker that holds it; others have none."""
    every = [result["positions"] for result in results]
    assert all(sum(of[source] > 0 for of in every) <= 1 for source in every[0])
    return {source: sum(of[source] for of in every) for source in every[0]}


def logged(root, name):
    """What was logged of evaluations and of updates, by round; all workers log through one."""
    lines = map(json.loads, (root / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return {
        (line["epoch"], key): value
        for line in lines
        for key, value in line.items()
        if key.startswith(("eval/", "dept/cosine"))
        or key.endswith(("/update_norm", "/train_loss"))
        or "-shot/" in key
        or "gauntlet" in key
    }


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("experiment", "options", "workers"),
    [
        ("dept_spec", [*HALF, "algorithms.dept.inner_state=keep"], 2),
        ("dept_spec", [*HALF, "algorithms.dept.inner_state=reset"], 2),
        ("dept_trim", [*HALF, "model.tie_word_embeddings=false"], 2),
        ("dept_glob", HALF, 2),
        ("dept_spec", [*FIVE, "save_interval=2ep", "max_duration=3ep"], 3),
    ],
    ids=["spec-keep", "spec-reset", "trim", "glob", "spec-5"],
)
def test_one_worker_and_several_learn_the_same_bits(
    prepared, fleet, experiment, options, workers, request
):
    name = request.node.callspec.id
    runs = {1: f"{name}-1", workers: f"{name}-{workers}"}
    results = {
        count: fleet.train(prepared, experiment, f"run_name={run}", *options, processes=count)
        for count, run in runs.items()
    }
    assert_same(learned(results[workers]), learned(results[1]))
    assert positions(results[workers]) == positions(results[1])
    assert sum(positions(results[1]).values()) == results[1][0]["batches"] * BATCH
    assert summary(prepared, runs[workers]) == summary(prepared, runs[1])
    assert logged(prepared, runs[workers]) == logged(prepared, runs[1])
    if experiment == "dept_spec":  # none keeps what another holds
        held = [{n.split("/")[0] for n in r["tensors"]} - {"global"} for r in results[workers]]
        assert sum(map(len, held)) == len(set().union(*held)) >= len(SOURCES)
    folder = prepared / "runs" / runs[workers] / "checkpoints"
    assert not list(folder.rglob(".seen*")) and not list(folder.rglob(".writing*"))


@pytest.mark.end_to_end
def test_what_a_source_is_evaluated_on_goes_where_it_is(prepared, fleet, tmp_path):
    """Tasks with the embedding of ``mail``, and an evaluation before training, as well."""
    icl_tasks.write(tmp_path)
    options = [*HALF, "algorithms.dept.icl_source=mail", *icl_tasks.in_training(tmp_path)]
    found = {}
    for count in (1, 2):
        run = [f"run_name=tasks-{count}", "max_duration=6ep", "eval_first=true"]
        fleet.train(prepared, "dept_spec", *options, *run, processes=count)
        found[count] = logged(prepared, f"tasks-{count}")
    assert found[1] == found[2]
    for kind in ("-shot/", "gauntlet", "eval/mail/loss"):
        assert {epoch for epoch, key in found[1] if kind in key} >= {*range(1, 7)}


@pytest.mark.end_to_end
def test_states_that_only_moved_are_in_no_file_afterwards(prepared, fleet):
    """Checkpoints every third round: what moves in other rounds is not kept for any of them."""
    options = [*HALF, "save_interval=3ep", "save_num_checkpoints_to_keep=-1"]
    name = "every-third"
    whole = fleet.train(prepared, "dept_spec", f"run_name={name}", *options, processes=2)
    folder = prepared / "runs" / name / "checkpoints"
    files = SourceFiles(folder / "sources")
    states = {source: files.states(source) for source in SOURCES}
    assert {r for of in states.values() for r, _ in of} == {3, 6, ROUNDS}

    checkpoint = f"ep3-ba{3 * LOCAL_STEPS}-w2-rank0.pt"
    for count in (1, 2):
        again = f"{name}-{count}"
        left = prepared / "runs" / again / "checkpoints"
        shutil.copytree(folder / "sources", left / "sources")
        shutil.copy(folder / checkpoint, left)
        (left / "latest-rank0.pt").symlink_to(checkpoint)
        resumed = fleet.train(prepared, "dept_spec", f"run_name={again}", *options, processes=count)
        assert_same(learned(resumed), learned(whole))
        assert positions(resumed) == positions(whole)
        assert summary(prepared, again) == summary(prepared, name)

    # From another folder, which the run cannot leave its own sources in.
    other = [*options, "autoresume=false", f"load_path={folder / checkpoint}", "run_name=elsewhere"]
    resumed = fleet.train(prepared, "dept_spec", *other, processes=2)
    assert_same(learned(resumed), learned(whole))
    elsewhere = SourceFiles(prepared / "runs" / "elsewhere" / "checkpoints" / "sources")
    assert all(elsewhere.states(source) for source in SOURCES)


@pytest.mark.end_to_end
def test_a_run_that_keeps_one_checkpoint_keeps_what_it_needs_of_every_source(prepared, fleet):
    steady = ["scheduler.alpha_f=1.0", "scheduler.t_warmup=0ba"]  # of any duration the same
    one = [*steady, "save_num_checkpoints_to_keep=1", "save_interval=2ep", HALF[0]]
    whole = fleet.train(prepared, "dept_spec", *steady, *HALF, "run_name=steady", processes=1)
    for name, workers in {"first-two": (2, 1), "then-two": (1, 2)}.items():
        for count, rounds in zip(workers, (5, ROUNDS), strict=True):
            options = [*one, f"run_name={name}", f"max_duration={rounds}ep"]
            results = fleet.train(prepared, "dept_spec", *options, processes=count)
            files = SourceFiles(prepared / "runs" / name / "checkpoints" / "sources")
            states = {source: files.states(source) for source in SOURCES}
            assert all(of and min(of) >= (4, 0) for of in states.values()), states
        assert_same(learned(results), learned(whole))
        assert positions(results) == positions(whole)


@pytest.mark.end_to_end
def test_a_bucket_has_the_sources_of_whoever_trained_them_and_no_old_ones(
    prepared, fleet, tmp_path_factory, monkeypatch
):
    with S3Server() as server:
        server.upload(tmp_path_factory.mktemp("empty"), "")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        options = [*HALF, f"save_folder=s3://{BUCKET}/half", "run_name=half"]
        options += ["save_num_checkpoints_to_keep=2"]

        def train():
            plain = OmegaConf.to_container(load(prepared, "dept_spec", *options), resolve=True)
            assert command.look_into(folder_of(plain), plain, True) is None
            given = {"processes": 2, "environment": server.environment}
            results = fleet.train(prepared, "dept_spec", *options, **given)
            shutil.rmtree(prepared / "runs" / "half")
            return learned(results)

        def there():
            names = server.client.list_objects_v2(Bucket=BUCKET)["Contents"]
            return [entry["Key"].removeprefix("half/") for entry in names]

        whole = train()
        states = {source: states_among(there(), f"sources/{source}") for source in SOURCES}
        # The checkpoints of rounds 6 and 7 need one of before; that of 5 has just been removed.
        old = {source: [state for state in of if state <= (5, 0)] for source, of in states.items()}
        assert all(of for of in states.values())
        assert all(len(of) <= 1 for of in old.values()), old
        newest = next(name for name in there() if name.startswith(f"ep{ROUNDS}-"))
        server.client.delete_object(Bucket=BUCKET, Key=f"half/{newest}")
        assert_same(train(), whole)


@pytest.mark.end_to_end
@pytest.mark.parametrize("experiment", ["dept_spec", "dept_trim"])
def test_a_kill_in_mid_round_costs_nothing_whoever_resumes(prepared, fleet, experiment):
    """In rounds that ``mail`` has moved to; the other worker is at another local step."""
    options = [*HALF, "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    name = f"by-batch-{experiment}"
    whole = fleet.train(prepared, experiment, f"run_name={name}", *options, processes=2)
    folder = prepared / "runs" / name / "checkpoints"
    for round_index, step, others_step in ((1, 2, 1), (5, 1, 2)):
        checkpoint = f"ep{round_index}-ba{round_index * LOCAL_STEPS + step}-w2-rank0.pt"
        for count in (1, 2):
            again = f"{name}-{round_index}-{count}"
            left = prepared / "runs" / again / "checkpoints"
            shutil.copytree(folder / "sources", left / "sources")
            shutil.copy(folder / checkpoint, left)
            (left / "latest-rank0.pt").symlink_to(checkpoint)
            files = SourceFiles(left / "sources")
            for source in schedule().held_by(1, round_index):
                for state in files.states(source):
                    if state > (round_index, others_step):
                        files.remove(source, state)
            resumed = fleet.train(
                prepared, experiment, f"run_name={again}", *options, processes=count
            )
            assert_same(learned(resumed), learned(whole))
            assert positions(resumed) == positions(whole)
            assert summary(prepared, again) == summary(prepared, name)


def test_a_run_that_saves_nothing_is_refused(prepared, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    unsaved = [HALF[0], "save_folder=null", "autoresume=false"]
    said = refusal(prepared, capsys, monkeypatch, "dept_spec", *unsaved)
    assert "algorithms.dept.sampling is uniform" in said and "saves nothing" in said
    assert "set save_folder to a folder that all machines share" in said
    assert said.endswith("or algorithms.dept.sampling to stratified\n")


class Alone:
    """One worker of two, the other of which answers what the test lets it."""

    def __init__(self, *answers):
        self.count, self.leads, self.place = 2, True, SimpleNamespace(worker=0)
        self.answers = list(answers)

    def gather(self, value, *, stage):
        return [value, self.answers.pop(0)]

    def first_of_ranks(self, value):
        return value


def test_workers_that_do_not_see_each_others_files_are_refused(tmp_path):
    for blind, answers in {0: (".seen-elsewhere", False), 1: (".seen-here", True)}.items():
        (tmp_path / ".seen-here").touch()
        held, workers = Held(files=SourceFiles(tmp_path)), Alone(*answers)
        with pytest.raises(ConfigError, match=f"worker {blind} does not see .*sampling to strat"):
            moves.check_folder(SimpleNamespace(held=held, workers=workers))
        assert [path.name for path in tmp_path.iterdir()] == [".seen-here"]
    held, workers = Held(files=SourceFiles(tmp_path)), Alone(".seen-here", False)
    moves.check_folder(SimpleNamespace(held=held, workers=workers))


def test_a_disk_that_is_full_when_a_source_moves_ends_the_run_in_a_sentence(tmp_path):
    class Full(SourceFiles):
        def write(self, *_):
            raise OSError("No space left on device")

    run = SimpleNamespace(
        schedule=schedule(),
        held=Held(round_index=4, files=Full(tmp_path)),
        workers=Alone({"states": {}, "only_to_move": [], "failed": None}),
        state_of=lambda source: {},
    )
    with pytest.raises(NotSaved, match=r"mail could not be written \(No space left.*make room"):
        moves.follow(run, 5)
