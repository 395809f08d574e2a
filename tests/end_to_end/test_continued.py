"""Baselines and continued pre-training: the real trainer on the small corpus."""

import json
import os

import pytest
import torch
from training import parameters, train

from dept.checkpoint.reader import read_trained
from dept.errors import ConfigError

pytestmark = pytest.mark.end_to_end

SMALL = ["variables.mixture_batch=8", "variables.local_steps=3", "variables.worker_batch=4"]
WTE = "model.transformer.wte.weight"


def run(root, experiment, name, *more):
    return train(root, experiment, f"run_name={name}", *SMALL, *more)


def lines_of(root, name):
    path = root / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoints(root, name):
    return root / "runs" / name / "checkpoints"


def test_forgetting_resets_the_embedding_and_nothing_else(prepared, monkeypatch):
    from dept.training.active_forgetting import ActiveForgetting

    forget, start, resets, rates = ActiveForgetting._forget, ActiveForgetting.batch_start, [], []

    def watch_reset(self, state, cycle):
        before, moments = parameters(state.model), dict(state.optimizers[0].state)
        forget(self, state, cycle)
        after = dict(state.model.named_parameters())
        changed = [name for name in after if not torch.equal(before[name], after[name])]
        lost = [name for name, p in after.items() if p not in state.optimizers[0].state]
        assert all(moments[p] is state.optimizers[0].state[p] for p in state.optimizers[0].state)
        assert float(after[WTE].std()) == pytest.approx(0.02, rel=0.05)  # emb_init_std
        resets.append((state.timestamp.batch.value, changed, lost))

    def watch_rates(self, state, logger):
        start(self, state, logger)
        rates.append([group["lr"] for group in state.optimizers[0].param_groups])

    monkeypatch.setattr(ActiveForgetting, "_forget", watch_reset)
    monkeypatch.setattr(ActiveForgetting, "batch_start", watch_rates)
    run(prepared, "act", "act", "variables.forget_every=4", "optimizer.lr=1.0e-2")
    assert resets == [(batch, [WTE], [WTE]) for batch in (4, 8)]
    body, embedding = zip(*rates, strict=True)
    assert embedding[:4] == embedding[4:8] and embedding[0] == embedding[8]
    assert max(embedding) == pytest.approx(1e-2) and len(set(body)) == 8  # one long schedule

    evaluated = [line for line in lines_of(prepared, "act") if "eval/average/loss" in line]
    lowest = min(evaluated, key=lambda line: line["eval/average/loss"])
    best = [line["best/batch"] for line in lines_of(prepared, "act") if "best/batch" in line]
    assert best[-1] == lowest["batch"]
    whole = checkpoints(prepared, "act") / f"ep3-ba{9}-rank0.pt"
    kept = read_trained(checkpoints(prepared, "act") / "best.pt")
    assert kept.parameters.keys() == read_trained(whole).parameters.keys()


