"""What a run must not depend on, by the files that it leaves; and what it must depend on.

Each run is the command ``train.py``. Its newest checkpoint, the files of its sources and its
summary are compared bit for bit with those of the same run as it is by default.
"""

import json
import shutil
import signal

import pytest
import torch
from commands import TRAIN, Commands
from training import MPT, overrides

pytestmark = pytest.mark.end_to_end

STEPS, ROUNDS, PER_ROUND = 4, 3, 2
BATCHES = STEPS * PER_ROUND  # of a round, of one worker
WTE = "model.transformer.wte.weight"

DEPT = [f"algorithms.dept.local_steps={STEPS}", f"algorithms.dept.sources_per_round={PER_ROUND}"]
DEPT += ["global_train_batch_size=4", "algorithms.dept.outer_optimizer.name=nesterov"]
MIXED = [f"variables.local_steps={STEPS}", "variables.mixture_batch=8"]
YAMLS = {"dept_spec": DEPT, "dept_trim": DEPT, "std": MIXED}

# What is one machine's, one moment's or the name's.
OF_THE_MACHINE = ("timing", "peak_memory_bytes", "communication", "workers", "steps")
OF_A_SOURCE = ("slots", "position", "coding_error")
TOTALS = ("swap_seconds", "outer_step_seconds", "wait_seconds", "sent_bytes", "other_bytes")


class Runs:
    """Runs of ``train.py`` in one folder, each made once, and what they leave."""

    def __init__(self, root) -> None:
        self.root = root
        self.commands = Commands(root)
        self.made = set()

    def arguments(self, yaml, name, *more):
        given = [*overrides(self.root), *MPT, *YAMLS.get(yaml, MIXED), f"run_name={name}"]
        return [f"yamls/{yaml}.yaml", *given, f"max_duration={ROUNDS}ep", *more]

    def run(self, yaml, name, *more, processes=1):
        if name not in self.made:
            self.commands.run(name, TRAIN, self.arguments(yaml, name, *more), processes)
            self.made.add(name)
        return self.root / "runs" / name


@pytest.fixture(scope="module")
def runs(prepared):
    return Runs(prepared)


def left_by(folder):
    """What a run leaves, by name: tensors and numbers that nothing but its yaml and seed decide."""
    checkpoints = folder / "checkpoints"
    state = torch.load(checkpoints / "latest-rank0.pt", weights_only=False)["state"]
    found = {f"model/{name}": value for name, value in state["model"].items()}
    dept = dict(state["algorithms"]).get("Dept")
    if dept is not None:
        totals = {key: value for key, value in dept["totals"].items() if key not in TOTALS}
        found |= {"round": dept["round"], "outer": dept["outer_optimizer"], "totals": totals}
        found |= {"coding error": dept["coding_error"], "moments": dept["moments"]}
        for source in dept["identity"]["sources"]:
            files = (checkpoints / "sources" / source).glob("round*-step0.pt")
            newest = max(files, key=lambda path: int(path.name[5:].split("-")[0]), default=None)
            if newest is not None:
                kept = torch.load(newest, weights_only=False)
                found[f"sources/{source}"] = {k: kept[k] for k in OF_A_SOURCE}
    summary = json.loads((folder / "summary.json").read_text())
    return found | {"summary": {k: v for k, v in summary.items() if k not in OF_THE_MACHINE}}


