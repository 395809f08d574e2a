"""What users see of runs, against the oracle: checkpoints, files of sources, summaries, exports.

A run is the command ``train.py``. What it begins with cannot be derived from the paper; it is read,
as a user could, from a run of the same yaml whose learning rate is as good as zero.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import oracle
import pytest
import torch
from commands import TRAIN, Commands
from oracle import Trained
from oracle_data import Source
from oracle_model import EMBEDDINGS, POSITIONS, TOKENS, Parameters, Recipe
from small_shards import reshard
from training import MPT, overrides

pytestmark = pytest.mark.end_to_end

ROUNDS, STEPS, HEADS, RATE, WARMUP, SEED, LENGTH = 3, 4, 2, 1e-2, 0.25, 21, 32
# Far above the rounding of gradients: with 1e-8 a gradient that is zero but for rounding moves its
# parameter by up to the learning rate in AdamW's first steps, in either direction.
EPS = 1e-4
SOURCES = ("manual", "code", "mail", "tools")
FORGET_EVERY = 5

# Runs are in float32, and so is the oracle: what differs is the order of sums. Parameters move by
# more than MOVED; DIFFERENT is what a wrong method must come to in one of them.
# In float64 the oracle differs from its own float32 by up to 3.4e-5 (an embedding row of SPEC-OPT).
PARAMETERS, LOSSES, NORMS = 1e-4, 1e-5, 1e-4
MOVED, DIFFERENT = 2e-2, 1e-3
MOMENTS = 1e-4, 1e-5  # of averages of the first and the second moment

UNTIED = ("model.tie_word_embeddings=false",)
LEARNED = ("model.attn_config.alibi=false",)
NESTEROV = {"lr": 0.7, "momentum": 0.9}
# Rounds with one average, with the other, with both, with none.
AVERAGE = {"per_round": 2, "inner_state": "average", "interval": (2, 3)}


@dataclass(frozen=True)
class Case:
    """A run of DEPT, in the words of the yaml and in those of the oracle.

    Attributes:
        yaml: name of the experiment.
        model: what its model has that the yaml's has not.
        sources: that it trains.
        batch: of one source.
        weight_decay: of the inner optimizer.
        options: of :func:`oracle.train_dept`.
        when: when it is evaluated and saved.
        rounds: T.
    """

    yaml: str
    model: tuple[str, ...] = ()
    sources: tuple[str, ...] = SOURCES
    batch: int = 4
    weight_decay: float = 0.0
    options: Mapping = field(default_factory=dict)
    when: tuple[str, ...] = ()
    rounds: int = ROUNDS

    @property
    def variant(self) -> str:
        return self.yaml.removeprefix("dept_")

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            seed=SEED,
            heads=HEADS,
            batch=self.batch,
            lr=RATE,
            eps=EPS,
            warmup=WARMUP,
            weight_decay=self.weight_decay,
        )

    @property
    def overrides(self) -> list[str]:
        given = [
            *self.model,
            *self.when,
            f"max_duration={self.rounds}ep",
            f"optimizer.lr={RATE}",
            f"optimizer.weight_decay={self.weight_decay}",
            f"algorithms.dept.local_steps={STEPS}",
            f"global_train_batch_size={self.batch}",
            f"train_loader.sources=[{','.join(self.sources)}]",
        ]
        if "per_round" in self.options:
            given.append(f"algorithms.dept.sources_per_round={self.options['per_round']}")
        if "outer" in self.options:
            given.append("algorithms.dept.outer_optimizer.name=nesterov")
        if "inner_state" in self.options:
            given.append(f"algorithms.dept.inner_state={self.options['inner_state']}")
        if "interval" in self.options:
            first, second = self.options["interval"]
            intervals = f"{{exp_avg: {first}, exp_avg_sq: {second}}}"
            given.append(f"algorithms.dept.inner_state_interval={intervals}")
        return given


CASES = {
    # Batches so large that both sources are read more than once. Every eighth batch is the last of
    # a round, but Composer evaluates and saves before the round has ended.
    "glob_passes": Case(
        "dept_glob",
        LEARNED,
        sources=("code", "mail"),
        batch=90,
        when=("eval_interval=8ba", "save_interval=8ba"),
    ),
    "trim": Case("dept_trim", options={"per_round": 2, "outer": NESTEROV, "inner_state": "reset"}),
    "trim_untied": Case("dept_trim", UNTIED, weight_decay=1e-3),
    "spec": Case("dept_spec", LEARNED, options={"per_round": 2}),
    "spec_opt": Case("dept_spec_opt", UNTIED, options={"outer": NESTEROV, "inner_state": "reset"}),
    "average_glob": Case("dept_glob", LEARNED, options=AVERAGE, rounds=6),
    "average_trim": Case("dept_trim", options=AVERAGE, rounds=6),
    "average_spec": Case("dept_spec", LEARNED, options=AVERAGE | {"outer": NESTEROV}, rounds=6),
    "glob": Case("dept_glob"),  # last, since it is a process of its own: see Runs
}


class Runs:
    """Runs of ``train.py`` by name, each made when it is first asked for.

    Args:
        root: of the prepared corpus.
    """

    def __init__(self, root) -> None:
        self.root = root
        self.commands = Commands(root)
        self.made: set[str] = set()
        self.read: dict[tuple[str, str], Source] = {}
        # A process of its own, as a user starts it; it takes its time while others are prepared.
        case = CASES["glob"]
        arguments = self.arguments("glob", case.yaml, *case.overrides)
        self.glob = self.commands.start("glob", "train.py", arguments)

    def arguments(self, name: str, yaml: str, *more: str) -> list[str]:
        ours = [f"optimizer.eps={EPS}", f"scheduler.t_warmup={WARMUP}dur", "eval_interval=3ep"]
        named = [f"run_name={name}", f"seed={SEED}", *ours, *more]
        return [f"yamls/{yaml}.yaml", *overrides(self.root), *MPT, *named]

    def run(self, name: str, yaml: str, *more: str) -> str:
        if name not in self.made:
            self.commands.run(name, TRAIN, self.arguments(name, yaml, *more))
            self.made.add(name)
        return name

    def case(self, name: str) -> str:
        if name == "glob":
            assert self.glob.wait() == 0, (self.root / "glob.log").read_text()
            return name
        return self.run(name, CASES[name].yaml, *CASES[name].overrides)

    def initial(self, yaml: str, model: tuple[str, ...]) -> str:
        """A run of the yaml that learns nothing, with all sources in its one round."""
        more = ["optimizer.lr=1e-30", "algorithms.dept.local_steps=1", "max_duration=1ep"]
        return self.run("-".join(["initial", yaml, *model]), yaml, *model, *more)

    def checkpoint(self, name: str, file: str = "latest-rank0.pt") -> Parameters:
        path = self.root / "runs" / name / "checkpoints" / file
        return torch.load(path, map_location="cpu", weights_only=False)["state"]["model"]

    def moments(self, name: str) -> dict:
        """The averages of moments in the newest checkpoint."""
        path = self.root / "runs" / name / "checkpoints" / "latest-rank0.pt"
        state = torch.load(path, map_location="cpu", weights_only=False)["state"]
        return dict(state["algorithms"])["Dept"]["moments"]

    def private(self, name: str, sources=SOURCES) -> dict[str, Parameters]:
        """phi_k and psi_k in the newest file of each source."""
        found = {}
        for source in sources:
            folder = self.root / "runs" / name / "checkpoints" / "sources" / source
            newest = max(folder.glob("*.pt"), key=lambda path: int(path.name[5:].split("-")[0]))
            found[source] = torch.load(newest, weights_only=True)["slots"]["private"]
        return found

    def summary(self, name: str) -> dict:
        return json.loads((self.root / "runs" / name / "summary.json").read_text())

    def losses(self, name: str, key: str) -> list[float]:
        """Of each step, in the order of training."""
        lines = (self.root / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [line[key] for line in map(json.loads, lines) if key in line]

    def source(self, name: str, tokenizer: str = "global") -> Source:
        if (name, tokenizer) not in self.read:
            self.read[name, tokenizer] = Source(self.root, "tiny", name, tokenizer)
        return self.read[name, tokenizer]


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """In shards of a few samples, so that there are several blocks of them in a pass."""
    root = tmp_path_factory.mktemp("oracle")
    reshard(prepared, root, 20)
    runs = Runs(root)
    yield runs
    runs.glob.kill()


def sources_of(runs, case) -> list[Source]:
    own = case.variant == "spec_opt"
    return [runs.source(name, name if own else "global") for name in case.sources]


def trained_by_oracle(runs, case: Case, dtype=torch.float32) -> Trained:
    """What the oracle makes of a case, from what its run began with."""
    is_private = case.variant.startswith("spec")
    begun = runs.initial(case.yaml if is_private else "dept_glob", case.model)
    start, private = runs.checkpoint(begun), runs.private(begun) if is_private else {}
    return oracle.train_dept(
        case.recipe,
        case.variant,
        sources_of(runs, case),
        as_type(start, dtype),
        {source: as_type(own, dtype) for source, own in private.items()},
        rounds=case.rounds,
        local_steps=STEPS,
        **case.options,
    )


def as_type(parameters, dtype):
    return {name: value.to(dtype) for name, value in parameters.items()}


def apart(one, other) -> float:
    """The largest difference of two models, by parameter; both have the same ones."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def assert_scores(summary, trained, variant, sources, held) -> None:
    """The evaluation of each source, their average, and text that the run did not train on."""
    expected = {s.name: oracle.evaluate(trained, variant, s, HEADS) for s in sources}
    for name, one in expected.items():
        seen = summary["sources"][name]["eval"]
        assert {key: seen[key] for key in one} == pytest.approx(one, rel=LOSSES), name
    average = oracle.mean_of(list(expected.values()))
    seen = {key: summary["average"][key] for key in average}
    assert seen == pytest.approx(average, rel=LOSSES)
    if not variant.startswith("spec"):
        one = oracle.evaluate(trained, "glob", held, HEADS)
        seen = summary["held_out"]["held"]["eval"]
        assert {key: seen[key] for key in one} == pytest.approx(one, rel=LOSSES)


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_dept_is_that_of_the_paper(runs, name):
    case = CASES[name]
    trained, run = trained_by_oracle(runs, case), runs.case(name)
    found, summary, sources = runs.checkpoint(run), runs.summary(run), sources_of(runs, case)
    shared = {name: found[name] for name in trained.parameters}
    assert apart(shared, trained.parameters) < PARAMETERS
    if trained.private:
        for source, own in runs.private(run).items():
            assert apart(own, trained.private[source]) < PARAMETERS, source
    assert summary["left_out"] == []
    for source in sources:
        losses = trained.losses.get(source.name, [])
        seen = runs.losses(run, f"loss/train/{source.name}")
        assert seen == pytest.approx(losses, rel=LOSSES), source.name
        moved = trained.moved.get(source.name, [])
        seen = runs.losses(run, f"dept/{source.name}/update_norm")
        assert seen == pytest.approx(moved, rel=NORMS), source.name
        of_source = summary["sources"][source.name]
        assert of_source["tokens"] == len(losses) * case.batch * LENGTH
        rows = source.vocab_size if case.variant in ("glob", "spec_opt") else source.vocabulary
        assert of_source["vocab_size"] == (rows if isinstance(rows, int) else len(rows))
    assert_scores(summary, trained, case.variant, sources, runs.source("held"))
    seen = summary["communication"]["parameters_per_step"]
    assert seen == pytest.approx(oracle.sent_per_step(trained, case.variant, sources, STEPS))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("average")])
