"""What the comparison runs, and what it keeps of a run."""

import json

import pytest

from dept.options import ConfigError
from eval.plan import Job, jobs, read_plan
from eval.records import record
from eval.reproduce import PLAN

SOURCES = {"multilingual": ("en", "it"), "multidomain": ("python", "bible")}


def test_the_plan_of_the_repository_covers_the_protocol():
    """At equal steps, the paper's comparison, every method on both corpora with two seeds."""
    plan = read_plan(PLAN)
    planned = jobs(plan, SOURCES)
    names = [job.name for job in planned]
    assert len(set(names)) == len(names)
    temperatures = {"std_steps", "std_steps_tau03", "std_steps_tau1"}
    main = {*temperatures, "std_tau0", "act_steps", "glob", "trim", "spec", "spec_opt"}
    for corpus in SOURCES:
        for seed in (17, 18):
            here = [job for job in planned if (job.corpus, job.seed) == (corpus, seed)]
            for stage in ("pretrain", "cpt_random"):
                assert main <= {job.method for job in here if job.stage == stage}
            pretrained = {job.method for job in here if job.stage == "cpt_pretrained"}
            assert pretrained >= {*temperatures, "std_tau0", "glob", "trim"}
            assert not pretrained & {"act_steps", "spec", "spec_opt"}
    tuned = [job for job in planned if job.stage == "downstream"]
    assert {job.after for job in tuned} <= {j.name for j in planned if j.stage == "cpt_random"}
    assert {"glob", "trim", "spec", "spec_opt", "std_tau0"} <= {job.method for job in tuned}
    assert len([job for job in tuned if "init=random" in job.overrides]) == 1
    for number, job in enumerate(planned):
        assert job.after is None or job.after in names[:number]
        if job.after is not None:
            assert any(f"runs/{job.after}/checkpoints" in override for override in job.overrides)


def test_a_model_for_each_source_is_gone_on_from_for_each():
    planned = jobs(read_plan(PLAN), SOURCES)
    isolated = [j for j in planned if j.method == "isolated" and j.corpus == "multilingual"]
    assert {(j.stage, j.source) for j in isolated} == {
        (stage, source) for stage in ("pretrain", "cpt_random") for source in ("en", "it")
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpora: {}\nsedes: [1]", "no option 'sedes': did you mean seeds"),
        ("methods: {std: {yaml std: x: y}}", "cannot be read: while parsing a flow mapping"),
        ("- std", "is not a mapping of keys"),
        ("methods: {std: {yml: std}}", "methods.std has no option 'yml'"),
        (
            "{corpora: {a: {unseen: []}}, seeds: [], continued: {}, variations: {}, "
            "methods: {std: {yaml: std, learning_rate: 1.0, corpora: [b]}}}",
            "methods.std is for corpus 'b', which is not in corpora: it may be a",
        ),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_a_stage_that_no_table_knows_is_refused(tmp_path):
    text = PLAN.read_text().replace("cpt_random:", "cpt_radnom:")
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match="'cpt_radnom' is no stage"):
        read_plan(tmp_path / "plan.yaml")


def test_a_setting_that_goes_on_from_nothing_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        PLAN.read_text().replace("after: half the rate", "after: x")
    )
    with pytest.raises(ConfigError, match=r"comes after 'x', which is not before it"):
        jobs(read_plan(tmp_path / "plan.yaml"), SOURCES)


def test_a_record_has_curves_and_norms_over_sequential_steps(tmp_path):
    """Two rounds of two sources of two steps: batches 1 2 | 3 4 of a round are steps 1 2 | 1 2."""
    evaluation = {"loss": 1.0, "perplexity": 2.0, "bits_per_byte": 3.0, "unigram_ce": 4.0}
    summary = {
        "tokens": 800, "steps": 8, "rounds": 2, "local_steps": 2,
        "sources": {"en": {"eval": evaluation}}, "held_out": {}, "average": evaluation,
        "communication": {}, "timing": {},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"batch": batch, "norm/activations": batch, "norm/body": 1.0, "norm/embedding": 1.0}
        for batch in range(1, 9)
    ]
    for batch in (4, 8):
        figures = {f"eval/{n}/{k}": batch for n in ("average", "en") for k in evaluation}
        lines.append({"batch": batch} | figures)
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.yaml").write_text("optimizer: {lr: 0.5}")
    job = Job("run", "c", "pretrain", "spec", 1, "y", ())
    kept = record(job, tmp_path)
    assert kept["learning_rate"] == 0.5
    assert kept["curves"]["tokens"] == [400, 800] and kept["curves"]["steps"] == [2, 4]
    assert kept["curves"]["average"]["loss"] == [4, 8]
    assert kept["curves"]["sources"]["en"]["perplexity"] == [4, 8]
    assert kept["norms"]["steps"] == [1, 2, 3, 4]
    assert kept["norms"]["activations"] == [2.0, 3.0, 6.0, 7.0]  # of both sources
