"""What the comparison runs, and what it keeps of a run."""

import json
import re

import pytest
import yaml
from training import REPOSITORY

from dept.config import extends
from dept.errors import ConfigError
from dept.evaluation.reproduce.jobs import Job, jobs
from dept.evaluation.reproduce.plan import PLAN, read_plan
from dept.evaluation.reproduce.records import agreement, record

SOURCES = {"multilingual": ("en", "it"), "multidomain": ("python", "bible")}


STEPS_OF_DEPT = ("std_steps", "std_steps_tau03", "std_steps_tau1", "act_steps")
TOKENS_OF_DEPT = ("std_tau0", "act")
DEPT = ("glob", "trim", "spec", "spec_opt")
SMALL = """
corpora: {a: {unseen: [x]}}
seeds: [1]
methods: {std: {yaml: std, baseline: true, learning_rate: 1.0}}
continued: {}
variations: {}
"""


@pytest.fixture(scope="module")
def planned():
    return jobs(read_plan(PLAN), SOURCES)


def planned_by(tmp_path, **sections):
    """The jobs of a small plan with other sections."""
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(yaml.safe_load(SMALL) | sections))
    return jobs(read_plan(tmp_path / "plan.yaml"), {"a": ("en", "it")})


def config_of(job):
    return extends.resolve(extends.load(REPOSITORY / job.yaml, job.overrides))


def steps_of(config):
    return int(config["max_duration"].removesuffix("ep")) * config["variables"]["local_steps"]


@pytest.mark.parametrize("corpus", SOURCES)
@pytest.mark.parametrize("seed", (17, 18))
def test_every_method_is_continued_from_three_random_embeddings_for_80_and_320_steps(
    planned, corpus, seed
):
    here = [job for job in planned if (job.corpus, job.seed) == (corpus, seed)]
    methods = {*STEPS_OF_DEPT, *DEPT, "std_tau0"}
    if corpus == "multilingual":
        methods.add("act")
    assert {job.method for job in here if job.stage == "pretrain"} == methods
    for stage, steps in (("cpt_random", 80), ("cpt_random_long", 320)):
        for method in methods:
            runs = [job for job in here if (job.stage, job.method) == (stage, method)]
            assert len(runs) >= 3 and {job.draw for job in runs} == set(range(len(runs)))
            for job in runs:
                config = config_of(job)
                assert steps_of(config) == steps
                assert config["callbacks"]["start_from"]["embedding"] == "random"
                assert config["callbacks"]["start_from"]["embedding_seed"] == job.draw
                assert job.after == f"{corpus}-pretrain-{method}-s{seed}"
                assert f"runs/{job.after}/checkpoints" in config["variables"]["checkpoint"]


def test_every_method_adapts_to_every_unseen_source_as_often(planned):
    unseen = {name: corpus.unseen for name, corpus in read_plan(PLAN).corpora.items()}
    for short, long in (("cpt_random", "cpt_random_long"), ("plasticity", "plasticity_long")):
        places = [
            {(j.corpus, j.method, j.seed, j.source, j.draw) for j in planned if j.stage == stage}
            for stage in (short, long)
        ]
        assert places[0] == places[1]
    continued = {(j.corpus, j.method, j.seed, j.draw) for j in planned if j.stage == "cpt_random"}
    adapted = {(*place[:3], place[4]) for place in places[0]}
    assert adapted == continued and len(places[0]) == 2 * len(continued)
    assert all(place[3] in unseen[place[0]] for place in places[0])
    for stage, steps in (("plasticity", 80), ("plasticity_long", 320)):
        first = {job.corpus: job for job in reversed(planned) if job.stage == stage}
        assert [steps_of(config_of(job)) for job in first.values()] == [steps, steps]


def test_baselines_have_the_steps_or_the_tokens_of_dept(planned):
    """Eight sources a round, of as many steps, each with the batch of a worker."""
    here = [job for job in planned if job.stage == "pretrain"]
    assert {job.method for job in here if job.baseline} == {*STEPS_OF_DEPT, *TOKENS_OF_DEPT}
    for job in here:
        config = config_of(job)
        batch = config["global_train_batch_size"]
        assert steps_of(config) == 400
        assert batch == (32 if job.method in TOKENS_OF_DEPT else 4)
        tau = {"std_steps_tau03": 0.3, "std_steps_tau1": 1.0}.get(job.method, 0.0)
        assert config["train_loader"].get("tau", 0.0) == tau
    assert {job.corpus for job in here if job.method == "act"} == {"multilingual"}


