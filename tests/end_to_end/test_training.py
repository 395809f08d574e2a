"""The real trainer on real text: against loops in plain torch, and against itself."""

import copy
import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from training import BATCH, LOCAL_STEPS, ROUNDS, dept_of, load, tensors_of, train

from dept.data.corpus import read_corpus
from dept.data.loader import ValidationLoader, collate

pytestmark = pytest.mark.end_to_end

SOURCES = ("manual", "code", "mail", "tools")
RATE, WARMUP = 2e-3, 4
PLAIN = [  # nothing that a few lines of torch would not do
    "optimizer={name: adamw, lr: 2.0e-3, betas: [0.9, 0.95], weight_decay: 0.0}",
    "scheduler.t_warmup=4ba",
    "save_folder=null",
    "autoresume=false",
]
LEARNED = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
UNTIED = ["model.tie_word_embeddings=false"]


def run(root, experiment, name, *more):
    return train(root, experiment, f"run_name={name}", *more)


def learning_rate(step):
    """Warm-up, then a cosine to a tenth, over the steps of one source: rounds * local steps."""
    if step < WARMUP:
        return RATE * step / WARMUP
    fraction = (step - WARMUP) / (ROUNDS * LOCAL_STEPS - WARMUP)
    return RATE * (0.1 + 0.9 * (1 + math.cos(math.pi * fraction)) / 2)


def reference(trainer, initial, inner_state):
    """Algorithm 1 on copies of the model, one for each slot, with gradients by autograd alone.

    Args:
        trainer: the run to be held against; its loader and its maps of ids are read.
        initial: the model as it was built.
        inner_state: ``reset`` or ``keep``.
    """
    dept = dept_of(trainer)
    loader, slots = dept.run.loader, dept.run.slots
    theta = {n: p.detach().clone() for n, p in initial.named_parameters()}
    own, positions, kept = set(slots.private_names), dict.fromkeys(SOURCES, 0), {}
    private = {s: {n: v.clone() for n, v in slots.drawn[s].items()} for s in SOURCES if own}
    for t in range(ROUNDS):
        locals_ = {}
        for source in dept.run.schedule.drawn(t):
            model, rows = copy.deepcopy(initial), slots.vocabularies[source]
            held = rows.token_ids
            for name in theta:
                if name in own:
                    value = private[source][name]
                elif name in slots.by_row_names:
                    value = theta[name][held]
                else:
                    value = theta[name]
                old, new = model.get_parameter(name), torch.nn.Parameter(value.clone())
                for module in model.modules():  # a tied head holds it too
                    for attribute, parameter in module._parameters.items():
                        if parameter is old:
                            setattr(module, attribute, new)
            parameters = dict(model.named_parameters())
            optimizer = torch.optim.AdamW(
                parameters.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0
            )
            for name, parameter in parameters.items():
                if (source, name) in kept:
                    optimizer.state[parameter] = copy.deepcopy(kept[source, name])
            for i in range(LOCAL_STEPS):
                step = t * LOCAL_STEPS + i
                optimizer.param_groups[0]["lr"] = learning_rate(max(step - 1, 0))
                first, opened = positions[source], loader._open[source]
                ids = collate([opened.sample_at(first + j) for j in range(BATCH)])["input_ids"]
                positions[source] += BATCH
                local = torch.searchsorted(held, ids)
                logits = model.model(input_ids=local).logits[:, :-1]
                optimizer.zero_grad()
                cross_entropy(logits.flatten(0, 1), local[:, 1:].flatten()).backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
                optimizer.step()
            locals_[source] = {n: p.detach() for n, p in parameters.items()}
            for name, parameter in parameters.items():
                if inner_state == "keep" or name in own:
                    kept[source, name] = optimizer.state[parameter]
                if name in own:
                    private[source][name] = locals_[source][name]
        for name in theta:
            if name in slots.by_row_names:
                total, count = torch.zeros_like(theta[name]), torch.zeros(len(theta[name]))
                for source, values in locals_.items():
                    held = slots.vocabularies[source].token_ids
                    total[held] += values[name]
                    count[held] += 1
                held = count > 0
                theta[name][held] = total[held] / count[held, None]
            elif name not in own:
                theta[name] = sum(v[name] for v in locals_.values()) / len(locals_)
    return theta, private


