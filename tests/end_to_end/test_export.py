"""Exports of real runs, loaded where llm-foundry is not: their logits are those of training."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hostile import Hostile
from training import REPOSITORY, dept_of, train

from dept.data.corpus import read_corpus
from dept.data.loader import ValidationLoader
from dept.evaluation.export import main
from dept.method.live_model import transformer_of

pytestmark = pytest.mark.end_to_end

LEARNED = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
ROTARY = ["model.attn_config.alibi=false", "model.attn_config.rope=true"]
RUNS = {
    "dept_spec": [],
    "dept_spec_opt": [],
    "dept_trim": [],
    "dept_glob": [],
    "std": ["variables.mixture_batch=8", "variables.local_steps=3"],
    "dept_spec_llama": [],
    "learned": [*LEARNED, "model.no_bias=false", "model.expansion_ratio=2.5"],
    "rotary": [*ROTARY, "model.attn_config.rope_impl=hf", "model.tie_word_embeddings=false"],
    "grouped": [
        "model.attn_config.attn_type=grouped_query_attention",
        "model.attn_config.kv_n_heads=1",
    ],
}
ARCHITECTURES = {
    "dept_spec_llama": "LlamaForCausalLM",
    "learned": "GPT2LMHeadModel",
    "rotary": "GPTNeoXForCausalLM",
    "grouped": "MPTForCausalLM",
}

# What somebody else runs. In isolated mode, hence without this repository.
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {}
for folder, ids in torch.load(sys.argv[1]).items():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code="grouped" in folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(tokenizer.bos_token + "def f(self):", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    said = model.generate(**inputs, do_sample=False)
    found[folder] = (type(model).__name__, logits, said, tokenizer.decode(inputs.input_ids[0]))
assert not any(name.startswith(("llmfoundry", "composer", "dept")) for name in sys.modules)
torch.save(found, sys.argv[2])
"""


def logits_of(trainer, prepared, name, experiment):
    """Rows of validation text, and the logits that the trainer's own model has for them."""
    corpus, source = read_corpus(prepared, "tiny"), "code" if name == "global" else name
    own = experiment == "dept_spec_opt"
    split = corpus.source(source, source if own else "global")
    batch = next(iter(ValidationLoader(split, batch_size=4)))
    ids, model, held = batch["input_ids"], trainer.state.model, None
    if experiment != "std":
        slots = dept_of(trainer).run.slots
        slots.park()
        if name != "global":
            slots.evaluate_as(name)
            vocabulary = slots.vocabularies[name]
            if experiment == "dept_trim":
                held = vocabulary.token_ids
                ids = held[vocabulary.translate(ids, ids)[0]]
            else:
                vocabulary.translate_batch(batch)
                ids = batch["input_ids"]
    model.eval()
    with torch.no_grad():
        logits = transformer_of(model)(input_ids=ids).logits
    if held is not None:
        return torch.searchsorted(held, ids), logits[..., held]
    return ids, logits.clone()


@pytest.fixture(scope="module")
def exported(prepared, tmp_path_factory):
    """Every run, exported and loaded: expected and found logits by run and embedding."""
    folder, expected = tmp_path_factory.mktemp("exports"), {}
    for run, options in RUNS.items():
        experiment = run if (REPOSITORY / f"yamls/{run}.yaml").is_file() else "dept_spec"
        more = [f"run_name={run}", "max_duration=1ep", "optimizer.lr=2.0e-2", *options]
        trainer = train(prepared, experiment, *more)
        checkpoints = str(prepared / "runs" / run / "checkpoints")
        names = ["global"] if run == "std" else ["code", "mail"]
        if run in ("dept_trim", "dept_glob"):
            names += ["global"]
        for name in names:
            out = folder / run / name
            which = [] if name == "global" else ["--source", name]
            assert main([checkpoints, *which, "--out", str(out)]) == 0
            expected[run, name] = (out, *logits_of(trainer, prepared, name, experiment))
    torch.save({str(out): ids for out, ids, _ in expected.values()}, folder / "in.pt")
    command = [sys.executable, "-I", "-c", LOAD, str(folder / "in.pt"), str(folder / "out.pt")]
    environment = {**os.environ, "HF_HOME": str(folder / "hub"), "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run(command, check=True, env=environment, cwd=folder)
    found = torch.load(folder / "out.pt")
    return {key: (out, logits, *found[str(out)]) for key, (out, _, logits) in expected.items()}


def test_logits_are_those_of_training(exported):
    for (run, name), (_, expected, architecture, logits, *_) in exported.items():
        assert architecture == ARCHITECTURES.get(run, "MptForCausalLM")
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5, msg=f"{run} {name}")
        assert float(expected.std()) > 0.05  # of a model that has learned something
    code, mail = (exported["dept_spec", name][1] for name in ("code", "mail"))
    assert code.shape != mail.shape


