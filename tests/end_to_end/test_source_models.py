"""Models of sources from checkpoints: theirs are the losses that the run reported."""

import json
import math
import shutil

import pytest
import torch
from training import train

from dept.data.corpus import read_corpus
from dept.data.loader import ValidationLoader
from dept.errors import ConfigError, DataError
from dept.evaluation.models.source_models import TrainedRun, load

pytestmark = pytest.mark.end_to_end
SOURCES = ["manual", "code", "mail", "tools"]


@pytest.fixture(scope="module")
def runs(prepared):
    """Folders of runs, by experiment."""
    for experiment in ("dept_spec", "dept_spec_opt", "dept_trim"):
        train(prepared, experiment, f"run_name=models-{experiment}", "max_duration=2ep")
    return lambda experiment: prepared / "runs" / f"models-{experiment}"


@pytest.mark.parametrize("experiment", ["dept_spec", "dept_spec_opt"])
def test_a_source_has_the_loss_that_the_run_reported(prepared, runs, experiment):
    corpus = read_corpus(prepared, "tiny")
    trained = TrainedRun(runs(experiment) / "checkpoints")
    summary = json.loads((runs(experiment) / "summary.json").read_text())
    for name in SOURCES:
        made = trained.model(name)
        split = corpus.source(name, name if experiment == "dept_spec_opt" else "global")
        assert made.prepared == split and made.untrained_ids == () and made.max_length == 32
        assert made.model.config.vocab_size == summary["sources"][name]["vocab_size"]
        held = torch.arange(split.vocab_size)
        if experiment == "dept_spec":
            held = torch.from_numpy(split.local_vocabulary())
        row_of = torch.full((split.vocab_size,), made.tokenizer.unk_token_id)
        row_of[held] = torch.arange(len(held))
        total = tokens = charged = 0
        for batch in ValidationLoader(split, batch_size=8):
            ids = batch["input_ids"]
            known = torch.isin(ids[:, 1:], held)
            with torch.no_grad():
                logits = made.model(input_ids=row_of[ids]).logits[:, :-1]
            costs = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), row_of[ids[:, 1:]].flatten(), reduction="none"
            ).view(known.shape)
            total += float(costs[known].sum())
            tokens += known.numel()
            charged += int((~known).sum())
        reported = summary["sources"][name]["eval"]["loss"]
        total += charged * math.log(split.vocab_size)
        assert total / tokens == pytest.approx(reported, rel=1e-5)


def test_which_embeddings_there_are(runs):
    spec, trim = (TrainedRun(runs(e) / "checkpoints") for e in ("dept_spec", "dept_trim"))
    assert spec.names == SOURCES and trim.names == ["global", *SOURCES]
    assert trim.model().name == "global" and trim.model().prepared is None
    for name in (None, "global", "held"):
        with pytest.raises(ConfigError, match="has embeddings of manual, code, mail, tools: "):
            spec.model(name)


def test_an_embedding_is_that_of_its_checkpoint_not_of_a_later_half_round(prepared, runs):
    """A run that goes on and is killed in mid-round leaves files of that round behind."""
    theirs = runs("dept_spec").with_name("half")
    shutil.copytree(runs("dept_spec"), theirs)
    file = theirs / "checkpoints/sources/code/round2-step0.pt"
    later = torch.load(file, weights_only=True)
    private = later["slots"]["private"]
    later["slots"]["finished"] = {name: torch.zeros_like(v) for name, v in private.items()}
    torch.save(later, file.with_name("round2-step1.pt"))
    before = TrainedRun(runs("dept_spec") / "checkpoints").model("code").model
    after = TrainedRun(theirs / "checkpoints").model("code").model
    wte = "transformer.wte.weight"
    assert torch.equal(before.state_dict()[wte], after.state_dict()[wte])


def test_a_body_and_an_embedding_of_different_rounds_are_refused(runs):
    theirs = runs("dept_spec").with_name("mixed")
    shutil.copytree(runs("dept_spec"), theirs)
    (theirs / "checkpoints/sources/code/round2-step0.pt").unlink()
    refused = r"code has code as of round 1, and ep2-\S+ belongs to its file of round 2: copy"
    with pytest.raises(ConfigError, match=refused):
        TrainedRun(theirs / "checkpoints").model("code")


def test_any_model_of_transformers_is_loaded_alike(runs, tmp_path):
    made = load(runs("dept_spec") / "checkpoints", "mail")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    inputs = made.tokenizer("def f(self):", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again.model(**inputs).logits, made.model(**inputs).logits)
    assert again.parameters == made.parameters == sum(p.numel() for p in made.model.parameters())
    assert again.name == tmp_path.name and again.prepared is None
    with pytest.raises(ConfigError, match="has one embedding: leave --source out"):
        load(tmp_path, "mail")
    (tmp_path / "config.json").write_text('{"model_type": "none such"}')
    with pytest.raises(ConfigError, match="no model of transformers that can be read"):
        load(tmp_path)


def test_what_is_missing_is_named(prepared, runs, tmp_path):
    with pytest.raises(DataError, match=r"corpus.json does not exist"):
        TrainedRun(runs("dept_spec") / "checkpoints", tmp_path).model("code")
    alone = tmp_path / "alone" / "checkpoints"
    shutil.copytree(runs("dept_spec") / "checkpoints", alone)
    with pytest.raises(ConfigError, match=r"config.yaml does not exist or names no corpus"):
        TrainedRun(alone).model("code")
    shutil.rmtree(alone / "sources")
    with pytest.raises(ConfigError, match="holds no private embeddings: copy it"):
        _ = TrainedRun(alone).names
    other = tmp_path / "other" / "checkpoints"
    shutil.copytree(runs("dept_spec"), other.parent)
    file = next(other.glob("ep2-*.pt"))
    content = torch.load(file, weights_only=False)
    dict(content["state"]["algorithms"])["Dept"]["identity"]["tokenizers"]["code"] = "0" * 64
    torch.save(content, file)
    with pytest.raises(ConfigError, match="another tokenizer than corpus tiny has"):
        TrainedRun(file).model("code")
