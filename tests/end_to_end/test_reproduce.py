"""The comparison as a user starts it, on a corpus and a plan of one's own, and kills it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from training import REPOSITORY

pytestmark = pytest.mark.end_to_end

PLAN = """
corpora: {tiny: {unseen: [held]}}
seeds: [1]
overrides:
- max_seq_len=32
- variables.local_steps=3
- variables.mixture_batch=8
- model.d_model=32
- model.n_heads=2
- model.n_layers=2
- callbacks.norms.interval=1
methods:
  std_tau0: {yaml: std, baseline: true, learning_rate: 4.0e-3}
  spec: {yaml: dept_spec, learning_rate: 8.0e-3}
continued:
  cpt_random: {yaml: continued, methods: [std_tau0, spec]}
  cpt_merged: {yaml: continued_merged, methods: [spec]}
  plasticity: {yaml: plasticity, methods: [spec], overrides: [eval_interval=2ba]}
variations: {}
downstream:
  corpora: [tiny]
  tasks: [movies]
  methods: [spec]
  untrained: spec
  overrides: [max_duration=2ep, optimizer.lr=4.0e-3, token_dropout=0.0]
"""
RUNS = {
    "tiny-pretrain-std_tau0-s1",
    "tiny-pretrain-spec-s1",
    "tiny-cpt_random-std_tau0-s1",
    "tiny-cpt_random-spec-s1",
    "tiny-cpt_merged-spec-s1",
    "tiny-plasticity-spec-held-s1",
    "tiny-downstream-spec-movies-s1",
    "tiny-downstream-spec-movies-untrained-s1",
}


@pytest.fixture(scope="module")
def root(prepared):
    for entry in ("eval", "yamls"):
        if not (prepared / entry).exists():
            (prepared / entry).symlink_to(REPOSITORY / entry)
    (prepared / "plan.yaml").write_text(PLAN)
    words = ["the", "film", "was", "long", "and"]
    rows = [
        {"sentence": " ".join([words[n % 5], words[n // 5 % 5], ["bad", "good"][n % 2]])}
        | {"label": n % 2}
        for n in range(120)
    ]
    movies = prepared / "data" / "downstream" / "movies.jsonl"
    movies.parent.mkdir(exist_ok=True)
    movies.write_text("\n".join(map(json.dumps, rows)))
    return prepared


def start(root, *more):
    module = [sys.executable, "-m", "dept.evaluation.reproduce"]
    return subprocess.Popen(
        [*module, "--plan", "plan.yaml", "--jobs", "2", *more],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RANK": "0", "LOCAL_RANK": "0"},
    )


def finished(root):
    return {path.parent.name for path in (root / "runs").glob("tiny-*/summary.json")}


def test_a_killed_comparison_goes_on_where_it_was(root):
    first = start(root)
    children = psutil.Process(first.pid).children
    while not finished(root):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    left = children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = finished(root)
    assert done and done < RUNS
    psutil.wait_procs(left, timeout=600)
    assert not any(process.is_running() for process in left), "runs go on without their parent"
    written = {name: (root / "runs" / name / "summary.json").stat().st_mtime_ns for name in done}

    output, _ = (second := start(root)).communicate()
    assert second.returncode == 0, output
    assert "leaked" not in output and "Warning" not in output
    assert finished(root) == RUNS
    for name, time_ns in written.items():
        assert (root / "runs" / name / "summary.json").stat().st_mtime_ns == time_ns
    results = root / "results"
    assert {path.stem for path in (results / "runs").glob("*.json")} == RUNS
    told = (results / "tables.md").read_text()
    assert "tiny, CPT, random, 6 steps, perplexity, sources" in told and "SPEC" in told
    assert (results / "index.html").is_file() and list((results / "plots").glob("*plasticity*"))
    unseen = json.loads((results / "runs" / "tiny-plasticity-spec-held-s1.json").read_text())
    assert unseen["curves"]["steps"] == [2, 4, 6]
    assert "tiny, fine-tuning" in told and "no pre-training" in told and "bag of words" in told
    name = "tiny-downstream-spec-movies-s1"
    kept = json.loads((results / "runs" / f"{name}.json").read_text())
    config = (root / "runs" / name / "config.yaml").read_text()
    assert kept["metric"] == "accuracy" and "runs/tiny-cpt_random-spec-s1/checkpoints" in config


def test_a_finished_run_of_another_plan_is_not_taken(root):
    (root / "plan.yaml").write_text(PLAN.replace("learning_rate: 8.0e-3", "learning_rate: 7.0e-3"))
    output, _ = (process := start(root, "--list")).communicate()
    assert process.returncode == 2
    assert "runs/tiny-pretrain-spec-s1 holds a run with optimizer.lr = 0.008" in output


def test_a_run_that_fails_is_named_and_the_others_are_done(root):
    plan = PLAN.replace("yaml: dept_spec,", "yaml: dept_nothing,").replace(
        "seeds: [1]", "seeds: [2]"
    )
    (root / "plan.yaml").write_text(plan.replace("cpt_merged", "cpt_pretrained"))
    output, _ = (process := start(root, "--results", "others")).communicate()
    assert process.returncode == 1
    assert "tiny-pretrain-spec-s2 failed: see runs/tiny-pretrain-spec-s2/log.txt" in output
    assert (
        "dept_nothing.yaml does not exist"
        in (root / "runs/tiny-pretrain-spec-s2/log.txt").read_text()
    )
    assert "tiny-cpt_random-spec-s2" in output
    assert (root / "others/runs/tiny-cpt_random-std_tau0-s2.json").is_file()


# Stops a comparison when one of its runs has written a checkpoint
STOP = """
import sys
from pathlib import Path
from dept.data.corpus import read_corpus
from dept.evaluation.reproduce import runner
from dept.evaluation.reproduce.jobs import jobs
from dept.evaluation.reproduce.plan import read_plan

