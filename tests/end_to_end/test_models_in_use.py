"""The commands that use a trained model: generate, routing, perplexity; on a run of SPEC."""

import io
import itertools
import json
import math

import pytest
import torch
from external import CONTEXT, plain_nats, save_neox
from PIL import Image
from training import train
from transformers import AutoModelForCausalLM, AutoTokenizer

from dept.data_prep.files import read_texts
from dept.evaluation import generate, perplexity, routing
from dept.evaluation.models.source_models import TrainedRun
from dept.evaluation.scoring import routers

pytestmark = pytest.mark.end_to_end

SOURCES = ["manual", "code", "mail", "tools"]
CODE = "    def __init__(self, option_strings, dest, nargs=None, const=None, default=None):\n"


@pytest.fixture(scope="module")
def spec(prepared):
    """Checkpoints of a small run."""
    train(prepared, "dept_spec", "run_name=in-use", "max_duration=2ep", "optimizer.lr=1.0e-2")
    return prepared / "runs" / "in-use" / "checkpoints"


@pytest.fixture(scope="module")
def externals(prepared, tmp_path_factory):
    """Directories of two models from elsewhere: trained a little, and not at all."""
    folder = tmp_path_factory.mktemp("elsewhere")
    text = (prepared / "manual.txt").read_text()
    save_neox(folder / "neox", text, steps=60)
    save_neox(folder / "untrained", text, steps=0)
    return folder


def validation_texts(root, source):
    files = sorted((root / "data/tiny" / source / "text/val").glob("*"))
    return list(itertools.chain.from_iterable(map(read_texts, files)))


@pytest.mark.parametrize("rule", routers.RULES)
def test_generate_picks_the_source_and_goes_on(spec, capsys, rule):
    arguments = [f"{spec}", "--prompt", CODE, "--route", rule, "--max-new-tokens", "80"]
    assert generate.main(arguments) == 0  # 80 tokens are beyond the context of 32
    said = capsys.readouterr().out
    run = TrainedRun(spec)
    router = routers.router_of(run, rule)
    bits = dict(zip(router.names, router.bits_per_byte([CODE])[:, 0].tolist(), strict=True))
    first, second = sorted(bits, key=bits.__getitem__)[:2]
    assert said.startswith(
        f"source: {first} ({rule} rule: {bits[first]:.3f} bits per byte, "
        f"next {second} with {bits[second]:.3f})\n\n{CODE}"
    )
    if rule == "unigram":
        assert first == "code"
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == said  # the same seed
    assert generate.main([*arguments, "--seed", "18"]) == 0
    assert capsys.readouterr().out != said


def test_a_greedy_continuation_is_that_of_plain_torch(spec):
    source = TrainedRun(spec).model("mail")
    tokenizer = source.tokenizer
    banned = [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id]
    assert generate.never_drawn(source) == sorted(banned)
    ids = tokenizer("The message", add_special_tokens=False).input_ids
    window, written = [tokenizer.eos_token_id, *ids], []
    for _ in range(60):
        if len(window) == 32:
            window = window[-16:]  # the context is full
        with torch.no_grad():
            logits = source.model(input_ids=torch.tensor([window])).logits[0, -1]
        logits[banned] = -math.inf
        written.append(int(logits.argmax()))
        window.append(written[-1])
        if written[-1] == tokenizer.eos_token_id:
            break
    text = generate.continuation(source, "The message", generate.Sampling(60, temperature=0))
    assert text == tokenizer.decode(written, skip_special_tokens=True)


def test_another_architecture_is_generated_and_scored_alike(prepared, tmp_path, capsys):
    """A Llama's checkpoint names its one matrix twice, and only one is the source's."""
    train(prepared, "dept_spec_llama", "run_name=llama", "max_duration=1ep")
    checkpoints = f"{prepared}/runs/llama/checkpoints"
    few = ["--max-new-tokens", "40", "--temperature", "0"]
    capsys.readouterr()
    assert generate.main([checkpoints, "--prompt", CODE, *few]) == 0
    assert capsys.readouterr().out.startswith("source: code (unigram rule: ")
    assert perplexity.main([checkpoints, "--bytes", "2000", "--out", f"{tmp_path}"]) == 0
    source = TrainedRun(checkpoints).model("code")
    assert source.model.get_input_embeddings().weight is source.model.get_output_embeddings().weight
    private = TrainedRun(checkpoints).private["code"]
    (matrix,) = (value for name, value in private.items() if "embed_tokens" in name)
    assert torch.equal(source.model.get_input_embeddings().weight, matrix)


