"""Sources that join and leave a federation, what silos share, and models in use after it."""

import json
import math

import numpy as np
import pytest
import torch
from fleet import Fleet, learned
from flower_processes import wait_until
from parties import NESTEROV, SILOS, SOURCES
from training import LOCAL_STEPS, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from dept.checkpoint.reader import read_trained
from dept.data.corpus import read_corpus
from dept.data.loader import ValidationLoader
from dept.embeddings.token_strings import strings_of
from dept.errors import ConfigError
from dept.evaluation import export
from dept.method.privacy import delta_of
from dept.transport.flower.messages import KINDS

pytestmark = pytest.mark.end_to_end

WTE = "model.transformer.wte.weight"
ROUNDS = 4
OPEN = "algorithms.dept.allow_source_changes=true"
COMMON = [f"max_duration={ROUNDS}ep", "algorithms.dept.inner_state=keep", NESTEROV]
HALF = "algorithms.dept.sources_per_round=2"
UNTIED = "model.tie_word_embeddings=false"
FIRST = [*SILOS["left"], *SILOS["middle"]]


@pytest.fixture(scope="module")
def fleet():
    fleet = Fleet(1)
    yield fleet
    fleet.close()


def of(sources, section="train_loader"):
    return f"{section}.sources=[{','.join(sources)}]"


FEDERATED = "algorithms.dept.federation"


def server_folder(parties, name):
    return parties.folder / "server" / "runs" / name / "server"


def held_until_it_changes(parties, name):
    """Replies to round 2 wait until the server has written that its sources change."""
    changes = server_folder(parties, name) / "sources.json"
    return lambda parcel: parcel.fields.get("round") == 1 and not changes.is_file()


def one_job(prepared, fleet, experiment, name, before, after, *more):
    """The same in one job, which resumes with other sources after its second round."""
    options = [*COMMON, *more]
    keep = "save_num_checkpoints_to_keep=-1"
    fleet.train(prepared, experiment, f"run_name={name}-1", of(before), keep, *options, processes=1)
    (checkpoint,) = (prepared / "runs" / f"{name}-1" / "checkpoints").glob("ep2-*.pt")
    again = [OPEN, "autoresume=false", f"load_path={checkpoint}", of(after)]
    return learned(
        fleet.train(prepared, experiment, f"run_name={name}-2", *again, *options, processes=1)
    )


def assert_drawn_and_learned(parties, name, state, theirs):
    ours = parties.learned(name, state)
    drawn = {source for line in state.history for source in line["averaged"]}
    wanted = {k: v for k, v in theirs.items() if k.partition("/")[0] in {"global", *drawn}}
    assert any(k.startswith("global/") for k in wanted)
    for key, value in wanted.items():
        assert np.array_equal(ours[key], value), key


# --- a source joins, and a silo shares its embeddings ---------------------------------------------


@pytest.fixture(scope="module")
def joined(parties):
    """SPEC: ``tools``, of which the server knows nothing, is in the draw of round 3."""
    name, more = "joined", [*COMMON, OPEN, HALF, UNTIED, of(FIRST, FEDERATED)]
    for silo in SILOS:
        shares = [f"{FEDERATED}.share_embedding=true"] if silo == "left" else []
        parties.start_trainer(silo, "dept_spec", name, *more, *shares)

    def prepare(grid):
        grid.online.discard(3)
        grid.is_held = held_until_it_changes(parties, name)
        grid.before_push = lambda parcel, node: (
            grid.online.add(3) if parcel.fields.get("round") == 1 else None
        )

    state, grid = parties.serve_here("dept_spec", name, *more, prepare=prepare)
    parties.end(name)
    return state, grid


def test_a_source_that_joins_learns_the_bits_of_one_job(parties, prepared, fleet, joined):
    state, _ = joined
    assert all(line["missing"] == [] for line in state.history)
    assert "tools" in state.history[2]["drawn"] + state.history[3]["drawn"]
    theirs = one_job(prepared, fleet, "dept_spec", "joined", FIRST, SOURCES, HALF, UNTIED)
    assert_drawn_and_learned(parties, "joined", state, theirs)
    summary = json.loads((server_folder(parties, "joined") / "summary.json").read_text())
    (change,) = summary["source_changes"]
    assert (change["round"], change["joined"], change["left"]) == (3, ["tools"], [])


def test_private_embeddings_travel_once_and_only_from_the_silo_that_shares_them(joined):
    state, grid = joined
    private = {WTE, "model.lm_head.weight"}
    of_kind = {"embeddings": []}
    for asked, reply in grid.messages:
        for parcel in (asked, reply):
            if parcel is None:
                continue
            of_kind.setdefault(parcel.kind, []).append(parcel)
            assert parcel.fields.keys() == KINDS[parcel.kind].fields.keys()
            names = {name.partition("/")[2] or name for name in parcel.arrays}
            if parcel.kind != "embeddings":
                assert not names & {*private, "tokens"} and names <= state.theta.keys()
    (parcel,) = of_kind["embeddings"]
    trained = [s for s in SILOS["left"] if any(s in line["averaged"] for line in state.history)]
    assert parcel.fields["silo"] == "left" and parcel.fields["sources"] == trained
    assert parcel.fields["round"] == ROUNDS
    assert {name.partition("/")[2] for name in parcel.arrays} == {*private, "tokens"}