wanted = jobs(read_plan("gpu.yaml"), {"tiny": read_corpus(Path("."), "tiny").sources})
is_over = lambda: any(Path("runs").glob("tiny-pretrain-*-s17/checkpoints/ep*.pt"))
failed, stopped = runner.run(wanted, set(), 2, is_over, grace=600)
print([job.name for job in failed], [job.name for job in stopped])
"""


def test_the_plan_for_one_gpu_runs_in_parts(root):
    """With the shape of everything made small; the rest of the plan is as it is."""
    plan = yaml.safe_load((REPOSITORY / "eval" / "gpu.yaml").read_text())
    plan["corpora"] = {"tiny": {"unseen": [], "dept": ["algorithms.dept.sources_per_round=2"]}}
    small = ["model.d_model=32", "model.n_heads=2", "model.n_layers=2", "max_seq_len=32"]
    small += ["variables.local_steps=30", "variables.worker_batch=4", "variables.mixture_batch=4"]
    plan["overrides"] = [*plan["overrides"], *small]
    cpt = plan["continued"]["cpt_random"]
    assert {m["learning_rate"] for m in plan["methods"].values()} == {1e-3}
    assert "optimizer.lr=1.0e-3" in cpt["overrides"] and cpt["draws"] == 3
    cpt |= {"draws": 1, "overrides": [*cpt["overrides"], "variables.local_steps=5"]}
    (root / "gpu.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    given = ["--plan", "gpu.yaml", "--results", "on_gpu", "--jobs", "2"]

    output, _ = (none := start(root, *given, "--minutes", "0")).communicate()
    assert none.returncode == 0 and "6 of 6 runs are left: the same command" in output, output
    part = subprocess.run([sys.executable, "-c", STOP], cwd=root, capture_output=True, text=True)
    assert part.returncode == 0, part.stderr
    failed, stopped = part.stdout.split("] [")
    assert failed == "[" and "tiny-pretrain-glob-s17" in stopped, part.stdout
    begun = [path.parents[1] for path in root.glob("runs/tiny-pretrain-*-s17/checkpoints/ep*.pt")]
    assert any(not (folder / "summary.json").exists() for folder in begun)  # these resume
    output, _ = (rest := start(root, *given)).communicate()
    assert rest.returncode == 0 and "are left" not in output, output
    found = {path.stem for path in (root / "on_gpu" / "runs").glob("*.json")}
    assert found == {
        name
        for m in plan["methods"]
        for name in (f"tiny-pretrain-{m}-s17", f"tiny-cpt_random-{m}-s17-d0")
    }
    assert "SPEC" in (root / "on_gpu" / "tables.md").read_text()