def test_averages_of_moments_are_those_of_the_oracle(runs, name):
    found, pool = runs.moments(runs.case(name)), trained_by_oracle(runs, CASES[name]).pool
    assert found["step"] == pool.steps
    for which, moment in enumerate(("exp_avg", "exp_avg_sq"), start=1):
        assert apart(found["values"][moment], pool.values[which]) < MOMENTS[which - 1]
        for parameter, since in pool.since[which].items():
            rounds = found["rounds"][moment][parameter].expand(len(since))
            assert torch.equal(rounds, since), parameter
        largest = [float(value.abs().max()) for value in pool.values[which].values()]
        assert max(largest) > 50 * MOMENTS[which - 1]


def _without_a_limit():
    return {"minimum": lambda one, other: one, "maximum": lambda one, other: one}


@pytest.mark.parametrize("name", ["average_glob", "average_trim", "average_spec"])
@pytest.mark.parametrize(
    "change", [{"inner_state": "keep"}, {"inner_state": "reset"}, (3, 2), "no limit"], ids=str
)
def test_another_rule_for_moments_would_be_noticed(runs, monkeypatch, name, change):
    case = CASES[name]
    if change == "no limit":
        monkeypatch.setattr(oracle, "torch", SimpleNamespace(**vars(torch) | _without_a_limit()))
    else:
        change = change if isinstance(change, dict) else {"interval": change}
        case = replace(case, options={**case.options, **change})
    found, trained = runs.checkpoint(runs.case(name)), trained_by_oracle(runs, case)
    assert apart({n: found[n] for n in trained.parameters}, trained.parameters) > DIFFERENT


