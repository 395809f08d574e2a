"""What is found to be at fault, and that nothing of it is left: not in the global model, nor in the
source's own state."""

import copy
import math
import statistics

import pytest
import torch
from test_slots import HOLDS, build, optimizer_of, run_ours

from dept.config.options import DeptOptions
from dept.errors import ConfigError, NumericalFault
from dept.method import faults
from dept.method.averaging import Average
from dept.method.live_model import LiveModel
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.slot_record import SlotRecord
from dept.method.source_state import Slots
from dept.method.variants import VARIANTS
from dept.training import round_metrics


def look_at(**changes):
    fine = {"values": {"w": torch.ones(3)}, "states": {"w": {"step": torch.tensor(1.0)}}}
    fine |= {"norm": 1.0, "here": 1.0, "history": [1.0], "limit": 10.0}
    return faults.of_update(**fine | changes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found(bad):
    assert look_at() is None
    broken = torch.tensor([0.0, bad])
    assert "w was not finite" in look_at(values={"v": torch.ones(1), "w": broken})
    assert "exp_avg of w was not" in look_at(states={"w": {"step": 3, "exp_avg": broken}})
    assert "norm of its update was not finite" in look_at(norm=bad)


def test_values_are_finite_though_their_sum_is_not():
    large = {"a": torch.full((4,), 3e38), "b": torch.full((2,), -1e300, dtype=torch.float64)}
    assert not any(bool(value.sum(dtype=torch.float32).isfinite()) for value in large.values())
    assert faults.not_finite(large) is None
    large["b"][1] = math.nan
    assert faults.not_finite(large) == "b"


def test_an_update_is_held_against_the_median_of_its_last_ten_rounds_by_learning_rate():
    rates = [[1e-3 * t] * 4 for t in range(1, 15)]
    norms = [7.0 * sum(r) * (1 + 0.1 * (t % 3)) for t, r in enumerate(rates)]
    history = []
    for norm, r in zip(norms, rates, strict=True):
        history = faults.remember(history, faults.reach(norm, r))
    by_hand = [norm / sum(r) for norm, r in zip(norms, rates, strict=True)][-10:]
    assert history == pytest.approx(by_hand)
    usual = statistics.median(by_hand)
    assert faults.multiple_of(history, 3 * usual) == pytest.approx(3)
    assert look_at(history=history, here=10.1 * usual).startswith("its update, of norm")
    assert look_at(history=history, here=9.9 * usual) is None
    assert look_at(history=history, here=1e9 * usual, limit=None) is None


def test_where_there_is_nothing_to_hold_it_against_no_update_is_an_outlier():
    assert faults.reach(3.0, [0.0, 0.0]) is None  # the first step of a warm-up
    assert look_at(history=[], here=1e9) is None
    assert look_at(here=None) is None
    assert look_at(history=[0.0, 0.0], here=1.0) is None  # a frozen body
    assert faults.remember([1.0], None) == [1.0]


@pytest.mark.parametrize("limit", [0, 1, -3, math.nan, math.inf, True, "10"])
def test_a_multiple_that_cannot_be_is_refused(limit):
    with pytest.raises(ConfigError, match=r"outlier_multiple is .*: set it to a number above 1"):
        DeptOptions("spec", 1, outlier_multiple=limit)


@pytest.mark.parametrize("inner_state", ["reset", "keep"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_slot_left_out_is_as_if_its_source_had_not_been_drawn(name, inner_state, monkeypatch):
    """Two poisoned slots, suspended in mid-way too, against rounds without them."""
    options = {"tied": False, "positions": True, "inner_state": inner_state}
    options |= {"outer": "nesterov"}
    rounds = [("en", "it", "zh"), ("en", "it", "zh"), ("en", "zh")]
    without = [("en", "it", "zh"), ("en", "zh"), ("zh",)]
    expected, _ = run_ours(VARIANTS[name], **options, rounds=without)
    poisoned = {(1, "it"), (2, "en")}
    round_of, finish = [0], Slots.finish

    def judged(slots, round_number):
        source = slots.active
        if (round_of[0], source) in poisoned:
            with torch.no_grad():
                for parameter in slots.live.model.parameters():
                    parameter.fill_(math.nan)
                for state in slots.live.states().values():
                    state["exp_avg"].fill_(math.nan)
            slots.abandon()
            return None
        return finish(slots, round_number)

    slots = run_with_faults(VARIANTS[name], rounds, judged, round_of, monkeypatch, **options)
    for parameter, value in expected.start.items():
        assert torch.equal(slots.start[parameter], value), parameter
    for source in HOLDS:
        ours, theirs = slots.state_of(source), expected.state_of(source)
        assert_equal(ours["private"] or {}, theirs["private"] or {})
        assert (ours["inner"] or {}).keys() == (theirs["inner"] or {}).keys()
        for parameter, state in (theirs["inner"] or {}).items():
            assert_equal(ours["inner"][parameter], state)


def run_with_faults(variant, rounds, judged, round_of, monkeypatch, **options):
    """`run_ours` whose slots end as ``judged`` says; a slot that is left out is not averaged."""
    from dept.transport.exchange import ExactReduction

    add, averages = ExactReduction.add, ExactReduction.averages

    def add_if_any(reduction, source, local, share):
        if local is not None:
            add(reduction, source, local, share)

    def averages_and_next(reduction, *args, **kwargs):
        round_of[0] += 1
        return averages(reduction, *args, **kwargs)

    monkeypatch.setattr(ExactReduction, "add", add_if_any)
    monkeypatch.setattr(ExactReduction, "averages", averages_and_next)
    monkeypatch.setattr(Slots, "finish", judged)
    slots, _ = run_ours(variant, **options, rounds=rounds, interrupt=True)
    monkeypatch.undo()
    return slots


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_training_a_slot_does_not_change_what_is_kept_of_earlier_ones():
    from test_slots import batches, token_ids

    from dept.method.vocabulary import VocabularyMap

    variant = VARIANTS["spec"]
    ids = torch.tensor(token_ids("en", variant))
    maps = {"en": VocabularyMap.build(ids, vocab_size=12, unknown_id=0)}
    model = build(True, True)
    slots = Slots(LiveModel(model, optimizer_of(model)), variant, maps, inner_state="keep", seed=3)
    kept = None
    for t in range(2):
        slots.begin("en")
        for batch in batches("en", variant, t):
            rows, _, _ = maps["en"].translate(batch, batch)
            model.loss(rows).backward()
            slots.live.optimizer.step()
        if kept is not None:
            before, _ = kept
            for name, state in slots.state_of("en")["inner"].items():
                assert_equal(state, before["inner"][name])
        slots.finish(1)
        kept = copy.deepcopy(slots.state_of("en")), None


@pytest.mark.parametrize("name", ["fedavg", "nesterov", "fedadam"])
def test_an_outer_step_that_is_not_finite_changes_nothing(name):
    start = {"v": torch.zeros(2), "w": torch.ones(2)}
    optimizer = OuterOptimizer(name)
    fine = {"v": Average(torch.ones(2), None), "w": Average(torch.zeros(2), None)}
    start = optimizer.step(start, fine)
    before = copy.deepcopy(optimizer.state)
    with pytest.raises(NumericalFault, match="the average of w is not finite"):
        optimizer.step(start, fine | {"w": Average(torch.tensor([0.0, math.nan]), None)})
    if name == "nesterov":
        huge = OuterOptimizer(name, lr=1e30)
        with pytest.raises(NumericalFault, match=r"the new w is not finite.* lower .*outer_opt"):
            huge.step(start, {"w": Average(torch.full((2,), -1e30), None)})
        assert not huge.state
    assert optimizer.state.keys() == before.keys()
    for parameter, state in before.items():
        assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in state.items())


def test_a_slot_that_is_left_out_counts_and_leaves_no_reach():
    totals = round_metrics.none_yet(2)
    fine = SlotRecord([1.0, 3.0], [0.1, 0.1], 8, norm=1.0, sketch=torch.ones(2), reach=5.0)
    fault = {"source": "it", "step": None, "positions": [4, 7]}
    bad = SlotRecord([2.0, 2.0], [0.1, 0.1], 8, fault=fault)
    records, sent = {"en": fine, "it": bad}, [{"model": 3, "control": 1}, {"model": 4}]
    assert round_metrics.add(totals, records, sent, [0.5, 0.0]) == 7
    assert totals["tokens"] == {"en": 8, "it": 8} and totals["other_bytes"] == 1
    assert totals["reaches"] == {"en": [5.0]} and totals["left_out"] == [fault]
    assert totals["last_round"] == {"en": 1, "it": 1} and totals["wait_seconds"] == [0.5, 0.0]
    metrics = round_metrics.metrics(records, {})
    assert metrics["dept/en/train_loss"] == 2.0 and metrics["dept/it/left_out/position"] == 4
    assert SlotRecord.of(bad.state_dict()) == bad