@pytest.mark.parametrize(
    ("experiment", "inner_state", "model"),
    [
        ("dept_glob", "reset", []),
        ("dept_glob", "keep", LEARNED),
        ("dept_trim", "keep", UNTIED),
        ("dept_trim", "reset", LEARNED),
        ("dept_spec", "keep", LEARNED + UNTIED),
        ("dept_spec", "reset", []),
        ("dept_spec_opt", "keep", []),
        ("dept_spec_llama", "keep", []),
    ],
    ids=lambda value: (
        "-".join(v.split(".")[-1] for v in value) if isinstance(value, list) else value
    ),
)
def test_a_run_is_algorithm_1(prepared, monkeypatch, experiment, inner_state, model):
    from dept.method.source_state import Slots
    from dept.training import run as run_of_dept

    started = {}

    class Remembering(Slots):
        """Keeps the model as built, and private embeddings as first drawn."""

        def __init__(self, live, *args, **kwargs):
            started["model"] = copy.deepcopy(live.model)
            super().__init__(live, *args, **kwargs)
            self.drawn = {s: copy.deepcopy(self.private_of(s)) for s in self.vocabularies}
            self.private = {}

    monkeypatch.setattr(run_of_dept, "Slots", Remembering)
    name = f"reference-{experiment}-{inner_state}-{len(model)}"
    dept = [f"algorithms.dept.inner_state={inner_state}", "algorithms.dept.sources_per_round=2"]
    trainer = run(prepared, experiment, name, *PLAIN, *dept, *model)
    theta, private = reference(trainer, started["model"], inner_state)
    slots = dept_of(trainer).run.slots
    assert slots.start
    for parameter, value in slots.start.items():
        torch.testing.assert_close(value, theta[parameter], atol=1e-6, rtol=0, msg=parameter)
    for source, values in slots.private.items():
        for parameter, value in values.items():
            torch.testing.assert_close(value, private[source][parameter], atol=1e-6, rtol=0)


def test_one_source_is_plain_training_bit_for_bit(prepared, registries):
    """GLOB with K = 1, fedavg and kept state against Composer without DEPT."""
    from composer.core import DataSpec
    from llmfoundry import registry
    from llmfoundry.data.utils import get_tokens_per_batch_func

    one = ["train_loader.sources=[manual]"]
    dept = run(prepared, "dept_glob", "one-source", *one)

    class Plain(torch.utils.data.Dataset):
        """The samples of the one source in the order in which DEPT reads them."""

        def __init__(self, loader):
            self.source = loader._open["manual"]

        def __len__(self):
            return ROUNDS * LOCAL_STEPS * BATCH

        def __getitem__(self, index):
            return self.source.sample_at(index)

    def build(*, tokenizer, device_batch_size, **_):
        samples = Plain(dept_of(dept).run.loader)
        loader = torch.utils.data.DataLoader(samples, device_batch_size, collate_fn=collate)
        return DataSpec(loader, get_num_tokens_in_batch=get_tokens_per_batch_func())

    registry.dataloaders.register("plain", func=build)
    config = load(prepared, "dept_glob", "run_name=plain", *one)
    del config.algorithms["dept"]
    config.train_loader = {"name": "plain"}
    config.model.vocab_size = read_corpus(prepared, "tiny").tokenizers["global"].vocab_size
    config.max_duration = f"{ROUNDS * LOCAL_STEPS}ba"
    config.callbacks = {}
    config.model.attn_config.attn_impl, config.model.loss_fn = "torch", "torch_crossentropy"
    config.precision, config.device_train_microbatch_size = "fp32", BATCH
    from llmfoundry.command_utils import train as llmfoundry_train

    plain = llmfoundry_train(config)
    for name, value in plain.state.model.named_parameters():
        assert torch.equal(dept_of(dept).run.slots.start[name], value.data), name