def test_pre_trained_embeddings_are_kept_where_there_is_one_for_all_sources(planned):
    kept = {(j.corpus, j.method, j.seed) for j in planned if j.stage == "cpt_pretrained"}
    of = {"std_steps", "std_steps_tau03", "std_steps_tau1", "std_tau0", "glob", "trim"}
    assert kept == {(c, method, seed) for c in SOURCES for method in of for seed in (17, 18)}


def test_rates_of_continued_pre_training_are_tried_around_those_in_use(planned):
    tried = [job for job in planned if job.stage == "tuning_cpt"]
    around = {"random": {0.5, 2.0}, "pretrained": {2.0}, "merged": {0.5}}
    for start, factors in around.items():
        found = [job for job in tried if re.match(rf"{start}\b", job.setting)]
        assert found
        for method in {job.method for job in found}:
            used = [
                config_of(job)
                for job in planned
                if (job.corpus, job.stage) == ("multilingual", f"cpt_{start}")
                and (job.method, job.seed, job.draw or 0) == (method, 17, 0)
            ]
            rates = {config_of(j)["optimizer"]["lr"] for j in found if j.method == method}
            assert rates == {factor * used[0]["optimizer"]["lr"] for factor in factors}
    draws = {(job.setting, job.draw) for job in tried if job.setting.startswith("random")}
    assert {draw for _, draw in draws} == {0, 1, 2} and len(draws) == 4 * 3


def test_a_run_comes_after_the_one_that_it_goes_on_from(planned):
    names = [job.name for job in planned]
    assert len(set(names)) == len(names)
    for number, job in enumerate(planned):
        assert job.after is None or job.after in names[:number]
        if job.after is not None:
            assert any(f"runs/{job.after}/checkpoints" in override for override in job.overrides)


def test_a_model_for_each_source_is_gone_on_from_for_each(tmp_path):
    own = {"yaml": "isolated", "learning_rate": 1.0, "per_source": True}
    found = planned_by(
        tmp_path,
        methods={"isolated": own},
        continued={"cpt_random": {"yaml": "continued", "methods": ["isolated"], "draws": 2}},
    )
    assert [(job.stage, job.source, job.draw) for job in found] == [
        ("pretrain", "en", None),
        ("pretrain", "it", None),
        ("cpt_random", "en", 0),
        ("cpt_random", "en", 1),
        ("cpt_random", "it", 0),
        ("cpt_random", "it", 1),
    ]
    assert found[-1].name == "a-cpt_random-isolated-it-s1-d1"
    assert found[-1].after == "a-pretrain-isolated-it-s1"


def test_what_is_fine_tuned_is_the_first_draw(tmp_path):
    found = planned_by(
        tmp_path,
        continued={"cpt_random": {"yaml": "continued", "methods": ["std"], "draws": 2}},
        downstream={
            "corpora": ["a"], "tasks": ["movies"], "methods": ["std"], "untrained": "std"
        },
    )  # fmt: skip
    tuned = [job for job in found if job.stage == "downstream"]
    assert [job.setting for job in tuned] == ["movies", "movies-untrained"]
    assert {job.after for job in tuned} == {"a-cpt_random-std-s1-d0"}