def test_generation_stays_within_the_trained_length_and_vocabulary(exported):
    for (run, name), (folder, expected, _, _, said, text) in exported.items():
        config = json.loads((folder / "generation_config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["max_length"] == tokenizer["model_max_length"] == 32 >= said.shape[1]
        assert config["bos_token_id"] == config["eos_token_id"] != config["pad_token_id"]
        assert int(said.max()) < expected.shape[-1], (run, name)
        assert text == "</s>def f(self):"


def test_a_directory_says_what_it_is(exported, prepared):
    card = (exported["dept_spec", "code"][0] / "README.md").read_text()
    summary = json.loads((prepared / "runs/dept_spec/summary.json").read_text())
    source = summary["sources"]["code"]
    for fact in (
        "| variant | spec |",
        "| sources | manual, code, mail, tools |",
        "| rounds | 1 |",
        "| local steps | 3 |",
        f"| tokens the body was trained on | {summary['tokens']:,} |",
        f"| tokens of code | {source['tokens']:,} |",
        f"| tokenizer | Unigram of all sources, trimmed to this one, {source['vocab_size']:,} tok",
        f"| code | {source['eval']['loss']:.3f} | {source['eval']['perplexity']:.3f} |",
    ):
        assert fact in card
    assert "| mail |" not in card
    whole = (exported["dept_trim", "global"][0] / "README.md").read_text()
    assert "| mail |" in whole and "| held |" in whole and "Unigram, of all sources" in whole
    grouped = (exported["grouped", "code"][0] / "README.md").read_text()
    assert "trust_remote_code=True" in grouped and "Apache License" in grouped
    assert "trust_remote_code" not in card


def test_every_embedding_and_the_code_of_llm_foundry_if_asked_for(exported, prepared, tmp_path):
    checkpoints = str(prepared / "runs/dept_spec/checkpoints")
    out = tmp_path / "all"
    assert main([checkpoints, "--all", "--remote-code", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"manual", "code", "mail", "tools"}
    config = json.loads((out / "mail" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_mpt.MPTForCausalLM"
    assert (out / "mail" / "modeling_mpt.py").is_file()
    native = exported["dept_spec", "mail"][0] / "model.safetensors"
    assert native.stat().st_size == pytest.approx((out / "mail" / native.name).stat().st_size, 0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["all"]  # nothing unfinished beside it
    only = [str(prepared / "runs/std/checkpoints"), "--all", "--out", str(tmp_path / "std")]
    assert main(only) == 0
    assert [p.name for p in (tmp_path / "std").iterdir()] == ["global"]


def test_what_cannot_be_exported_is_refused_in_a_sentence(exported, prepared, tmp_path, capsys):
    def refuse(message, *arguments, out=tmp_path / "new"):
        assert main([*map(str, arguments), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))

    runs = prepared / "runs"
    spec = runs / "dept_spec/checkpoints"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    refuse("full exists already, and not empty", spec, "--all", out=tmp_path / "full")
    assert (tmp_path / "full" / "mine").read_text() == "kept"
    refuse("has embeddings of manual, code, mail, tools: one must be chosen", spec)
    refuse("'global' is none of them", spec, "--source", "global")
    refuse("'held' is none of them", runs / "dept_trim/checkpoints", "--source", "held")
    refuse("is no MPT: leave --remote-code", runs / "dept_spec_llama/checkpoints", "--remote-code")
    refuse("is not a checkpoint, nor a folder of them", tmp_path / "none")


@pytest.mark.parametrize("where", ["checkpoint", "source"])
def test_code_in_a_checkpoint_is_not_run(exported, prepared, tmp_path, capsys, where):
    theirs = tmp_path / "run" / "checkpoints"
    theirs.parent.mkdir()
    subprocess.run(["cp", "-r", str(prepared / "runs/dept_spec/checkpoints"), theirs], check=True)
    (file,) = theirs.glob("ep1-*.pt") if where == "checkpoint" else theirs.rglob("code/round1*.pt")
    hacked = torch.load(file, weights_only=False)
    hacked["state" if where == "checkpoint" else "slots"]["more"] = Hostile(tmp_path / "hacked")
    torch.save(hacked, file)
    assert main([str(theirs), "--source", "code", "--out", str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "hacked").exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_cannot_name_code_on_the_hub(exported, prepared, tmp_path):
    """`auto_map` of a config would send whoever trusts the export to somebody else's code."""
    theirs = tmp_path / "run" / "checkpoints"
    theirs.parent.mkdir()
    subprocess.run(["cp", "-r", str(prepared / "runs/dept_spec_llama"), theirs.parent], check=True)
    theirs = theirs.parent / "dept_spec_llama" / "checkpoints"
    (file,) = theirs.glob("ep1-*.pt")
    content = torch.load(file, weights_only=False)
    config = content["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
    config["auto_map"] = {"AutoModelForCausalLM": "evil/repository--model.Model"}
    config["torch_dtype"] = "bfloat16"  # would round what was trained in float32
    torch.save(content, file)
    assert main([str(theirs), "--source", "code", "--out", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out" / "config.json").read_text()
    assert "evil" not in written and '"torch_dtype": "float32"' in written
    before = exported["dept_spec_llama", "code"][0] / "model.safetensors"
    assert before.read_bytes() == (tmp_path / "out" / before.name).read_bytes()