def test_trim_over_every_token_is_glob(prepared, monkeypatch):
    from dept.data.corpus import PreparedSource

    rate = "optimizer.lr=4.0e-3"
    glob = run(prepared, "dept_glob", "every-token-glob", rate)
    monkeypatch.setattr(
        PreparedSource, "local_vocabulary", lambda self: torch.arange(self.vocab_size).numpy()
    )
    trim = run(prepared, "dept_trim", "every-token-trim", rate)
    ours, theirs = tensors_of(trim), tensors_of(glob)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [
        json.loads((prepared / "runs" / f"every-token-{v}" / "summary.json").read_text())["average"]
        for v in ("trim", "glob")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("experiment", ["dept_spec", "dept_trim"])
def test_resuming_from_any_checkpoint_is_an_unbroken_run(prepared, experiment):
    """Checkpoints in mid-slot, between slots, before and after the outer step; all state kept."""
    options = [
        "algorithms.dept.outer_optimizer.name=nesterov",
        "algorithms.dept.sources_per_round=2",
        "save_interval=1ba",
        "save_num_checkpoints_to_keep=-1",
    ]
    name = f"whole-{experiment}"
    whole = run(prepared, experiment, name, *options)
    expected, folder = tensors_of(whole), prepared / "runs" / name
    checkpoints = sorted((folder / "checkpoints").glob("ep*.pt"))
    assert len(checkpoints) == 2 * LOCAL_STEPS * ROUNDS
    for batch in (1, 3, 4, 6, 11, 12, 17):
        (checkpoint,) = (folder / "checkpoints").glob(f"ep*-ba{batch}-rank0.pt")
        resumed = run(
            prepared,
            experiment,
            f"resumed-{experiment}-{batch}",
            *options,
            "autoresume=false",
            f"load_path={checkpoint}",
        )
        assert resumed.state.timestamp.batch == 2 * LOCAL_STEPS * ROUNDS
        learned = tensors_of(resumed)
        assert learned.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(learned[key], value), (batch, key)
        assert numbers(folder) == numbers(prepared / "runs" / f"resumed-{experiment}-{batch}")


def numbers(folder):
    """What a summary says of the training, without what the clock says."""
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("timing", "peak_memory_bytes")}