def test_what_cases_must_have_to_say_anything(runs):
    """Gradients are clipped, parameters move, text has tokens outside V_k, S_t changes."""
    glob = CASES["glob"]
    trained = trained_by_oracle(runs, glob)
    begun = runs.checkpoint(runs.initial("dept_glob", ()))
    assert min(trained.norms) < 0.95 and max(trained.norms) > 1.2
    assert apart(trained.parameters, begun) > MOVED
    unseen = [(~torch.isin(s.val, s.vocabulary)).sum() for s in sources_of(runs, glob)]
    assert sum(unseen) > 1
    drawn = [
        tuple(s.name for s in oracle.drawn_sources(SEED, t, sources_of(runs, glob), 2))
        for t in range(ROUNDS)
    ]
    assert len(set(drawn)) == ROUNDS
    passes = CASES["glob_passes"]
    read = ROUNDS * STEPS * passes.batch
    assert all(len(s.train) < read and len(s.shard_samples) > 40 for s in sources_of(runs, passes))


def test_what_differs_is_rounding(runs):
    trained, exact = (trained_by_oracle(runs, CASES["trim"], t) for t in (None, torch.float64))
    assert apart(trained.parameters, exact.parameters) < PARAMETERS


def _without_the_last_outer_step():
    real, steps = oracle.outer_step, {}

    def outer_step(name, start, *rest):
        steps[name] = steps.get(name, 0) + 1
        return start if steps[name] == ROUNDS else real(name, start, *rest)

    return {"outer_step": outer_step}


