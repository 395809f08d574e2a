"""The plan of the paper's regime: its budgets, its order, and what the runs are given."""

from types import SimpleNamespace

import pytest
import yaml
from training import REPOSITORY

from dept.config import extends
from dept.data_prep.corpus_yaml import load_corpus
from dept.evaluation.report.names import STAGES
from dept.evaluation.reproduce import budget
from dept.evaluation.reproduce.jobs import jobs
from dept.evaluation.reproduce.plan import read_plan

PLAN = REPOSITORY / "eval" / "paper_regime.yaml"
CLAIM = ("std_steps", "std_tau0", "glob", "spec", "spec_opt")
BYTES_PER_TOKEN = 4.0


def corpus_of(name):
    """A corpus as its yaml describes it, of sizes that the yaml has measured."""
    if name == "languages_iid":
        languages = corpus_of("languages")
        parts = tuple(f"part{number}" for number in range(8))
        sizes = dict.fromkeys(parts, sum(languages.sizes[s] for s in languages.sources) / 8)
        return described(name, parts, (), sizes)
    path = REPOSITORY / "data_prep" / "corpora" / f"{name}.yaml"
    corpus = load_corpus(path)
    base = path if name != "languages_universal" else path.with_name("languages.yaml")
    content = yaml.safe_load(base.read_text())
    entries = content["sources"] | content["held_out"]
    most = corpus.split.train_bytes or float("inf")
    sizes = {key: min(entry["text_bytes"], most) for key, entry in entries.items()}
    names = [tuple(s.name for s in group) for group in (corpus.sources, corpus.held_out)]
    return described(name, *names, sizes)


def described(name, sources, held_out, sizes):
    def source(key, tokenizer):
        tokens = int(0.022 * sizes[key] / BYTES_PER_TOKEN)
        return SimpleNamespace(splits={"val": SimpleNamespace(tokens=tokens)})

    return SimpleNamespace(
        name=name, sources=sources, held_out=held_out, sizes=sizes, source=source
    )


@pytest.fixture(scope="module")
def plan():
    return read_plan(PLAN)


@pytest.fixture(scope="module")
def corpora(plan):
    return {
        name: corpus_of(name) for name in (*plan.corpora, "languages_iid", "languages_universal")
    }


@pytest.fixture(scope="module")
def planned(plan, corpora):
    return jobs(plan, {name: corpora[name].sources for name in plan.corpora})


@pytest.fixture(scope="module")
def configs(planned):
    return {
        job.name: extends.resolve(extends.load(REPOSITORY / job.yaml, job.overrides))
        for job in planned
    }


