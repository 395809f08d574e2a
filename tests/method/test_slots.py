"""Rounds of every variant on a tiny model, against loops in plain torch."""

import copy

import pytest
import torch
from tiny import TinyLM
from torch.nn.functional import cross_entropy

from dept.method.averaging import Share
from dept.method.live_model import LiveModel
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.source_state import Slots
from dept.method.variants import VARIANTS, Vocabulary
from dept.method.vocabulary import VocabularyMap
from dept.transport.exchange import ExactReduction

V, STEPS, ROUNDS, RATE = 12, 3, 3, 0.05
HOLDS = {"en": [0, 1, 2, 3, 7], "it": [0, 2, 4, 5, 6, 7], "zh": [0, 8, 9]}
OWN_SIZE = {"en": 5, "it": 7, "zh": 4}


def token_ids(source, variant):
    if variant.vocabulary is Vocabulary.TRIMMED:
        return HOLDS[source]
    return list(range(V if variant.vocabulary is Vocabulary.GLOBAL else OWN_SIZE[source]))


def batches(source, variant, round_index):
    """Ids of the source's tokenizer, as in its shards."""
    generator = torch.Generator().manual_seed(round_index * 10 + list(HOLDS).index(source))
    ids = torch.tensor(
        HOLDS[source] if variant.vocabulary is not Vocabulary.OWN else token_ids(source, variant)
    )
    return [ids[torch.randint(len(ids), (4, 6), generator=generator)] for _ in range(STEPS)]


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE)


def build(tied, positions):
    torch.manual_seed(5)
    return TinyLM(V, tied=tied, positions=positions)


def run_ours(variant, *, tied, positions, inner_state, rounds, outer="fedavg", interrupt=False):
    model = build(tied, positions)
    maps = {
        s: VocabularyMap.build(
            torch.tensor(token_ids(s, variant)),
            vocab_size=OWN_SIZE[s] if variant.vocabulary is Vocabulary.OWN else V,
            unknown_id=0,
        )
        for s in HOLDS
    }
    live = LiveModel(model, optimizer_of(model))
    slots = Slots(live, variant, maps, inner_state=inner_state, seed=3)
    outer_optimizer = OuterOptimizer(outer)
    sent = 0
    for t, drawn in enumerate(rounds):
        reduction = ExactReduction(slots.start)
        for source in drawn:
            for i, batch in enumerate(batches(source, variant, t)):
                if slots.active is None:
                    slots.begin(source)
                rows, _, _ = maps[source].translate(batch, batch)
                live.optimizer.zero_grad()
                model.loss(rows).backward()
                live.optimizer.step()
                if interrupt and i == 1:
                    slots.park()
            reduction.add(source, slots.finish(t + 1), Share(1.0, slots.rows(source)))
            sent += slots.communicated(source)
        slots.park()
        slots.close_round(outer_optimizer.step(slots.start, reduction.averages()))
    return slots, sent


def run_reference(variant_name, private, *, tied, positions, inner_state, rounds):
    """Algorithm 1 with a model object for each source, and nothing shared between them."""
    theta = build(tied, positions).state_dict()
    phi = {n for n in theta if n in ("wte.weight", "head.weight")}
    psi = {n for n in theta if n == "wpe.weight"}
    own = phi | psi if variant_name.startswith("spec") else set()
    variant, private, kept = VARIANTS[variant_name], copy.deepcopy(private), {}
    for t, drawn in enumerate(rounds):
        locals_ = {}
        for source in drawn:
            ids = token_ids(source, variant)
            model = TinyLM(len(ids), tied=tied, positions=positions)
            for name, value in model.named_parameters():
                if name in own:
                    value.data = private[source][name].clone()
                else:
                    value.data = (theta[name][ids] if name in phi else theta[name]).clone()
            optimizer = optimizer_of(model)
            for name, value in model.named_parameters():
                if (source, name) in kept:
                    optimizer.state[value] = copy.deepcopy(kept[source, name])
            for batch in batches(source, variant, t):
                rows = torch.tensor([[ids.index(int(i)) for i in sample] for sample in batch])
                logits = model(rows)[:, :-1]
                optimizer.zero_grad()
                cross_entropy(logits.reshape(-1, len(ids)), rows[:, 1:].reshape(-1)).backward()
                optimizer.step()
            for name, value in model.named_parameters():
                if inner_state == "keep" or name in own:
                    kept[source, name] = optimizer.state[value]
            locals_[source] = {n: v.data for n, v in model.named_parameters()}
            if own:
                private[source] = {n: locals_[source][n] for n in locals_[source] if n in own}
        for name in next(iter(locals_.values())):
            if name in own:
                continue
            if name in phi:
                for v in range(V):
                    held = [s for s in drawn if v in token_ids(s, variant)]
                    if held:
                        rows = [locals_[s][name][token_ids(s, variant).index(v)] for s in held]
                        theta[name][v] = torch.stack(rows).mean(0)
            else:
                theta[name] = torch.stack([locals_[s][name] for s in drawn]).mean(0)
    return theta, private