def _with_the_sources_that_were_not_drawn():
    real = oracle.drawn_sources

    def drawn_sources(seed, t, sources, count):
        drawn = real(seed, t, sources, count)
        return [source for source in sources if source not in drawn]

    return {"drawn_sources": drawn_sources}


def _with_padding_in_the_average_of_rows():
    real = oracle.outer_step

    def outer_step(name, start, locals_, by_row, *rest):
        if not by_row:
            return real(name, start, locals_, by_row, *rest)
        padded = []
        for source, parameters in locals_:
            whole = start.clone()
            whole[source.vocabulary] = parameters[name]
            padded.append((source, {name: whole}))
        return real(name, start, padded, False, *rest)

    return {"outer_step": outer_step}


def _with_a_schedule_for_each_round():
    real = oracle.factor
    return {"factor": lambda step, steps, *rest: real(step % STEPS, STEPS, *rest)}


WRONG = {
    "without the last outer step": _without_the_last_outer_step,
    "with the sources that were not drawn": _with_the_sources_that_were_not_drawn,
    "with padding in the average of rows": _with_padding_in_the_average_of_rows,
    "with a schedule for each round": _with_a_schedule_for_each_round,
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_method_would_be_noticed(runs, monkeypatch, how):
    for name, function in WRONG[how]().items():
        monkeypatch.setattr(oracle, name, function)
    trained = trained_by_oracle(runs, CASES["trim"])
    assert apart(trained.parameters, runs.checkpoint(runs.case("trim"))) > DIFFERENT


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"per_round": 2, "outer": NESTEROV, "inner_state": "keep"}},
        {"options": {"per_round": 2, "inner_state": "reset"}},
        {"options": {"per_round": 2, "outer": NESTEROV | {"momentum": 0.0}}},
        {"yaml": "dept_glob"},
        {"weight_decay": 1e-2},
    ],
    ids=["inner state kept", "the average", "no momentum", "GLOB", "weight decay"],
)
def test_a_wrong_setting_would_be_noticed(runs, change):
    trained = trained_by_oracle(runs, replace(CASES["trim"], **change))
    assert apart(trained.parameters, runs.checkpoint(runs.case("trim"))) > DIFFERENT