@pytest.fixture(scope="module")
def costs(plan, planned, corpora):
    def read(loader, dept):
        corpus = corpora[loader.corpus]
        return corpus, tuple(loader.sources or corpus.sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(budget, "corpus_and_sources", read)
        found = budget.estimate(planned, plan.speed)
    return found.assign(finished=False).set_index("run", drop=False)


def steps_of(config):
    """Sequential steps of one source's training."""
    count, unit = int(config["max_duration"][:-2]), config["max_duration"][-2:]
    return count * (config["variables"]["local_steps"] if unit == "ep" else 1)


def test_a_run_of_dept_has_twenty_million_tokens_in_ten_rounds(planned, configs, costs):
    for job in planned:
        if job.stage == "pretrain" and not job.baseline:
            assert int(configs[job.name]["max_duration"].removesuffix("ep")) >= 10
            assert 19e6 < costs["tokens"][job.name] < 22e6


@pytest.mark.parametrize("corpus", ["languages", "domains"])
def test_baselines_have_the_steps_and_batch_or_the_tokens_of_dept(corpus, planned, configs, costs):
    here = {j.method: j.name for j in planned if j.stage == "pretrain" and j.corpus == corpus}
    spec = configs[here["spec"]]
    assert {steps_of(configs[name]) for name in here.values()} == {steps_of(spec)}
    assert costs["tokens"][here["std_tau0"]] == costs["tokens"][here["spec"]]
    for method, name in here.items():
        batch = configs[name]["global_train_batch_size"]
        assert (batch == spec["global_train_batch_size"]) == (method != "std_tau0")
    assert configs[here["glob"]]["variables"] | {"method": "spec"} == spec["variables"] | {
        "method": "spec"
    }


def test_bodies_are_continued_for_15_to_20_percent_from_three_draws(planned, configs):
    before = {j.name: steps_of(configs[j.name]) for j in planned}
    runs = {}
    for job in planned:
        if job.stage.startswith("cpt_"):
            share = before[job.name] / before[job.after]
            assert 0.15 <= share <= 0.2
            runs.setdefault((job.stage, job.after), []).append(job)
    for (stage, body), found in runs.items():
        config = configs[found[0].name]
        assert config["callbacks"]["start_from"]["embedding"] == stage.removeprefix("cpt_")
        if stage == "cpt_random":
            assert [job.draw for job in found] == [0, 1, 2]
            assert (("cpt_pretrained", body) not in runs) or configs[
                runs["cpt_pretrained", body][0].name
            ]["optimizer"]["lr"] == config["optimizer"]["lr"] / 2
    batches = {configs[j.name]["global_train_batch_size"] for j in planned if "-cpt_" in j.name}
    assert len(batches) == 1


def test_the_claim_has_both_corpora_and_two_seeds_before_all_else(planned):
    parts = list(dict.fromkeys(job.part for job in planned))
    assert parts[:5] == [
        "pilot",
        "rates",
        "claim, languages",
        "claim, domains",
        "claim, second seed",
    ]
    before = [
        j for j in planned if parts.index(j.part) < 5 and j.stage in ("pretrain", "cpt_random")
    ]
    for corpus, seed, methods in (
        ("languages", 17, CLAIM),
        ("domains", 17, CLAIM),
        ("languages", 18, [method for method in CLAIM if method != "std_tau0"]),
    ):
        for stage, times in (("pretrain", 1), ("cpt_random", 3)):
            place = (corpus, seed, stage)
            found = [j.method for j in before if (j.corpus, j.seed, j.stage) == place]
            assert sorted(found) == sorted(method for method in methods for _ in range(times))
    names = [job.name for job in planned]
    assert all(job.after is None or job.after in names[:n] for n, job in enumerate(planned))


def test_what_is_not_beyond_takes_forty_core_hours(costs):
    of_parts = budget.by_part(costs)
    within = [not part.startswith("beyond") for part in of_parts.index]
    assert within == sorted(within, reverse=True)
    assert 36 < of_parts["core_hours"][within].sum() <= 40.5


def test_the_pilot_compares_three_shapes_at_equal_tokens(planned, configs, costs):
    pilot = [job for job in planned if job.stage == "pilot"]
    first = [job for job in pilot if job.after is None]
    for method in ("spec", "std_steps"):
        shapes = {}
        for job in first:
            if job.method == method:
                config = configs[job.name]
                shape = (config["variables"]["local_steps"], config["global_train_batch_size"])
                shapes.setdefault(shape, set()).add(config["optimizer"]["lr"])
                rate = float(job.setting.split(", ")[1])
                assert job.setting.startswith(f"{shape[0]} x {shape[1]}, ")
                assert config["optimizer"]["lr"] == rate
        assert len(shapes) == 3 and all(len(rates) == 2 for rates in shapes.values())
        tokens = [costs["tokens"][job.name] for job in first if job.method == method]
        assert max(tokens) <= 1.03 * min(tokens)
    for job in first:  # each is continued alike, twice, from its own body
        after = [other for other in pilot if other.after == job.name]
        assert [other.draw for other in after] == [0, 1]
        assert all(other.setting.startswith(job.setting) for other in after)
        assert {costs["tokens"][other.name] for other in after} == {225 * 16 * 256}
        assert (
            configs[after[0].name]["train_loader"]["sources"]
            == configs[job.name]["train_loader"]["sources"]
        )


def test_first_embeddings_are_measured_at_the_start_a_tenth_and_a_third(planned, configs):
    found = {}
    for job in [job for job in planned if job.stage == "embeddings"]:
        config = configs[job.name]
        every = steps_of(config | {"max_duration": config["eval_interval"]}) / steps_of(config)
        assert config["eval_first"] and every == pytest.approx(1 / 9)
        # A private embedding is evaluated as it was at the start of the round.
        assert "dept" not in config["algorithms"] or config["eval_interval"].endswith("ep")
        start = config["callbacks"]["start_from"]
        kind = start["embedding"], start.get("combination", "mean")
        found.setdefault((job.method, job.yaml), set()).add(kind)
    merged = {("merged", name) for name in ("mean", "subwords", "sparse")}
    assert found == {
        ("spec", "yamls/continued_merged.yaml"): merged,
        ("spec_opt", "yamls/continued_merged.yaml"): merged,
        ("spec", "yamls/add_source.yaml"): merged | {("random", "mean")},
    }


def test_the_control_and_the_universal_tokenizer_take_their_corpora(planned, configs):
    for stage, corpus in (("control", "languages_iid"), ("study", "languages_universal")):
        found = [configs[job.name] for job in planned if job.stage == stage]
        assert found and {c["train_loader"]["corpus"] for c in found} == {corpus}
        assert {c["tokenizer"]["name"] for c in found} == {f"tokenizers/{corpus}/global"}
    assert {job.stage for job in planned} <= set(STAGES)
