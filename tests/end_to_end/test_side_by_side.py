"""The real trainer in several processes: any number of workers, the same numbers."""

import json
import shutil

import icl_tasks
import numpy as np
import pytest
import torch
from fleet import Fleet, assert_same, learned, summary
from omegaconf import OmegaConf
from s3 import BUCKET, S3Server
from training import BATCH, LOCAL_STEPS, ROUNDS, load

from dept.checkpoint.run_folder import folder_of, numbered_checkpoints
from dept.checkpoint.source_files import SourceFiles
from dept.costs.transport import outer_step_bytes
from dept.data.corpus import read_corpus
from dept.method.schedule import RoundSchedule
from dept.training import command

pytestmark = pytest.mark.end_to_end

SOURCES = ("manual", "code", "mail", "tools")
LEARNED = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
UNTIED = ["model.tie_word_embeddings=false"]
WTE = "model.transformer.wte.weight"
NESTEROV = ["algorithms.dept.outer_optimizer.name=nesterov"]
PER_ROUND = 4 * LOCAL_STEPS
INTERVAL = "algorithms.dept.inner_state_interval={exp_avg: 2, exp_avg_sq: 3}"
HALF = ["algorithms.dept.sources_per_round=2"]


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(4)
    yield fleet
    fleet.close()