# --- the mixture ---------------------------------------------------------------------------------

MIXTURE_BATCH = 8
MIXTURE = Recipe(seed=SEED, heads=HEADS, batch=MIXTURE_BATCH, lr=RATE, eps=EPS, warmup=WARMUP)
MIXTURE_OVERRIDES = (
    f"optimizer.lr={RATE}",
    f"variables.mixture_batch={MIXTURE_BATCH}",
    f"variables.local_steps={STEPS}",
)


def assert_mixture(runs, run: str, trained: Trained) -> None:
    assert apart(runs.checkpoint(run), trained.parameters) < PARAMETERS
    seen = runs.losses(run, "loss/train/total")
    assert seen == pytest.approx(trained.losses["mixture"], rel=LOSSES)
    sources = [runs.source(name) for name in SOURCES]
    assert_scores(runs.summary(run), trained, "glob", sources, runs.source("held"))


def mixed(runs, start, **options) -> Trained:
    recipe = options.pop("recipe", MIXTURE)
    sources = [runs.source(name) for name in SOURCES]
    return oracle.train_mixture(recipe, sources, start, steps=ROUNDS * STEPS, **options)


def test_std_is_ordinary_training_on_the_mixture(runs):
    start = runs.checkpoint(runs.initial("dept_glob", ()))
    run = runs.run("std", "std", *MIXTURE_OVERRIDES, "train_loader.tau=0.3")
    assert_mixture(runs, run, mixed(runs, start, tau=0.3))
    uniform = mixed(runs, start, tau=0.0)
    assert apart(runs.checkpoint(run), uniform.parameters) > DIFFERENT


def test_act_forgets_its_embedding(runs):
    every = (
        f"variables.forget_every={FORGET_EVERY}",
        f"callbacks.active_forgetting.scheduler.t_warmup={WARMUP}dur",
    )
    begun = runs.run(
        "initial-act",
        "act",
        *every,
        "optimizer.lr=1e-30",
        f"variables.local_steps={FORGET_EVERY}",
        "save_num_checkpoints_to_keep=-1",
    )
    at = [runs.checkpoint(begun, f"ep{c}-ba{c * FORGET_EVERY}-rank0.pt") for c in (1, 2, 3)]
    redrawn = {c: {n: at[c][n] for n in TOKENS if n in at[c]} for c in (1, 2)}
    start = runs.checkpoint(runs.initial("dept_glob", ()))
    assert apart(start, at[0]) < 1e-20
    run = runs.run("act", "act", *MIXTURE_OVERRIDES, *every)
    trained = mixed(runs, start, forget_every=FORGET_EVERY, redrawn=redrawn)
    assert_mixture(runs, run, trained)
    remembering = mixed(runs, start)
    assert apart(runs.checkpoint(run), remembering.parameters) > DIFFERENT