def test_others_start_from_the_embeddings_that_were_shared(parties, prepared, joined, caplog):
    state, _ = joined
    folder = server_folder(parties, "joined")
    trained, newest = read_trained(folder), parties.newest("joined")
    corpus = read_corpus(prepared, "tiny")
    strings = strings_of(corpus.tokenizers["global"].path)
    for source, values in trained.private().items():
        held = [strings[i] for i in corpus.source(source).local_vocabulary()]
        ours = newest[source]["slots"]["private"]
        assert set(trained.shared[source].tokens) == set(held)
        place = {token: i for i, token in enumerate(trained.shared[source].tokens)}
        order = torch.tensor([place[token] for token in held])
        for name in (WTE, "model.lm_head.weight"):
            assert torch.equal(values[name][order], ours[name])
    assert set(trained.private()) <= set(SILOS["left"]) and trained.private()
    for name, value in state.theta.items():
        assert torch.equal(trained.parameters[name], value)
    more = [f"variables.checkpoint={folder}", "variables.mixture_batch=8", UNTIED]
    more += ["run_name=from-shared", "max_duration=1ep", "variables.local_steps=2"]
    with pytest.raises(ConfigError, match=r"set callbacks.start_from.weighting to uniform"):
        train(prepared, "continued_merged", *more)
    uniform = "callbacks.start_from.weighting=uniform"
    trainer = train(prepared, "continued_merged", *more, uniform)
    assert trainer.state.timestamp.epoch == 1
    said = [r.message for r in caplog.records if r.message.startswith(f"{WTE} from ")]
    assert any("shared" in line for line in said), said


def test_a_silo_exports_its_model_after_a_federation(parties, joined, tmp_path):
    state, _ = joined
    folder = parties.folder / "right"
    checkpoints = folder / "runs" / "joined" / "checkpoints"
    asked = [str(checkpoints), "--root", str(folder), "--out", str(tmp_path / "tools")]
    assert export.main([*asked, "--source", "tools"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tools")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tools")
    private = parties.newest("joined")["tools"]["slots"]["private"]
    assert torch.equal(model.transformer.wte.weight, private[WTE])
    assert torch.equal(model.lm_head.weight, private["model.lm_head.weight"])
    theta = {name.removeprefix("model."): value for name, value in state.theta.items()}
    found = dict(model.named_parameters())
    assert len(theta) > 5 and all(torch.equal(found[name], theta[name]) for name in theta)
    inputs = tokenizer(tokenizer.bos_token + "def f(self):", return_tensors="pt")
    assert len(model.generate(**inputs, max_new_tokens=3, do_sample=False)[0]) > 3


def test_the_server_of_spec_has_the_body_alone(parties, joined, tmp_path, capsys, caplog):
    asked = [str(server_folder(parties, "joined")), "--out", str(tmp_path / "x")]
    assert export.main(asked) == 2
    assert "is the body alone, since spec has no global embedding" in caplog.text


# --- a source leaves ------------------------------------------------------------------------------


def test_a_source_that_leaves_learns_the_bits_of_one_job(parties, prepared, fleet, tmp_path):
    """TRIM: the only source of a silo leaves after the second round, which it has begun."""
    name, more = "left", [*COMMON, OPEN]
    restarted = []

    def before_push(parcel, node):
        if parcel.kind == "round" and parcel.fields["round"] == 1 and not restarted:
            restarted.append(node)
            parties.kill("right/trainer")
            leave = f"{FEDERATED}.leave=[tools]"
            parties.start_trainer("right", "dept_trim", name, *more, leave)

    def prepare(grid):
        grid.before_push = before_push
        grid.is_held = held_until_it_changes(parties, name)

    for silo in SILOS:
        parties.start_trainer(silo, "dept_trim", name, *more)
    state, grid = parties.serve_here("dept_trim", name, *more, prepare=prepare)
    assert wait_until(lambda: not parties.processes["right/trainer"].is_alive())
    parties.end(name)
    drawn = [line["drawn"] for line in state.history[:ROUNDS]]
    assert drawn == [SOURCES, SOURCES, FIRST, FIRST]
    assert all(line["missing"] == [] for line in state.history)
    theirs = one_job(prepared, fleet, "dept_trim", name, SOURCES, FIRST)
    assert_drawn_and_learned(parties, name, state, theirs)
    assert "silo right has left the federation after round 2" in parties.log("right", "trainer")
    assert f"round 2/{ROUNDS}  loss tools" in parties.log("right", "trainer")
    asked = [p for p, r in grid.messages if r and r.fields.get("silo") == "right"]
    assert max(p.fields.get("round", 0) for p in asked) == 2
    folder = parties.folder / "right"
    assert json.loads((folder / "runs" / name / "summary.json").read_text())["rounds"] == 2
    position = parties.newest(name)["tools"]["position"]
    assert position == 2 * LOCAL_STEPS * 4
    asked = [str(folder / "runs" / name / "checkpoints"), "--root", str(folder)]
    assert export.main([*asked, "--source", "tools", "--out", str(tmp_path / "tools")]) == 0

    # The server has the global embedding; its tokenizer is that of any silo
    asked = [str(server_folder(parties, name)), "--root", str(parties.folder / "left")]
    assert export.main([*asked, "--out", str(tmp_path / "all")]) == 0
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "all").named_parameters())
    theta = {key.removeprefix("model."): value for key, value in state.theta.items()}
    assert found.keys() == theta.keys()
    assert all(torch.equal(found[key], value) for key, value in theta.items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "all")
    assert len(tokenizer) == len(theta["transformer.wte.weight"])