@pytest.mark.parametrize(
    ("experiment", "options", "processes"),
    [
        ("dept_spec", NESTEROV + LEARNED + UNTIED, (1, 2, 4)),
        ("dept_spec_opt", [], (1, 2)),
        ("dept_trim", UNTIED + HALF, (1, 2)),
        ("dept_trim", [*LEARNED, "algorithms.dept.inner_state=reset"], (1, 4)),
        ("dept_glob", ["algorithms.dept.weighting=tokens"], (1, 2)),
        ("dept_trim", [*HALF, "algorithms.dept.inner_state=average", INTERVAL], (1, 2)),
        ("dept_spec_llama", ["model.config_overrides.attention_dropout=0.1"], (1, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_number_of_workers_learns_the_same_bits(
    prepared, fleet, experiment, options, processes
):
    results, summaries = {}, {}
    for count in processes:
        name = f"{count}-{experiment}-{len(''.join(options))}"
        results[count] = fleet.train(
            prepared, experiment, f"run_name={name}", *options, processes=count
        )
        summaries[count] = summary(prepared, name)
        assert_same(learned(results[count]), learned(results[processes[0]]))
        assert summaries[count] == summaries[processes[0]]
        found = json.loads((prepared / "runs" / name / "summary.json").read_text())
        assert found["workers"] == count and len(found["timing"]["wait_seconds"]) == count
        sent = found["communication"]["sent_bytes"]
        exchanges = [1, 2, 2] if INTERVAL in options else [1, 1, 1]  # of each round
        assert sent == cost(prepared, results[count], experiment, count, exchanges)


def cost(root, results, experiment, count, exchanges):
    """Bytes of all outer steps, by the formula; ``exchanges`` counts parameters and moments."""
    corpus = read_corpus(root, "tiny")
    totals, slots = results[0]["totals"], results[0]["slots_per_worker"]
    schedule = RoundSchedule(SOURCES, count * slots, LOCAL_STEPS, 17, count)
    assert sum(totals["rounds_trained"].values()) == ROUNDS * schedule.sources_per_round
    shared = {
        name.removeprefix("global/"): value.shape
        for name, value in results[0]["tensors"].items()
        if name.startswith("global/")
    }
    rows = {
        name: shape
        for name, shape in shared.items()
        if experiment == "dept_trim" and shape[0] == 1200
    }
    averaged = {name: shape for name, shape in shared.items() if name not in rows}
    return sum(
        exchanges[t]
        * outer_step_bytes(
            averaged,
            rows,
            [
                np.unique(
                    np.concatenate(
                        [corpus.source(s).local_vocabulary() for s in schedule.slots_of(w, t)]
                    )
                )
                for w in range(count)
            ],
            slots_per_worker=slots,
        )
        for t in range(ROUNDS)
    )


@pytest.mark.parametrize("experiment", ["dept_spec", "dept_trim"])
def test_a_checkpoint_of_two_workers_goes_on_with_any_number(prepared, fleet, experiment):
    """In mid-round too, where one worker is further on than the other."""
    options = [*NESTEROV, "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    name = f"two-{experiment}"
    whole = fleet.train(prepared, experiment, f"run_name={name}", *options, processes=2)
    folder = prepared / "runs" / name / "checkpoints"
    per_round = 2 * LOCAL_STEPS
    for batch_in_round, other_is_at in ((LOCAL_STEPS + 1, ("mail", 2)), (1, ("tools", 1))):
        batch = per_round + batch_in_round
        checkpoint = f"ep1-ba{batch}-w2-rank0.pt"
        for count in (1, 2, 4):
            again = f"from-two-{experiment}-{batch}-{count}"
            left = prepared / "runs" / again / "checkpoints"
            shutil.copytree(folder / "sources", left / "sources")
            shutil.copy(folder / checkpoint, left)
            (left / "latest-rank0.pt").symlink_to(checkpoint)
            forget(SourceFiles(left / "sources"), 1, other_is_at)
            resumed = fleet.train(
                prepared, experiment, f"run_name={again}", *options, processes=count
            )
            assert_same(learned(resumed), learned(whole))
            assert summary(prepared, again) == summary(prepared, name)
            per_worker = ROUNDS * LOCAL_STEPS * len(SOURCES) // count
            assert {result["batches"] for result in resumed} == {per_worker}


def forget(files, round_index, newest):
    """Let the second worker have died at a local step of one of its sources."""
    source, step = newest
    for name in ("mail", "tools"):
        for r, s in files.states(name):
            is_later = (name, s) > (source, step) if r == round_index else r > round_index
            if is_later and (r, s) != (round_index, 0):
                (files.folder / name / f"round{r}-step{s}.pt").unlink()


def test_ranks_of_a_worker_share_its_batch_and_average_gradients(prepared, fleet):
    """Two workers of two ranks against two of one: the same but for the order of two sums."""
    # With eps 1e-8 a gradient that is zero but for rounding moves its parameter either way.
    options = [*NESTEROV, *UNTIED, "save_interval=2ba", "optimizer.eps=1e-4"]
    single = fleet.train(prepared, "dept_spec", "run_name=ranks-1", *options, processes=2)
    options += ["algorithms.dept.ranks_per_worker=2"]
    double = fleet.train(prepared, "dept_spec", "run_name=ranks-2", *options, processes=4)
    ours, theirs = learned(double), learned(single)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=5e-5, rtol=0, err_msg=name)
    for first, second in (double[:2], double[2:]):
        assert_same(first["tensors"], second["tensors"])
    positions = ROUNDS * LOCAL_STEPS * BATCH
    assert all(r["positions"]["manual"] in (0, positions) for r in double)
    alone = fleet.train(prepared, "dept_spec", *options, "run_name=ranks-2-alone", processes=2)
    assert_same(learned(alone), ours)  # one worker of two ranks
    found, expected = (summary(prepared, f"ranks-{n}") for n in (2, 1))
    assert found["tokens"] == expected["tokens"] and found["steps"] == expected["steps"]
    assert found["average"]["loss"] == pytest.approx(expected["average"]["loss"], abs=1e-4)

    folder = prepared / "runs" / "ranks-2" / "checkpoints"
    *_, newest = (path for epoch, _, path in numbered_checkpoints(folder) if epoch == 2)
    load = ["autoresume=false", f"load_path={newest}", "run_name=ranks-2-again"]
    resumed = fleet.train(prepared, "dept_spec", *options, *load, processes=4)
    assert_same(learned(resumed), ours)


@pytest.mark.parametrize(
    ("experiment", "more", "fsdp"),
    [("dept_spec", UNTIED, "{}"), ("dept_trim", [], "{activation_checkpointing: true}")],
)
def test_ranks_of_a_worker_share_the_model(prepared, fleet, experiment, more, fsdp):
    """One worker of four ranks, each with a quarter of each parameter, against one of one rank."""
    options = [*NESTEROV, *more, "save_interval=2ba", "optimizer.eps=1e-4", "max_duration=2ep"]
    options += ["global_train_batch_size=4"]
    name = f"whole-{experiment}"
    single = fleet.train(prepared, experiment, f"run_name={name}", *options, processes=1)
    options += ["algorithms.dept.ranks_per_worker=4", f"fsdp_config={fsdp}"]
    name = f"sharded-{experiment}"
    sharded = fleet.train(prepared, experiment, f"run_name={name}", *options, processes=4)
    ours, theirs = learned(sharded), learned(single)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=5e-5, rtol=0, err_msg=name)
    found, expected = (summary(prepared, f"{n}-{experiment}") for n in ("sharded", "whole"))
    assert found["average"]["loss"] == pytest.approx(expected["average"]["loss"], abs=1e-4)

    folder = prepared / "runs" / f"sharded-{experiment}" / "checkpoints"
    *_, newest = (path for epoch, _, path in numbered_checkpoints(folder) if epoch == 1)
    load = ["autoresume=false", f"load_path={newest}", f"run_name=sharded-{experiment}-again"]
    resumed = fleet.train(prepared, experiment, *options, *load, processes=4)
    assert_same(learned(resumed), ours)


def test_workers_fetch_what_they_read_from_a_remote_address(prepared, fleet, tmp_path):
    """Four processes on an empty folder, two to a worker, within a limit that holds a block."""
    options = ["algorithms.dept.ranks_per_worker=2", "train_loader.block_shards=1"]
    local = fleet.train(prepared, "dept_trim", "run_name=local", *options, processes=4)
    remote = [f"train_loader.remote={prepared}", "train_loader.cache_limit=400000"]
    fetched = fleet.train(tmp_path, "dept_trim", "run_name=remote", *options, *remote, processes=4)
    assert_same(learned(fetched), learned(local))
    assert summary(tmp_path, "remote") == summary(prepared, "local")
    shards = [
        path.relative_to(tmp_path) for path in tmp_path.glob("data/*/*/global/train/**/*.mds")
    ]
    assert {path.parts[2] for path in shards} == {*SOURCES}
    assert not [path for path in tmp_path.rglob(".fetch*")]


def test_dropout_does_not_depend_on_who_trains_what(prepared, fleet):
    options = ["model.resid_pdrop=0.2", "model.emb_pdrop=0.1"]
    one = fleet.train(prepared, "dept_glob", "run_name=dropout-1", *options, processes=1)
    four = fleet.train(prepared, "dept_glob", "run_name=dropout-4", *options, processes=4)
    plain = fleet.train(prepared, "dept_glob", "run_name=dropout-0", processes=1)
    assert_same(learned(four), learned(one))
    name = "global/model.transformer.wte.weight"
    assert not np.array_equal(learned(one)[name], learned(plain)[name])


def test_tasks_of_any_worker_are_told_of_by_the_first(prepared, fleet, tmp_path):
    """``tools`` belongs to the last worker, which logs nothing itself."""
    options = ["algorithms.dept.icl_source=tools", *icl_tasks.in_training(tmp_path)]
    icl_tasks.write(tmp_path)
    told = {}
    for count in (1, 2):
        name = f"{count}-tasks"
        fleet.train(prepared, "dept_spec", f"run_name={name}", *options, processes=count)
        lines = (prepared / "runs" / name / "metrics.jsonl").read_text().splitlines()
        told[count] = {
            (line["epoch"], key): value
            for line in map(json.loads, lines)
            for key, value in line.items()
            if "-shot/" in key or "gauntlet" in key
        }
    assert told[1] == told[2] and len(told[1]) == ROUNDS * 5  # three tasks, a category, an average


def test_workers_go_on_from_a_bucket_that_each_has_sent_its_sources_to(
    prepared, fleet, tmp_path_factory, monkeypatch
):
    with S3Server() as server:
        server.upload(tmp_path_factory.mktemp("empty"), "")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        options = [f"save_folder=s3://{BUCKET}/shared", "run_name=shared"]
        options += ["save_num_checkpoints_to_keep=-1"]

        def goes_on(processes):
            plain = OmegaConf.to_container(load(prepared, "dept_spec", *options), resolve=True)
            assert command.look_into(folder_of(plain), plain, True) is None
            results = fleet.train(
                prepared,
                "dept_spec",
                *options,
                processes=processes,
                environment=server.environment,
            )
            shutil.rmtree(prepared / "runs" / "shared")  # the next ones are other machines
            return learned(results)

        expected = goes_on(2)
        sent = [key.removeprefix("shared/") for method, key in server.requests if method == "PUT"]
        for at in range(1, ROUNDS + 1):
            checkpoint = next(i for i, n in enumerate(sent) if n.startswith(f"ep{at}-"))
            for source in SOURCES:
                assert f"sources/{source}/round{at}-step0.pt" in sent[:checkpoint]
        for processes in (2, 1):
            newest = max(n for n in sent if n.startswith(f"ep{ROUNDS}-") and n.endswith(".pt"))
            server.client.delete_object(Bucket=BUCKET, Key=f"shared/{newest}")
            assert_same(goes_on(processes), expected)
            sent = [key.removeprefix("shared/") for _, key in server.requests]


POISON = [
    "code_paths=[tests/helpers/poison.py]",
    "save_interval=1ba",
    "save_num_checkpoints_to_keep=-1",
]
NAN = "callbacks.poison={what: loss, by: nan, source: code, round: 1, step: 1}"


def test_a_loss_that_is_nan_is_left_out_by_any_number_of_workers(prepared, fleet):
    """The average is that of the other sources; resumed behind the fault, too."""
    name, summaries, results = "poisoned", {}, {}
    for count in (1, 2, 4):
        run = f"{name}-{count}"
        results[count] = fleet.train(
            prepared, "dept_trim", f"run_name={run}", *POISON, NAN, processes=count
        )
        summaries[count] = summary(prepared, run)
        assert_same(learned(results[count]), learned(results[1]))
        assert summaries[count] == summaries[1]
    (fault,) = summaries[1]["left_out"]
    assert (fault["source"], fault["round"], fault["step"]) == ("code", 2, 2)
    assert fault["why"] == "its loss was nan at local step 2" and len(fault["samples"]) == BATCH
    first = (LOCAL_STEPS + 1) * BATCH
    assert fault["positions"] == [first, first + BATCH - 1]
    lines = (prepared / "runs" / f"{name}-2" / "metrics.jsonl").read_text().splitlines()
    told = [line["dept/left_out"] for line in map(json.loads, lines) if "dept/left_out" in line]
    assert told == [0, 1, 0]

    folder = prepared / "runs" / f"{name}-1" / "checkpoints"
    files, done = SourceFiles(folder / "sources"), (1, LOCAL_STEPS)
    vocabulary = read_corpus(prepared, "tiny")
    before, after = theta(folder, 1), theta(folder, 2)
    totals = {key: np.zeros_like(value, dtype=np.float64) for key, value in after.items()}
    counts = {
        key: np.zeros((len(value),) + (1,) * (value.ndim - 1)) for key, value in after.items()
    }
    # The last slot ends with its round, so that its local model is in no file: another is the last
    # in this run, which must learn the same for all that.
    order, run = "train_loader.sources=[tools,manual,code,mail]", f"{name}-order"
    arguments = (f"run_name={run}", *POISON, NAN, order)
    assert_same(
        learned(fleet.train(prepared, "dept_trim", *arguments, processes=1)), learned(results[1])
    )
    others = SourceFiles(prepared / "runs" / run / "checkpoints" / "sources")
    for source in SOURCES:
        local = (others if source == "tools" else files).read(source, *done)["local_model"]
        assert (local is None) == (source == "code")
        for key, value in (local or {}).items():
            rows = slice(None)
            if len(value) != len(after[key]):
                rows = vocabulary.source(source).local_vocabulary()
            totals[key][rows] += value.numpy()
            counts[key][rows] += 1
    for key, value in after.items():
        mean = totals[key] / np.maximum(counts[key], 1)
        expected = np.where(counts[key] > 0, mean, before[key]).astype(np.float32)
        assert np.array_equal(value, expected), key
    kept = (counts[WTE] == 0).sum()
    assert 0 < kept < 1200  # rows that only the source left out holds, or none

    state = {r: files.read("code", r, 0) for r in (1, 2)}
    for key, inner in state[1]["slots"]["inner"].items():
        for entry, value in inner.items():
            assert torch.equal(state[2]["slots"]["inner"][key][entry], value)
    assert state[2]["position"] == state[1]["position"] + LOCAL_STEPS * BATCH

    checkpoint = f"ep1-ba{PER_ROUND + LOCAL_STEPS + 3}-rank0.pt"
    left = prepared / "runs" / "poisoned-again" / "checkpoints"
    shutil.copytree(folder / "sources", left / "sources")
    shutil.copy(folder / checkpoint, left)
    (left / "latest-rank0.pt").symlink_to(checkpoint)
    for source in SOURCES:
        for r, s in files.states(source):
            if (r, s) > (1, LOCAL_STEPS if source in ("manual", "code") else 0):
                (left / "sources" / source / f"round{r}-step{s}.pt").unlink()
    again = ["run_name=poisoned-again", *POISON]
    resumed = fleet.train(prepared, "dept_trim", *again, processes=2)
    assert_same(learned(resumed), learned(results[1]))
    assert summary(prepared, "poisoned-again") == summaries[1]


def theta(folder, round_index):
    """The global parameters that a round starts from, in the checkpoint of its first batch."""
    path = folder / f"ep{round_index}-ba{round_index * PER_ROUND + 1}-rank0.pt"
    model = torch.load(path, weights_only=False)["state"]["model"]
    return {key: value.numpy() for key, value in model.items()}


def test_an_update_that_is_an_outlier_is_left_out_and_a_worker_may_have_none_left(prepared, fleet):
    unsaved = ["save_folder=null", "autoresume=false"]
    scaled = "callbacks.poison={what: weights, by: 50, source: %s, round: 2, step: 1}"
    results, found = {}, {}
    for count in (1, 2):
        run = f"scaled-{count}"
        options = [*unsaved, *POISON[:1], scaled % "mail", f"run_name={run}"]
        results[count] = fleet.train(prepared, "dept_spec", *options, processes=count)
        found[count] = summary(prepared, run)
        assert_same(learned(results[count]), learned(results[1]))
        assert found[count] == found[1]
    (fault,) = found[1]["left_out"]
    assert (fault["source"], fault["round"], fault["step"]) == ("mail", 3, None)
    assert "more than algorithms.dept.outlier_multiple = 10" in fault["why"]
    assert fault["positions"] == [2 * LOCAL_STEPS * BATCH, 3 * LOCAL_STEPS * BATCH - 1]

    unsaved += ["scheduler.alpha_f=1.0", "scheduler.t_warmup=0ba"]  # of any duration the same
    every = [*unsaved, *POISON[:1], scaled % "null", "run_name=all-scaled"]
    void = learned(fleet.train(prepared, "dept_spec", *every, processes=2))
    assert len(summary(prepared, "all-scaled")["left_out"]) == len(SOURCES)
    short = [*unsaved, "run_name=two-rounds", "max_duration=2ep"]
    assert_same(void, learned(fleet.train(prepared, "dept_spec", *short, processes=2)))

    stop = [*every, "run_name=stopped", "algorithms.dept.faults=stop"]
    with pytest.raises(AssertionError, match=r"NumericalFault: source manual in round 3: its upd"):
        fleet.train(prepared, "dept_spec", *stop, processes=1)
