"""A source that comes later: the real trainer on the small corpus, from a body that it trained."""

import json

import pytest
import torch
from training import load, train

from dept.checkpoint.reader import read_trained
from dept.errors import ConfigError

pytestmark = pytest.mark.end_to_end

WTE = "model.transformer.wte.weight"
STEPS = ["variables.local_steps=3", "variables.mixture_batch=4"]
KEPT = ["save_interval=1ba", "save_num_checkpoints_to_keep=-1"]


def run(root, experiment, name, *more):
    return train(root, experiment, f"run_name={name}", *STEPS, *more)


def checkpoints(root, name):
    return root / "runs" / name / "checkpoints"


@pytest.fixture(scope="module")
def trained(prepared):
    """A run over three sources; ``tools`` has a tokenizer of its own too, and comes later."""
    known = ["train_loader.sources=[manual,code,mail]", "max_duration=2ep"]
    run(prepared, "dept_spec", "three", *known)
    return checkpoints(prepared, "three")


@pytest.fixture(scope="module")
def add(prepared, trained):
    def add_source(name, source, *more):
        checkpoint = f"variables.checkpoint={trained}"
        run(prepared, "add_source", name, checkpoint, f"variables.source={source}", *more)
        return read_trained(checkpoints(prepared, name))

    return add_source


def body(parameters):
    return {name: value for name, value in parameters.items() if name != WTE}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [name for name in ours if torch.equal(ours[name], theirs[name])]


def loss(root, run_name, name):
    """Mean cross-entropy of the validation text of a source, by the model a checkpoint gives."""
    from dept.data.shards import TokenReader
    from dept.evaluation.models.source_models import TrainedRun

    loaded = TrainedRun(checkpoints(root, run_name)).model(name)
    reader = TokenReader(loaded.prepared.val)
    total = 0.0
    for i in range(len(reader)):
        ids = torch.from_numpy(reader[i].astype("int64"))
        with torch.no_grad():
            logits = loaded.model(input_ids=ids[None]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))
    return total / len(reader)


def test_only_its_embedding_is_trained_and_it_is_of_use(prepared, trained, add):
    from dept.evaluation.models.source_models import TrainedRun

    before, after = read_trained(trained), add("frozen", "tools", *KEPT)
    assert same(body(before.parameters), body(after.parameters)) == [*body(before.parameters)]
    found = TrainedRun(checkpoints(prepared, "frozen"))
    assert found.names == ["tools"] and found.model("tools").tokenizer.vocab_size == 700
    summary = json.loads((prepared / "runs" / "frozen" / "summary.json").read_text())
    reported = summary["sources"]["tools"]
    assert loss(prepared, "frozen", "tools") == pytest.approx(reported["eval"]["loss"], rel=1e-4)
    assert reported["tokens"] == 3 * 3 * 4 * 32
    lines = (prepared / "runs" / "frozen" / "metrics.jsonl").read_text().splitlines()
    losses = [m["loss/train/tools"] for m in map(json.loads, lines) if "loss/train/tools" in m]
    assert losses[-1] < losses[0] - 0.05  # and it learns


def test_a_killed_run_goes_on_with_the_same_body_and_embedding(prepared, add):
    whole = read_trained(checkpoints(prepared, "frozen"))
    (middle,) = checkpoints(prepared, "frozen").glob("ep1-ba4-rank0.pt")
    resumed = add("resumed", "tools", "autoresume=false", f"load_path={middle}")
    assert same(body(whole.parameters), body(resumed.parameters)) == [*body(whole.parameters)]
    assert torch.equal(whole.private()["tools"][WTE], resumed.private()["tools"][WTE])


def test_the_body_may_be_trained_too(trained, add):
    after = add("all", "tools", "variables.train=all")
    assert same(body(read_trained(trained).parameters), body(after.parameters)) == []


def test_a_held_out_source_has_rows_of_the_global_tokenizer(prepared, add):
    after = add("held", "held", "algorithms.dept.variant=spec", "max_duration=1ep")
    from dept.data.corpus import read_corpus

    assert list(after.private()) == ["held"]
    assert (
        len(after.private()["held"][WTE])
        == read_corpus(prepared, "tiny").source("held").local_vocab_size
    )


def test_rows_may_begin_as_those_of_other_sources(prepared, trained, add, monkeypatch):
    """What one source alone has met begins as its row; what nobody can spell, at random."""
    from dept.data.corpus import GLOBAL, read_corpus
    from dept.embeddings.token_strings import strings_of
    from dept.training.start_from import StartFrom

    before_load, begun = StartFrom.before_load, {}

    def watch(self, state, logger):
        before_load(self, state, logger)
        (dept,) = (a for a in state.algorithms if hasattr(a, "run"))
        begun.update({n: v.clone() for n, v in dept.run.slots.private_of("tools").items()})

    monkeypatch.setattr(StartFrom, "before_load", watch)
    add("random", "tools", "max_duration=1ep")
    drawn = begun[WTE]
    add("merged", "tools", "max_duration=1ep", "variables.embedding=merged")
    corpus = read_corpus(prepared, "tiny")
    every, held = strings_of(corpus.tokenizers[GLOBAL].path), {}
    for source, values in read_trained(trained).private().items():
        prepared_source = corpus.source(source)
        counts = prepared_source.counts()
        for row, i in enumerate(prepared_source.local_vocabulary().tolist()):
            if counts[i] > 0:
                held.setdefault(every[i], []).append(values[WTE][row])
    target = strings_of(corpus.tokenizers["tools"].path)
    alone = [i for i, token in enumerate(target) if len(held.get(token, ())) == 1]
    assert len(alone) > 20
    for i in alone:
        torch.testing.assert_close(begun[WTE][i], held[target[i]][0], msg=target[i])
        assert not torch.equal(begun[WTE][i], drawn[i])


def test_what_cannot_be_added_is_refused(prepared, trained):
    def refuse(message, *more):
        checkpoint = [f"variables.checkpoint={trained}", "variables.source=tools"]
        with pytest.raises(ValueError, match=message):
            load(prepared, "add_source", *checkpoint, *more)

    glob = "algorithms.dept.variant=glob"
    refuse("adds sources with .*variant is glob: set it to spec or spec_opt", glob)
    refuse("pretrained, and a new source has none", "variables.embedding=pretrained")
    refuse("held of corpus tiny is not tokenized with 'held'", "variables.source=held")
    refuse("frozen.body", "variables.train=body")
    with pytest.raises(ConfigError, match="has no private embeddings"):
        std = ["max_duration=1ep", "run_name=std-beside"]
        train(prepared, "std", *STEPS, *std)
        plain = f"variables.checkpoint={checkpoints(prepared, 'std-beside')}"
        more = ["variables.source=tools", "variables.embedding=merged"]
        run(prepared, "add_source", "refused", plain, *more)
