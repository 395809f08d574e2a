"""The examples of docs/extending.md, as a reader would use them."""

import json
import re

import pytest
import torch
from commands import TRAIN, Commands
from training import BATCH, MPT, REPOSITORY, overrides

from dept.method.aggregation import Aggregation
from dept.method.averaging import Share
from dept.method.codecs import CODECS
from dept.method.compression import Compression
from dept.method.rules import RULES
from dept.method.variants import VARIANTS
from dept.transport.reductions import Reductions
from dept.transport.topology import Place
from dept.transport.workers import Workers

TEXT = (REPOSITORY / "docs/extending.md").read_text()
SECTIONS = {part.split("\n")[0]: part for part in TEXT.split("\n## ")[1:]}


def example(section, language):
    """The only block of a language in a section."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.S)
    return block


@pytest.fixture
def fp16():
    exec(example("A codec", "python"), {"__name__": "example"})
    yield
    del CODECS["fp16"]


def test_a_codec_of_a_readers_own_codes_updates(fp16):
    compression = Compression.of({"name": "fp16"})
    update = {"w": torch.randn(30, 50), "phi": torch.randn(7, 6)}
    message, error = compression.encode(update, ("phi",))
    assert len(message) == compression.size(update, ("phi",))
    received = compression.decode(message, update, ("phi",), sender="one")
    assert all((received[n] - update[n]).abs().max() < 1e-2 for n in update)
    assert error[""].abs().max() > 0


def test_a_transport_of_a_readers_own_comes_to_the_mean(tmp_path):
    names = {"__name__": "example"}
    exec(example("A transport", "python"), names)
    start = {"w": torch.zeros(3, 2)}
    local = [{"w": torch.full((3, 2), float(i))} for i in range(3)]
    reduction = names["ThroughFiles"](start, tmp_path)
    for source, values in zip("abc", local, strict=True):
        reduction.add(source, values, Share())
    shares = [{"a": Share(), "b": Share()}, {"c": Share(2.0)}]
    (average,) = reduction.averages(None, shares, stage="here").values()
    assert torch.equal(average.value, torch.full((3, 2), 1.25))


def test_a_rule_of_a_readers_own_chooses_whose_rows_change(monkeypatch):
    monkeypatch.setitem(RULES, "of_the_first", None)  # taken out again after the test
    exec(example("A rule for the average", "python"), {"__name__": "example"})
    reductions = Reductions(None, Aggregation.of({"name": "of_the_first"}, None, None))
    start = {"w": torch.zeros(2), "phi": torch.zeros(5, 2)}
    reduction = reductions.open(start, "abc")
    shares = {s: Share(1.0, {"phi": torch.tensor([0, i + 1])}) for i, s in enumerate("abc")}
    for i, source in enumerate("abc"):
        local = {"w": torch.full((2,), float(i)), "phi": torch.full((2, 2), float(i))}
        reduction.add(source, local, shares[source])
    averages = reduction.averages(Workers(Place()), [shares], stage="here")
    assert averages["w"].value.tolist() == [0.5, 0.5]
    assert averages["phi"].value[:, 0].tolist() == [0.5, 0.0, 1.0, 0.0, 0.0]
    assert averages["phi"].held.tolist() == [True, True, True, False, False]


@pytest.fixture(scope="module")
def commands(prepared):
    return Commands(prepared)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss/train/total"] for line in lines if "loss/train/total" in line]


def arguments(root, name, *more):
    small = [*overrides(root), *MPT, f"global_train_batch_size={BATCH}", f"run_name={name}"]
    return ["yamls/dept_spec.yaml", *small, "variables.local_steps=2", "max_duration=2ep", *more]


@pytest.mark.end_to_end
def test_an_outer_optimizer_of_a_readers_own_steps(prepared, commands, tmp_path):
    code = tmp_path / "signed_steps.py"
    code.write_text(example("An outer optimizer", "python"))
    outer = "algorithms.dept.outer_optimizer={name: signed_steps, lr: 0.001}"
    commands.run("signed", TRAIN, arguments(prepared, "signed", f"code_paths=[{code}]", outer))
    state = torch.load(prepared / "runs/signed/checkpoints/latest-rank0.pt", weights_only=False)[
        "state"
    ]
    assert dict(state["algorithms"])["Dept"]["outer_optimizer"]["name"] == "signed_steps"
    norms = state["model"]["model.transformer.blocks.0.norm_1.weight"]
    # They are ones at first, and each of two rounds moves them by 0.001 or, without a gradient, 0.
    assert set(((norms - 1) * 1000).round().int().tolist()) <= {-2, -1, 0, 1, 2}


@pytest.mark.end_to_end
def test_a_source_of_a_readers_own_is_prepared_and_trained(prepared, commands, tmp_path):
    (tmp_path / "notes.yaml").write_text(example("A source of text", "yaml"))
    (tmp_path / "letters").mkdir()
    text = (prepared / "mail.txt").read_text()
    for i in range(40):
        (tmp_path / f"letters/{i}.txt").write_text(text[i * 2000 : (i + 1) * 2000])
    posts = (prepared / "code.txt").read_text()
    rows = [json.dumps({"body": posts[i * 1000 : (i + 1) * 1000]}) for i in range(80)]
    (tmp_path / "posts.jsonl").write_text("\n".join(rows))
    prepare = [str(tmp_path / "notes.yaml"), "--root", str(tmp_path)]
    commands.run("notes-data", "dept.data_prep.prepare", prepare)
    given = arguments(tmp_path, "notes", "variables.corpus=notes", "variables.worker_batch=2")
    given = [a.replace("tokenizers/tiny", "tokenizers/notes") for a in given]
    commands.run("notes", TRAIN, given)
    summary = json.loads((tmp_path / "runs/notes/summary.json").read_text())
    assert summary["sources"].keys() == {"letters", "posts"}


@pytest.mark.end_to_end
def test_a_variant_of_a_readers_own_shares_positions(prepared, tmp_path):
    from training import train

    from dept.checkpoint.reader import read_trained

    exec(example("A variant", "python"), {"__name__": "example"})
    try:
        positions = ["model.attn_config.alibi=false", "model.learned_pos_emb=true"]
        train(
            prepared,
            "dept_spec",
            "run_name=shared-psi",
            "algorithms.dept.variant=spec_shared_psi",
            *positions,
        )
        trained = read_trained(prepared / "runs/shared-psi/checkpoints")
        assert any("wpe" in name for name in trained.parameters)
        assert all("wpe" not in n for values in trained.private().values() for n in values)
    finally:
        del VARIANTS["spec_shared_psi"]