def test_generate_takes_prompts_and_models_of_all_kinds(spec, externals, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The 漢字 of\n"))
    few = ["--max-new-tokens", "5", "--top-k", "5", "--top-p", "0.9"]
    assert generate.main([f"{spec}", "--prompt", "-", "--source", "tools", *few]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("source: tools (as asked)\n\nThe 漢字 of")
    assert "tools cannot read 6 bytes" in said.err
    long = " ".join(["is a list of"] * 30)  # more than the context
    assert generate.main([f"{externals / 'neox'}", "--prompt", long, *few]) == 0
    assert capsys.readouterr().out.startswith(f"source: neox (it has no other)\n\n{long}")
    for arguments, message in {
        (f"{spec}", "--prompt", " "): "is of no source: name one with --source",
        (f"{spec}", "--prompt", "a", "--source", "held"): "'held' is none of them",
        (f"{externals / 'none'}", "--prompt", "a"): "is no checkpoint and no model of",
    }.items():
        assert generate.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_routing_measures_both_rules_of_a_run(spec, capsys):
    assert routing.main([f"{spec}", "--lengths", "100", "--pieces", "12"]) == 0
    assert "model, 100 bytes" in capsys.readouterr().out
    found = json.loads((spec.parent / "routing.json").read_text())["100"]
    assert list(found) == ["unigram", "model"]
    for result in found.values():
        assert [sum(row.values()) for row in result["confusion"].values()] == [12] * 4
        assert result["average"] == pytest.approx(sum(result["accuracy"].values()) / 4)
    assert found["unigram"]["average"] > 0.6


def test_the_matrix_has_every_text_under_every_embedding(spec, tmp_path, capsys):
    whole = ["--bytes", "1000000", "--out", f"{tmp_path}"]
    assert perplexity.main([f"{spec}", *whole]) == 0
    assert "held (held out)" in capsys.readouterr().out
    content = json.loads((tmp_path / "perplexity.json").read_text())["models"]["in-use"]
    assert list(content["matrix"]) == [*SOURCES, "held"]
    assert all(list(row) == SOURCES for row in content["matrix"].values())
    assert content["listed"]["code"]["embedding"] == "code"
    held = content["listed"]["held"]
    assert held["bits_per_byte"] == min(
        b["bits_per_byte"] for b in content["matrix"]["held"].values()
    )
    summary = json.loads((spec.parent / "summary.json").read_text())
    assert content["tokens"] == summary["tokens"]
    for source in SOURCES:
        cell = content["matrix"][source][source]
        texts = validation_texts(spec.parents[2], source)
        assert cell["bytes"] == sum(len(text.encode()) for text in texts)
        trained = summary["sources"][source]["eval"]["bits_per_byte"]
        # What training charges for a token that has no row is less than spelling it takes.
        assert cell["bits_per_byte"] == pytest.approx(trained, rel=0.1)
    image = Image.open(tmp_path / "in-use.png")
    assert min(image.size) > 300 and len(image.getcolors()) > 10

    assert perplexity.main([f"{spec}", *whole]) == 2
    assert "perplexity.json exists already" in capsys.readouterr().err


def test_models_from_elsewhere_are_listed_beside_ours(spec, externals, tmp_path, capsys):
    models = [f"{spec}", f"{externals / 'neox'}", f"{externals / 'untrained'}"]
    more = ["--bytes", "3000", "--out", f"{tmp_path}", "--tokens", "neox=23040"]
    assert perplexity.main([*models, *more]) == 0
    said = capsys.readouterr().out
    assert "23.04k" in said and "unknown" in said
    content = json.loads((tmp_path / "perplexity.json").read_text())["models"]
    neox, worse = content["neox"], content["untrained"]
    assert (neox["tokens"], worse["tokens"], neox["context"]) == (23040, None, CONTEXT)
    for source in SOURCES:
        figures = [m["listed"][source]["bits_per_byte"] for m in (neox, worse)]
        assert figures[0] < 0.8 * figures[1]
    assert (tmp_path / "models.png").is_file()

    model = AutoModelForCausalLM.from_pretrained(externals / "neox").eval()
    tokenizer = AutoTokenizer.from_pretrained(externals / "neox")
    assert sum(neox["parameters"].values()) == sum(p.numel() for p in model.parameters())
    whole = ["--bytes", "1000000", "--out", f"{tmp_path / 'whole'}"]
    corpus = ["--corpus", "tiny", "--root", f"{spec.parents[2]}"]
    assert perplexity.main([f"{externals / 'neox'}", *corpus, *whole]) == 0
    found = json.loads((tmp_path / "whole/perplexity.json").read_text())["models"]["neox"]
    texts = validation_texts(spec.parents[2], "code")
    stream = [tokenizer.eos_token_id]
    for text in texts:
        stream += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    expected = sum(plain_nats(model, stream, CONTEXT)) / math.log(2)
    expected /= sum(len(text.encode()) for text in texts)
    assert found["listed"]["code"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_compared_is_refused(spec, externals, tmp_path, capsys):
    neox, out = f"{externals / 'neox'}", ["--out", f"{tmp_path}"]
    for arguments, message in {
        (neox, *out): "no model is a checkpoint, which would name its corpus: give --corpus",
        (neox, f"{spec}"): "has no folder of a run to write to: give --out",
        (neox, neox): "a model is named twice",
        (f"{spec}", *out, "--tokens", "neo=3e9"): "--tokens names neo, and the models are in-use",
        (f"{spec}", *out, "--tokens", "in-use"): "is not NAME=N",
    }.items():
        assert perplexity.main(arguments) == 2
        assert message in capsys.readouterr().err