def test_a_killed_run_of_act_goes_on_to_the_same_numbers(prepared):
    options = ["variables.forget_every=4", "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    expected = parameters(run(prepared, "act", "act-whole", *options).state.model)
    for batch in (4, 5):  # before the embedding is forgotten, and after
        (checkpoint,) = checkpoints(prepared, "act-whole").glob(f"ep*-ba{batch}-rank0.pt")
        load_it = ["autoresume=false", f"load_path={checkpoint}"]
        resumed = run(prepared, "act", f"act-from-{batch}", *options, *load_it).state.model
        assert all(torch.equal(p, expected[n]) for n, p in parameters(resumed).items())


@pytest.fixture(scope="module")
def trained(prepared):
    """Runs to go on from, by experiment: the folders of their checkpoints."""
    for experiment in ("std", "dept_glob", "dept_spec", "dept_spec_opt"):
        run(prepared, experiment, f"from-{experiment}", "max_duration=1ep")
    return lambda experiment: checkpoints(prepared, f"from-{experiment}")


@pytest.fixture
def started(monkeypatch):
    """Parameters of models as they start, beside those they were built with."""
    from dept.training.start_from import StartFrom

    init, seen = StartFrom.init, []

    def watch(self, state, logger):
        before = parameters(state.model)
        init(self, state, logger)
        seen.append((before, parameters(state.model)))

    monkeypatch.setattr(StartFrom, "init", watch)
    return seen


@pytest.mark.parametrize("experiment", ["std", "dept_spec_opt"])
def test_continued_starts_from_the_body_and_a_random_embedding(
    prepared, trained, started, experiment
):
    name = f"continued-{experiment}"
    more = [f"variables.checkpoint={trained(experiment)}", "max_duration=1ep"]
    run(prepared, "continued", name, *more)
    (built, after), there = started[0], read_trained(trained(experiment)).parameters
    drawn = after[WTE]
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.05)  # emb_init_std
    run(prepared, "continued", f"{name}-another-draw", *more, "variables.embedding_seed=1")
    for other in (built[WTE], started[1][1][WTE]):  # of this seed, STD's began with the former
        both = torch.stack([drawn.flatten(), other.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05
    assert all(torch.equal(after[name], there[name]) for name in after if name != WTE)
    summary = json.loads((prepared / "runs" / name / "summary.json").read_text())
    assert len(summary["sources"]) == 4 and set(summary["held_out"]) == {"held"}


@pytest.mark.parametrize("experiment", ["std", "dept_glob"])
def test_continued_starts_from_the_pretrained_embedding(prepared, trained, started, experiment):
    more = [f"variables.checkpoint={trained(experiment)}", "max_duration=1ep"]
    run(prepared, "continued_pretrained", f"pretrained-{experiment}", *more)
    there = read_trained(trained(experiment)).parameters
    assert all(torch.equal(value, there[name]) for name, value in started[0][1].items())


def test_a_body_can_wait_for_its_new_embedding(prepared, trained):
    """For half of eight steps the body is that of the checkpoint, and then another."""
    given = {"names": ["blocks", "norm_f"], "until": "4ba"}
    more = [f"variables.checkpoint={trained('dept_glob')}", "save_interval=2ba"]
    more += ["variables.local_steps=8", "max_duration=1ep", "save_num_checkpoints_to_keep=-1"]
    name = "frozen-start"
    run(prepared, "continued", name, *more, f"callbacks.frozen_start={json.dumps(given)}")
    folder, before = checkpoints(prepared, name), None
    start = read_trained(trained("dept_glob")).parameters
    for batch in (2, 4, 6, 8):
        (path,) = folder.glob(f"ep*-ba{batch}-rank0.pt")
        now = read_trained(path).parameters
        body = [key for key in now if "blocks" in key or "norm_f" in key]
        assert len(body) > 5 and len(body) < len(now)
        is_as_before = all(torch.equal(now[key], start[key]) for key in body)
        assert is_as_before == (batch <= 4), batch
        assert before is None or not torch.equal(now[WTE], before)
        before = now[WTE]


def test_a_run_resumes_while_its_body_waits(prepared, trained):
    given = {"names": ["blocks", "norm_f"], "until": "4ba"}
    more = [f"variables.checkpoint={trained('dept_glob')}", "save_interval=2ba"]
    more += ["variables.local_steps=8", "max_duration=1ep", "save_num_checkpoints_to_keep=-1"]
    more += [f"callbacks.frozen_start={json.dumps(given)}"]
    run(prepared, "continued", "waits-whole", *more)
    early = next(checkpoints(prepared, "waits-whole").glob("ep*-ba2-rank0.pt"))
    run(prepared, "continued", "waits-resumed", *more, f"load_path={early}", "autoresume=false")
    whole, resumed = (
        read_trained(checkpoints(prepared, f"waits-{name}")).parameters
        for name in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_parameters_that_are_not_there_cannot_be_frozen(prepared, trained):
    given = [f"variables.checkpoint={trained('dept_glob')}"]
    given += ["callbacks.frozen_start={names: [layers], until: 2ba}"]
    with pytest.raises(ValueError, match=r"names finds no parameter with \['layers'\]"):
        run(prepared, "continued", "frozen-none", *given)


def test_plasticity_trains_and_evaluates_one_unseen_source(prepared, trained):
    more = [f"variables.checkpoint={trained('dept_spec')}", "variables.source=held"]
    run(prepared, "plasticity", "plasticity", *more, "eval_interval=2ba", "max_duration=1ep")
    lines = lines_of(prepared, "plasticity")
    assert [n["batch"] for n in lines if "eval/held/perplexity" in n] == [2, 3]
    assert not any("eval/code/loss" in line for line in lines)


def test_what_cannot_be_gone_on_from_is_refused(prepared, trained, tmp_path):
    def refuse(message, experiment, *more):
        with pytest.raises(ConfigError, match=message):
            run(prepared, experiment, "refused", "autoresume=false", *more)

    spec = f"variables.checkpoint={trained('dept_spec')}"
    refuse("of spec, which has no global embedding: set", "continued_pretrained", spec)
    refuse("is not a checkpoint, nor a folder of them", "continued", "variables.checkpoint=none")
    refuse(r"shape \[64\] in this model and shape \[32\] in", "continued", spec, "model.d_model=64")

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    file = tmp_path / "ep1-ba1-rank0.pt"
    torch.save({"state": {"model": Hostile()}}, file)
    refuse("cannot be read as a checkpoint", "continued", f"variables.checkpoint={file}")
    assert not (tmp_path / "hacked").exists()


def test_norms_are_those_of_the_parameters_and_held_out_text_can_wait(prepared):
    more = ["callbacks.norms.interval=3", "callbacks.source_metrics.held_out_interval=5ep"]
    trainer = run(prepared, "dept_glob", "norms", *more, "max_duration=2ep")
    lines = lines_of(prepared, "norms")
    measured = [line for line in lines if "norm/body" in line]
    assert [line["batch"] for line in measured] == list(range(3, 25, 3))  # at the end of each slot
    assert all(line["norm/activations"] > 0 for line in measured)
    body = [p for n, p in parameters(trainer.state.model).items() if n != WTE]
    after = float(torch.linalg.vector_norm(torch.cat([p.flatten() for p in body])))
    mean = sum(line["norm/body"] for line in measured[4:]) / 4
    assert after == pytest.approx(mean, rel=0.05)  # of the average of the four local models
    for name, batches in {"code": [12, 24], "held": [24]}.items():
        assert [n["batch"] for n in lines if f"eval/{name}/loss" in n] == batches


@pytest.mark.parametrize("experiment", ["dept_spec", "dept_spec_opt"])
def test_continued_starts_from_an_embedding_made_of_private_ones(
    prepared, trained, started, experiment
):
    """A token that one source alone has met is that source's row."""
    from dept.data.corpus import GLOBAL, read_corpus
    from dept.embeddings.token_strings import strings_of

    corpus, own = read_corpus(prepared, "tiny"), experiment == "dept_spec_opt"
    target = strings_of(corpus.tokenizers[GLOBAL].path)
    private, held = read_trained(trained(experiment)).private(), {}
    for source, values in private.items():
        of = corpus.source(source, source if own else GLOBAL)
        strings = strings_of(corpus.tokenizers[source if own else GLOBAL].path)
        rows = range(of.vocab_size) if own else of.local_vocabulary().tolist()
        counts = of.counts()
        for row, token_id in enumerate(rows):
            if counts[token_id] > 0:
                held.setdefault(strings[token_id], []).append(values[WTE][row])
    alone = {token: rows[0] for token, rows in held.items() if len(rows) == 1 and token in target}
    assert len(alone) > 50
    more = [f"variables.checkpoint={trained(experiment)}", "max_duration=1ep"]
    run(prepared, "continued_merged", f"merged-{experiment}", *more)
    made = started[0][1][WTE]
    for token, row in alone.items():
        torch.testing.assert_close(made[target.index(token)], row, msg=token)


def test_rows_of_one_source_may_be_written_by_shared_tokens_and_are_measured_before_training(
    prepared, trained, started
):
    """Against the pure function, on what a reader of the checkpoint and the corpus sees."""
    from dept.data.corpus import GLOBAL, read_corpus
    from dept.embeddings.combinations import COMBINATIONS
    from dept.embeddings.merged import SourceEmbedding
    from dept.embeddings.token_strings import strings_of

    corpus, read = read_corpus(prepared, "tiny"), read_trained(trained("dept_spec"))
    every, sources = strings_of(corpus.tokenizers[GLOBAL].path), {}
    for name, values in read.private().items():
        of = corpus.source(name)
        ids, counts = of.local_vocabulary(), torch.from_numpy(of.counts()).double()
        counts *= read.tokens_trained[name] / counts.sum()
        tokens = tuple(every[i] for i in ids.tolist())
        sources[name] = SourceEmbedding(tokens, values[WTE], counts[torch.from_numpy(ids)])
    more = [f"variables.checkpoint={trained('dept_spec')}", "max_duration=1ep", "eval_first=true"]
    losses, made = {}, {}
    for combination in COMBINATIONS:
        option = f"callbacks.start_from.combination={combination}"
        run(prepared, "continued_merged", combination, *more, option)
        made[combination] = started[-1][1][WTE]
        expected = COMBINATIONS[combination](sources, every, made[combination]).vectors
        torch.testing.assert_close(made[combination], expected, rtol=1e-3, atol=1e-5)
        lines = [n for n in lines_of(prepared, combination) if "eval/average/loss" in n]
        assert [line["batch"] for line in lines] == [0, 3]
        each = [lines[0][f"eval/{source}/loss"] for source in corpus.sources]
        assert lines[0]["eval/average/loss"] == pytest.approx(sum(each) / len(each))
        losses[combination] = [line["eval/average/loss"] for line in lines]
    assert len({first for first, _ in losses.values()}) == len(COMBINATIONS)
    assert not torch.allclose(made["mean"], made["sparse"])