def differences(ours, theirs, where=""):
    """Where two nested containers of tensors and numbers are not the same, bit for bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}, key=str):
            yield from differences(ours.get(key), theirs.get(key), f"{where}/{key}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield where
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        yield from differences(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    elif ours != theirs:
        yield where


def assert_same(ours, theirs):
    assert list(differences(left_by(ours), left_by(theirs))) == []


NOTHING = {
    "save at the end of rounds": [f"save_interval={BATCHES}ba"],
    "save within rounds": ["save_interval=3ba"],
    "save within and at the end": [f"save_interval={STEPS}ba"],
    "save every other round": ["save_interval=2ep"],
    "evaluate at the end of rounds": [f"eval_interval={BATCHES}ba"],
    "evaluate within rounds": ["eval_interval=3ba"],
    "evaluate and save at once": [f"eval_interval={STEPS}ba", f"save_interval={STEPS}ba"],
    "evaluate only at the end": [f"eval_interval={ROUNDS}ep"],
    "held-out text only at the end": [f"callbacks.source_metrics.held_out_interval={ROUNDS}ep"],
    "another logger": ["loggers.in_memory_logger={}"],
    "progress": ["progress_bar=true", "log_to_console=true", "callbacks.norms.interval=2"],
    "two workers": [],
}


# The workers of STD are Composer's: they average gradients, and the sum depends on their number.
CASES = [(y, c) for y in YAMLS for c in NOTHING if (y, c) != ("std", "two workers")]


@pytest.mark.parametrize(("yaml", "change"), CASES)
def test_a_run_does_not_depend_on(runs, yaml, change):
    """Nor on its name, nor on the other runs in the folder: these are all in one."""
    plain, name = runs.run(yaml, f"{yaml}-plain"), f"{yaml}-{list(NOTHING).index(change)}"
    processes = 2 if change == "two workers" else 1
    assert_same(runs.run(yaml, name, *NOTHING[change], processes=processes), plain)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("yaml", YAMLS)
def test_a_run_does_not_depend_on_a_kill(runs, yaml, number):
    plain, name = runs.run(yaml, f"{yaml}-plain"), f"{yaml}-{number.name}"
    arguments = runs.arguments(yaml, name, "save_interval=1ba")
    metrics = runs.root / "runs" / name / "metrics.jsonl"
    batches = BATCHES if yaml != "std" else STEPS

    def in_the_second_round():
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return sum("loss/train/total" in line for line in lines) >= batches + 2

    assert runs.commands.kill(name, TRAIN, arguments, number, in_the_second_round) != 0
    runs.commands.run(name, TRAIN, arguments)
    assert_same(runs.root / "runs" / name, plain)


def test_a_coded_run_does_not_depend_on_its_workers_or_a_kill(runs):
    coded = "algorithms.dept.compression={name: topk, block: 256, density: 0.05}"
    plain = runs.run("dept_trim", "coded", coded)
    assert_same(runs.run("dept_trim", "coded-2", coded, processes=2), plain)
    metrics = runs.root / "runs" / "coded-killed" / "metrics.jsonl"
    arguments = runs.arguments("dept_trim", "coded-killed", coded, "save_interval=1ba")

    def within_the_last_round():
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return sum("loss/train/total" in line for line in lines) >= 2 * BATCHES + STEPS + 1

    killed = runs.commands.kill(
        "coded-killed", TRAIN, arguments, signal.SIGKILL, within_the_last_round
    )
    assert killed != 0
    runs.commands.run("coded-killed", TRAIN, arguments)
    assert_same(runs.root / "runs" / "coded-killed", plain)
    found = set(differences(left_by(plain), left_by(runs.run("dept_trim", "dept_trim-plain"))))
    assert "/model/model.transformer.blocks.0.norm_1.weight" in found
    assert left_by(plain)["coding error"].keys() == {"", WTE}


@pytest.mark.parametrize("compression", ["none", "int8"])
def test_averaged_moments_do_not_depend_on_workers_or_a_kill(runs, compression):
    name, dept = f"averaged-{compression}", "algorithms.dept"
    averaged = [f"{dept}.inner_state=average", f"{dept}.compression.name={compression}"]
    averaged.append(f"{dept}.inner_state_interval={{exp_avg: 1, exp_avg_sq: 2}}")
    plain = runs.run("dept_trim", name, *averaged)
    assert_same(runs.run("dept_trim", f"{name}-2", *averaged, processes=2), plain)
    metrics = runs.root / "runs" / f"{name}-killed" / "metrics.jsonl"
    arguments = runs.arguments("dept_trim", f"{name}-killed", *averaged, "save_interval=1ba")

    def after_a_slot_of_the_last_round():
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return sum("loss/train/total" in line for line in lines) >= 2 * BATCHES + STEPS + 1

    killed = runs.commands.kill(
        f"{name}-killed", TRAIN, arguments, signal.SIGKILL, after_a_slot_of_the_last_round
    )
    assert killed != 0
    runs.commands.run(f"{name}-killed", TRAIN, arguments)
    assert_same(runs.root / "runs" / f"{name}-killed", plain)
    rounds = left_by(plain)["moments"]["rounds"]
    assert {int(each.max()) for each in rounds["exp_avg"].values()} == {3}
    assert {int(each.max()) for each in rounds["exp_avg_sq"].values()} == {2}
    found = set(differences(left_by(plain), left_by(runs.run("dept_trim", "dept_trim-plain"))))
    assert "/model/model.transformer.blocks.0.norm_1.weight" in found


def test_a_run_does_depend_on_its_seed(runs):
    for yaml in YAMLS:
        plain, other = (
            runs.run(yaml, f"{yaml}-plain"),
            runs.run(yaml, f"{yaml}-seed", "seed=18"),
        )
        found = set(differences(left_by(plain), left_by(other)))
        model = {f"/{key}" for key in left_by(plain) if key.startswith("model/")}
        assert len(found & model) > len(model) / 2, yaml


def test_the_name_of_a_source_changes_its_own_draws_and_no_others(runs, tmp_path):
    """All sources in one round: until it ends they know nothing of each other."""
    one = ["max_duration=1ep", "algorithms.dept.sources_per_round=4"]
    shutil.copytree(runs.root / "tokenizers", tmp_path / "tokenizers")
    shutil.copytree(runs.root / "data", tmp_path / "data")
    for folder in ("data/tiny", "tokenizers/tiny"):
        (tmp_path / folder / "code").rename(tmp_path / folder / "renamed")
    for path in (tmp_path / "data/tiny/corpus.json", *tmp_path.glob("data/*/renamed/*/stats.json")):
        renamed = path.read_text().replace('"code"', '"renamed"')
        path.write_text(renamed.replace("tokenizers/tiny/code", "tokenizers/tiny/renamed"))
    before = left_by(runs.run("dept_spec", "named", *one))
    renamed = Runs(tmp_path)
    after = left_by(renamed.run("dept_spec", "named", *one))
    for source in ("manual", "mail", "tools"):
        key = f"sources/{source}"
        assert list(differences(before[key], after[key])) == []
    private = [s["slots"]["private"] for s in (before["sources/code"], after["sources/renamed"])]
    assert set(differences(*private)) == {f"/{name}" for name in private[0]}
    assert before["sources/code"]["position"] == after["sources/renamed"]["position"]


def test_continued_pre_training_starts_from_an_embedding_and_batches_of_its_own(runs):
    """A rewind to what pre-training began with would flatter those that have a global one."""
    still = ["optimizer.lr=1e-12", "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    std = runs.run("std", "std-still", *still, "max_duration=1ep")
    more = [f"variables.checkpoint={std}/checkpoints", *still, "max_duration=1ep"]
    continued = [
        runs.run("continued", f"continued-{draw}", *more, f"variables.embedding_seed={draw}")
        for draw in range(2)
    ]

    def first(folder):
        (file,) = (folder / "checkpoints").glob("ep0-ba1-rank0.pt")
        return torch.load(file, weights_only=False)["state"]["model"]

    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss/train/total"] for line in lines if "loss/train/total" in line]

    began = [first(folder) for folder in (std, *continued)]
    embeddings = torch.stack([model.pop(WTE).flatten() for model in began])
    correlations = torch.corrcoef(embeddings) - torch.eye(3)
    assert float(correlations.abs().max()) < 0.05
    assert embeddings.std(dim=1).tolist() == pytest.approx([0.02] * 3, rel=0.05)  # emb_init_std
    for model in began[1:]:  # the same body
        for name, value in model.items():
            torch.testing.assert_close(value, began[0][name], atol=1e-9, rtol=0)
    assert losses(std) != losses(continued[0])