# --- a silo adds noise ----------------------------------------------------------------------------


def test_the_update_of_a_silo_with_local_privacy_is_noise_to_others(parties, prepared, tmp_path):
    name, more = "noisy", [*COMMON]
    clip, multiplier = 0.01, 5.0
    noise = f"{{clip_update_norm: {clip}, noise_multiplier: {multiplier}}}"
    private = [f"{FEDERATED}.local_privacy={noise}", f"{FEDERATED}.metrics=[]"]
    kills = []

    def before_push(parcel, node):
        if parcel.kind == "round" and parcel.fields["round"] == 2 and not kills:
            kills.append(node)
            parties.kill("left/trainer")
            parties.start_trainer("left", "dept_glob", name, *more, *private)

    for silo in SILOS:
        parties.start_trainer(silo, "dept_glob", name, *more, *(private if silo == "left" else []))
    state, grid = parties.serve_here("dept_glob", name, *more, before_push=before_push)
    parties.end(name)
    assert state.round == ROUNDS and all(line["missing"] == [] for line in state.history)
    updates = [(a, r) for a, r in grid.messages if r and r.kind == "update" and r.arrays]
    sent = {}
    for asked, reply in updates:
        for source in reply.fields["sources"]:
            parts = [
                (asked.arrays[key] - reply.arrays[f"{source}/{key}"]).ravel().astype(float)
                for key in asked.arrays
            ]
            sent.setdefault(source, []).append(np.concatenate(parts))
    expected = clip * multiplier
    for source in SILOS["left"]:
        assert len(sent[source]) == ROUNDS
        for update in sent[source]:
            assert np.std(update) == pytest.approx(expected, rel=0.02)
        both = np.corrcoef(np.stack(sent[source]))
        assert np.abs(both - np.eye(ROUNDS)).max() < 0.05
    for source in ("mail", "tools"):
        assert all(np.std(update) < expected / 2 for update in sent[source])
    assert {"manual", "code"}.isdisjoint(state.latest)
    folder = parties.folder / "left" / "runs" / name
    found = json.loads((folder / "summary.json").read_text())["local_privacy"]
    for source in SILOS["left"]:
        of_source = found["sources"][source]
        assert of_source["updates"] == ROUNDS
        # As central privacy with the noise of half the multiplier, since updates differ by 2 C.
        assert delta_of(of_source["epsilon"], multiplier / 2, ROUNDS) == pytest.approx(
            1e-5, rel=1e-3
        )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epsilons = [line["dept/code/epsilon"] for line in lines if "dept/code/epsilon" in line]
    assert epsilons == sorted(epsilons) and len(set(epsilons)) == ROUNDS
    assert epsilons[-1] == found["sources"]["code"]["epsilon"]
    assert "epsilon of all updates so far" in parties.log("left", "trainer")
    exported(parties, prepared, name, state, tmp_path)


def exported(parties, prepared, name, state, tmp_path):
    """The server exports the global model of GLOB, whose loss is what silos have measured."""
    folder, tokenizer = server_folder(parties, name), "tokenizers/tiny/global"
    asked = [str(folder), "--root", str(prepared), "--out", str(tmp_path / "global")]
    assert export.main(asked) == 0, tokenizer
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "global").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "global")) == len(
        model.transformer.wte.weight
    )
    split = read_corpus(prepared, "tiny").source("mail")
    total, count = 0.0, 0
    for batch in ValidationLoader(split, batch_size=8):
        ids = batch["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        total, count = total + float(losses), count + ids[:, 1:].numel()
    assert math.isclose(total / count, state.latest["mail"]["loss"], rel_tol=1e-4)