@pytest.mark.parametrize("experiment", ["dept_glob", "dept_trim", "dept_spec", "dept_spec_opt"])
def test_reported_losses_are_those_of_the_text(prepared, experiment):
    """Evaluation once more, token by token, from what the run has learned."""
    trainer = run(prepared, experiment, f"losses-{experiment}")
    summary = json.loads((prepared / "runs" / f"losses-{experiment}" / "summary.json").read_text())
    dept, corpus = dept_of(trainer), read_corpus(prepared, "tiny")
    for source in SOURCES:
        own = experiment == "dept_spec_opt"
        split = corpus.source(source, source if own else "global")
        held = dept.run.slots.vocabularies[source].token_ids
        embedding = dept.run.slots.private.get(source) or dept.run.slots.start
        model = trainer.state.model
        name = "model.transformer.wte.weight"
        model.get_submodule("model.transformer.wte").weight = torch.nn.Parameter(embedding[name])
        total, tokens = 0.0, 0
        for batch in ValidationLoader(split, batch_size=1):
            ids = batch["input_ids"]
            known = torch.isin(ids, held)
            rows = ids
            if experiment == "dept_spec":
                unknown = int(torch.searchsorted(held, model.tokenizer.unk_token_id))
                rows = torch.where(known, torch.searchsorted(held, ids), unknown)
            with torch.no_grad():
                logits = model.model(input_ids=rows).logits[0]
            for i in range(ids.shape[1] - 1):
                target, inside = int(rows[0, i + 1]), bool(known[0, i + 1])
                if experiment == "dept_spec" and not inside:
                    total += math.log(split.vocab_size)
                elif experiment == "dept_trim" and inside:
                    total += float(torch.logsumexp(logits[i][held], 0) - logits[i][target])
                else:
                    total += float(torch.logsumexp(logits[i], 0) - logits[i][target])
                tokens += 1
        result = summary["sources"][source]["eval"]
        assert result["loss"] == pytest.approx(total / tokens, rel=1e-5)
        assert result["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
        val = split.splits["val"]
        bits = total / tokens / math.log(2) * val.tokens / val.bytes
        assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        assert result["unigram_ce"] == split.unigram_ce


def test_files_and_metrics_of_a_run(prepared):
    run(prepared, "dept_spec", "files", "algorithms.dept.sources_per_round=2")
    folder = prepared / "runs" / "files"
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    slots = 2 * ROUNDS
    assert summary["variant"] == "spec" and summary["method"] == "dept_spec"
    assert summary["rounds"] == ROUNDS and summary["steps"] == slots * LOCAL_STEPS
    assert summary["tokens"] == slots * LOCAL_STEPS * BATCH * 32
    assert sum(s["tokens"] for s in summary["sources"].values()) == summary["tokens"]
    assert sum(s["rounds_trained"] for s in summary["sources"].values()) == slots
    # SPEC sends the body and nothing of the embedding: 2 layers of width 32 without biases
    body = 2 * (12 * 32 * 32 + 2 * 32) + 32
    communication = summary["communication"]
    assert communication["parameters_per_step"] == pytest.approx(body / LOCAL_STEPS)
    assert communication["reduction"] == pytest.approx((body + 1200 * 32) / body * LOCAL_STEPS)
    assert communication["sent_bytes"] == communication["other_bytes"] == 0  # one worker
    per_batch = [line for line in lines if "loss/train/total" in line]
    assert [line["batch"] for line in per_batch] == list(range(1, slots * LOCAL_STEPS + 1))
    rounds = [line for line in lines if "dept/sent_bytes" in line]
    assert len(rounds) == ROUNDS
    for line in rounds:
        norms = [key for key in line if key.count("/") == 2 and key.endswith("/update_norm")]
        cosines = [key for key in line if key.startswith("dept/cosine/")]
        assert len(norms) == 2 and len(cosines) == 1 and all(line[key] > 0 for key in norms)
        assert all(abs(line[key]) <= 1 for key in cosines)
    first = [line["loss/train/total"] for line in per_batch[:LOCAL_STEPS]]
    source = next(k for k in rounds[0] if k.endswith("/train_loss")).split("/")[1]
    drawn = [k.split("/")[1] for k in rounds[0] if k.endswith("/train_loss")]
    assert source == drawn[0]
    assert rounds[0][f"dept/{source}/train_loss"] == pytest.approx(sum(first) / LOCAL_STEPS)
    evaluated = [line for line in lines if "eval/average/perplexity" in line]
    assert len(evaluated) == ROUNDS and "eval/held/loss" not in evaluated[0]
    assert (folder / "config.yaml").is_file()


def test_the_last_round_is_evaluated_whatever_the_interval(prepared):
    run(prepared, "dept_spec", "interval", "eval_interval=2ep")
    folder = prepared / "runs" / "interval"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/average/loss" in line]
    assert [line["epoch"] for line in evaluated] == [2, 3]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["average"]["loss"] == evaluated[-1]["eval/average/loss"]
    run(prepared, "dept_spec", "mid-round", "eval_interval=5ba", "max_duration=1ep")
    path = prepared / "runs" / "mid-round" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [n["batch"] for n in lines if "eval/average/loss" in n] == [5, 10, 12]


def test_a_mixture_trains_on_and_evaluates_every_source(prepared):
    options = ["train_loader.epoch_batches=3", "global_train_batch_size=8"]
    trainer = run(prepared, "std", "std", *options)
    summary = json.loads((prepared / "runs" / "std" / "summary.json").read_text())
    assert summary["variant"] == summary["method"] == "std"
    assert summary["tokens"] == 3 * 24 * 32
    assert set(summary["sources"]) == set(SOURCES) and set(summary["held_out"]) == {"held"}
    mixture = trainer.state.train_dataloader.dataset
    assert mixture.probabilities == pytest.approx([1 / 4] * 4)
    read = {name: summary["sources"][name]["passes"] for name in SOURCES}
    sizes = {name: source.order.samples for name, source in mixture.sources.items()}
    assert sum(read[name] * sizes[name] for name in SOURCES) == pytest.approx(3 * 24)
    trainer = run(prepared, "std", "std-tau", *options, "train_loader.tau=1.0", "max_duration=1ep")
    proportions = trainer.state.train_dataloader.dataset.probabilities
    corpus = read_corpus(prepared, "tiny")
    tokens = [corpus.source(name).splits["train"].tokens for name in SOURCES]
    assert proportions == pytest.approx([n / sum(tokens) for n in tokens])


def test_a_checkpoint_of_something_else_is_refused(prepared):
    run(prepared, "dept_glob", "another", "max_duration=1ep")
    (checkpoint,) = (prepared / "runs/another/checkpoints").glob("ep1-*.pt")
    load_it = ["autoresume=false", f"load_path={checkpoint}"]
    with pytest.raises(ValueError, match="made with variant = glob, the yaml says trim"):
        run(prepared, "dept_trim", "refused-1", *load_it)
    with pytest.raises(ValueError, match="1200 rows in the checkpoint and 1 in this run"):
        run(prepared, "dept_spec", "refused-2", *load_it)
    with pytest.raises(ValueError, match=r"made with sources = .* the yaml says"):
        run(prepared, "dept_glob", "refused-3", *load_it, "train_loader.sources=[code,mail]")
    with pytest.raises(ValueError, match="outer optimizer is 'fedavg'"):
        run(
            prepared, "dept_glob", "refused-4", *load_it, "algorithms.dept.outer_optimizer.name=sgd"
        )