def test_continued_pretraining_from_a_random_embedding(runs):
    body = runs.case("spec")
    more = (
        *MIXTURE_OVERRIDES,
        *LEARNED,
        f"variables.checkpoint={runs.root}/runs/{body}/checkpoints",
        f"max_duration={ROUNDS}ep",
    )
    start = runs.checkpoint(runs.run("initial-cpt", "continued", *more, "optimizer.lr=1e-30"))
    learned = runs.checkpoint(body)
    for name in start:
        if name not in EMBEDDINGS:
            assert torch.equal(start[name], learned[name]), name
    first = runs.checkpoint(runs.initial("dept_glob", LEARNED))
    for name in (TOKENS[0], POSITIONS):
        assert_drawn_alike(start[name], first[name])

    run = runs.run("cpt", "continued", *more)
    recipe = replace(MIXTURE, stage="start_from")
    assert_mixture(runs, run, mixed(runs, start, recipe=recipe))
    assert apart(runs.checkpoint(run), mixed(runs, start).parameters) > DIFFERENT


def test_continued_pretraining_from_the_pretrained_embedding(runs):
    body = runs.case("trim")
    checkpoint = f"variables.checkpoint={runs.root}/runs/{body}/checkpoints"
    run = runs.run(
        "cpt-pretrained",
        "continued_pretrained",
        *MIXTURE_OVERRIDES,
        checkpoint,
        f"max_duration={ROUNDS}ep",
    )
    recipe = replace(MIXTURE, stage="start_from")
    assert_mixture(runs, run, mixed(runs, runs.checkpoint(body), recipe=recipe))


# --- what is drawn -------------------------------------------------------------------------------


def assert_drawn_alike(one, other) -> None:
    """Of the same distribution, and independent, in as far as their rows can be compared."""
    rows = min(len(one), len(other))
    both = torch.stack([one[:rows].flatten(), other[:rows].flatten()])
    wide = 5 / math.sqrt(both.shape[1])  # five standard errors
    assert float(one.std()) == pytest.approx(float(other.std()), rel=wide)
    assert float(one.mean()) == pytest.approx(
        float(other.mean()), abs=2 * wide * float(other.std())
    )
    assert abs(float(torch.corrcoef(both)[0, 1])) < wide


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("spec", TOKENS[0]),
        ("spec", POSITIONS),
        ("spec_opt", TOKENS[0]),
        ("spec_opt", TOKENS[1]),
    ],
)
def test_private_embeddings_are_drawn_as_the_model_is(runs, case, name):
    built = runs.checkpoint(runs.initial("dept_glob", CASES[case].model))[name]
    private = runs.private(runs.initial(CASES[case].yaml, CASES[case].model))
    for source in SOURCES:
        assert_drawn_alike(private[source][name], built)
    for source in SOURCES[1:]:
        assert_drawn_alike(private[source][name], private[SOURCES[0]][name])


# --- exports -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "source"), [("trim", "global"), ("spec", "mail")])
def test_an_exported_model_gives_the_logits_of_the_oracle(runs, name, source):
    from transformers import AutoModelForCausalLM

    case, out = CASES[name], runs.root / "exports" / name
    checkpoints = runs.root / "runs" / runs.case(name) / "checkpoints"
    arguments = [str(checkpoints), "--source", source, "--out", str(out)]
    runs.commands.run(f"export-{name}", "dept.evaluation.export", arguments)
    trained = trained_by_oracle(runs, case)
    text = runs.source("mail")
    ids = text.val[:8]
    if source != "global":
        ids = oracle.rows_of(text, case.variant)[ids]
    parameters = trained.parameters | trained.private.get(source, {})
    exported = AutoModelForCausalLM.from_pretrained(out, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        expected = oracle.logits(parameters, ids, HEADS)
        assert torch.allclose(exported(ids).logits, expected, atol=1e-4)
    assert expected.std() > 0.01