ROUNDS_OF = [("en", "it", "zh"), ("it", "zh"), ("en", "zh")]


@pytest.mark.parametrize("inner_state", ["reset", "keep"])
@pytest.mark.parametrize("positions", [True, False], ids=["learned", "no positions"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", VARIANTS)
def test_rounds_are_algorithm_1(name, tied, positions, inner_state):
    options = {"tied": tied, "positions": positions, "inner_state": inner_state}
    fresh, _ = run_ours(VARIANTS[name], **options, rounds=[])
    for source in HOLDS:  # drawn at random, by the source's name, whenever asked first
        fresh.begin(source)
        fresh.finish(1)
    start_private = copy.deepcopy(fresh.private)
    slots, _ = run_ours(VARIANTS[name], **options, rounds=ROUNDS_OF)
    theta, private = run_reference(name, start_private, **options, rounds=ROUNDS_OF)
    for parameter, value in slots.start.items():
        torch.testing.assert_close(value, theta[parameter], atol=1e-6, rtol=0)
    assert set(slots.private) == (set(HOLDS) if VARIANTS[name].phi.value == "private" else set())
    for source, values in slots.private.items():
        for parameter, value in values.items():
            torch.testing.assert_close(value, private[source][parameter], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_parking_in_mid_slot_changes_nothing(name):
    options = {"tied": True, "positions": True, "inner_state": "keep", "rounds": ROUNDS_OF}
    whole, _ = run_ours(VARIANTS[name], **options)
    parked, _ = run_ours(VARIANTS[name], **options, interrupt=True)
    assert all(torch.equal(whole.start[n], parked.start[n]) for n in whole.start)


def test_a_parked_model_is_the_global_one():
    slots, _ = run_ours(
        VARIANTS["spec"], tied=True, positions=False, inner_state="keep", rounds=ROUNDS_OF
    )
    values = slots.live.values()
    assert all(torch.equal(values[n], slots.start[n]) for n in slots.start)
    assert values["wte.weight"].shape == (1, 4)  # a placeholder: there is no global embedding
    assert not slots.live.optimizer.state


def test_one_source_with_fedavg_and_kept_state_is_plain_training_bit_for_bit():
    rounds = [("it",)] * ROUNDS
    slots, _ = run_ours(
        VARIANTS["glob"], tied=True, positions=True, inner_state="keep", rounds=rounds
    )
    model = build(tied=True, positions=True)
    optimizer = optimizer_of(model)
    for t in range(ROUNDS):
        for batch in batches("it", VARIANTS["glob"], t):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(slots.start[name], value.data), name


@pytest.mark.parametrize("outer", ["fedavg", "nesterov", "fedadam"])
def test_trim_with_every_token_is_glob(outer, monkeypatch):
    monkeypatch.setattr("test_slots.HOLDS", {s: list(range(V)) for s in HOLDS})
    options = {"tied": False, "positions": True, "inner_state": "keep", "rounds": ROUNDS_OF}
    glob, _ = run_ours(VARIANTS["glob"], **options, outer=outer)
    trim, _ = run_ours(VARIANTS["trim"], **options, outer=outer)
    assert all(torch.equal(glob.start[n], trim.start[n]) for n in glob.start)


def test_what_a_source_hands_over_is_what_the_variant_shares():
    body, phi, psi, width = 4 * 4 + 4, V * 4, 16 * 4, 4
    sent = {}
    for name, variant in VARIANTS.items():
        options = {"tied": True, "positions": True, "inner_state": "reset"}
        _, sent[name] = run_ours(variant, **options, rounds=[tuple(HOLDS)])
    trimmed = sum(len(ids) for ids in HOLDS.values()) * width
    assert sent["glob"] == 3 * (body + phi + psi)
    assert sent["trim"] == 3 * (body + psi) + trimmed
    assert sent["spec"] == sent["spec_opt"] == 3 * body