def test_a_method_without_a_global_embedding_is_fine_tuned_with_that_of_a_source(tmp_path):
    tuned = {"corpora": ["a"], "tasks": ["multiemo"], "methods": ["std", "spec"]}
    of_spec = {"yaml": "dept_spec", "learning_rate": 1.0}
    found = planned_by(
        tmp_path,
        methods={"std": {"yaml": "std", "learning_rate": 1.0, "baseline": True}, "spec": of_spec},
        downstream={**tuned, "stage": "pretrain", "sources": {"spec": "en"}},
    )
    spec, std = (job for job in found if job.stage == "downstream")
    assert (std.after, spec.after) == ("a-pretrain-std-s1", "a-pretrain-spec-s1")
    assert "source=en" in spec.overrides and not any("source=" in o for o in std.overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpora: {}\nsedes: [1]", "no key 'sedes': did you mean seeds"),
        ("methods: {std: {yaml std: x: y}}", "cannot be read: while parsing a flow mapping"),
        ("- std", "is not a mapping of keys"),
        ("methods: {std: {yml: std}}", "methods.std has no key 'yml'"),
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
    first, second = {"method": "std", "after": "pretrain"}, {"method": "std", "after": "first"}

    def study(**settings):
        return {"study": {"corpora": ["a"], "seeds": [1], "settings": settings}}

    found = planned_by(tmp_path, variations=study(first=first, second=second))
    assert [job.after for job in found] == [None, "a-pretrain-std-s1", "a-study-std-first-s1"]
    with pytest.raises(ConfigError, match=r"'second' comes after 'first', which is not before it"):
        planned_by(tmp_path, variations=study(second=second))


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
        values = {f"eval/{n}/{k}": batch for n in ("average", "en") for k in evaluation}
        lines.append({"batch": batch} | values)
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "config.yaml").write_text("optimizer: {lr: 0.5}")
    job = Job("run", "c", "cpt_random", "spec", 1, "y", (), draw=2)
    kept = record(job, tmp_path)
    assert kept["seed"] == 1 and kept["draw"] == 2
    assert kept["learning_rate"] == 0.5
    assert kept["curves"]["tokens"] == [400, 800] and kept["curves"]["steps"] == [2, 4]
    assert kept["curves"]["average"]["loss"] == [4, 8]
    assert kept["curves"]["sources"]["en"]["perplexity"] == [4, 8]
    assert kept["norms"]["steps"] == [1, 2, 3, 4]
    assert kept["norms"]["activations"] == [2.0, 3.0, 6.0, 7.0]  # of both sources


def test_runs_are_in_the_order_of_parts_and_bodies_before_what_needs_them(tmp_path):
    methods = {name: {"yaml": "std", "learning_rate": 1.0} for name in ("std", "glob")}
    continued = {"cpt_random": {"yaml": "continued", "methods": ["glob"]}}
    order = {"first": "cpt_random", "second": "-std-"}
    plan = {"methods": methods, "continued": continued, "seeds": [1, 2]}
    found = planned_by(tmp_path, **plan, order=order)
    assert [(job.name, job.part) for job in found] == [
        ("a-pretrain-glob-s1", "first"),
        ("a-cpt_random-glob-s1", "first"),
        ("a-pretrain-glob-s2", "first"),
        ("a-cpt_random-glob-s2", "first"),
        ("a-pretrain-std-s1", "second"),
        ("a-pretrain-std-s2", "second"),
    ]
    found = planned_by(tmp_path, **plan, order={"first": "-std-s2"})
    assert [job.part for job in found] == ["first"] + ["the rest"] * 5
    with pytest.raises(ConfigError, match=r"order.first finds no run: correct 'sdt'"):
        planned_by(tmp_path, **plan, order={"first": "sdt"})
    with pytest.raises(ConfigError, match=r"order.first is '\(', no regular expression"):
        planned_by(tmp_path, **plan, order={"first": "("})


def test_some_sources_may_have_a_model_and_dept_its_own_overrides_on_a_corpus(tmp_path):
    found = planned_by(
        tmp_path,
        corpora={"a": {"unseen": [], "dept": ["x=1"]}},
        methods={
            "isolated": {
                "yaml": "isolated", "baseline": True, "learning_rate": 1.0, "per_source": True,
                "sources": ["it"], "cost": 2.0,
            },
            "spec": {"yaml": "dept_spec", "learning_rate": 1.0},
        },
    )  # fmt: skip
    assert [(job.source, job.cost) for job in found] == [("it", 2.0), (None, 1.0)]
    assert ["x=1" in job.overrides for job in found] == [False, True]


def test_a_record_has_how_far_updates_agree(tmp_path):
    lines = [
        {"batch": 1, "loss/train/total": 1.0},
        {"batch": 2, "dept/cosine/en-it": 0.5, "dept/cosine/en-ga": 0.25, "dept/cosine/it-ga": 0.0,
         "dept/en/update_norm": 3.0, "dept/it/update_norm": 4.0, "dept/ga/update_norm": 5.0,
         "dept/update_norm": 2.0},
        {"batch": 4, "dept/cosine/en-it": -0.1, "dept/en/update_norm": 1.0,
         "dept/it/update_norm": 1.0, "dept/update_norm": 0.7},
    ]  # fmt: skip
    found = agreement(lines)
    assert found["cosine"] == pytest.approx([0.25, -0.1])
    assert found["norm_of_mean"] == pytest.approx([0.5, 0.7])
    assert agreement(lines[:1]) is None
