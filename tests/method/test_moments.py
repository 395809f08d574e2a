"""Averages of moments: what Adam itself permits, and what sources start with, case by case."""

import math

import pytest
import torch
from tiny import TinyLM

from dept.errors import ConfigError, NumericalFault
from dept.method import moments
from dept.method.averaging import Average, Share
from dept.method.compression import Compression
from dept.method.live_model import LiveModel
from dept.method.moment_schedule import INTERVAL, due, exchanges
from dept.method.moments import MomentAverages, limit_of, limited, refuse_without_moments
from dept.method.source_state import Slots
from dept.method.variants import VARIANTS
from dept.method.vocabulary import VocabularyMap
from dept.transport.moment_exchange import average_moments
from dept.transport.reductions import Reductions
from dept.transport.topology import Place
from dept.transport.workers import Workers

RATE = 0.01


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, **options)


def test_moments_are_due_at_periods_of_their_own():
    assert [due(INTERVAL, t) for t in (1, 3, 6, 9)] == [
        [],
        ["exp_avg"],
        ["exp_avg", "exp_avg_sq"],
        ["exp_avg"],
    ]
    assert exchanges(INTERVAL, None) == 0.5 and exchanges(INTERVAL, 10) == 0.4
    assert due({}, 6) == [] and exchanges({}, 10) == exchanges({}, None) == 0


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.8, 0.99)])
def test_the_limit_is_the_least_upper_bound_of_what_adam_reaches(betas):
    """By the gradients that reach it, and by ones at random, through torch's own optimizer."""
    first, second = betas
    parameter = torch.nn.Parameter(torch.zeros(2000))
    optimizer = adamw([parameter], betas=betas)
    limit, highest = limit_of(optimizer), 0.0
    steps, growth = 200, second / first
    for step in range(steps):
        gradients = torch.randn(2000) * 10 ** torch.randn(2000)
        gradients[0] = growth ** -(steps - 1 - step) if growth > 1 else 1.0
        parameter.grad = gradients
        optimizer.step()
        state = optimizer.state[parameter]
        highest = max(highest, float((state["exp_avg"].abs() / state["exp_avg_sq"].sqrt()).max()))
    assert 0.99 * limit < highest < 1.001 * limit


def test_betas_without_a_limit_and_other_optimizers_are_refused():
    with pytest.raises(ConfigError, match=r"betas are 0.99 and 0.95, .* set betas\[1\] above"):
        limit_of(adamw([torch.nn.Parameter(torch.ones(1))], betas=(0.99, 0.95)))
    for name, accepted in (
        ("Adam", True),
        ("AdamW", True),
        ("RAdam", True),
        ("NAdam", False),
        ("Adamax", False),
        ("SGD", False),
        ("Adagrad", False),
    ):
        build = getattr(torch.optim, name)
        if accepted:
            refuse_without_moments(name, build)
        else:
            with pytest.raises(ConfigError, match=f"state of optimizer {name} is not just"):
                refuse_without_moments(name, build)
    with pytest.raises(ConfigError, match="is not just exp_avg, exp_avg_sq and a step count"):
        refuse_without_moments("x", lambda p: torch.optim.AdamW(p, amsgrad=True))


def test_a_row_that_a_source_never_trains_does_not_jump(monkeypatch):
    """The reason of the limit: m of others beside the source's own v = 0 moves a row by m / eps."""
    moved = {}
    for with_limit in (True, False):
        parameter = torch.nn.Parameter(torch.zeros(3, 2))
        optimizer = adamw([parameter])
        if not with_limit:
            monkeypatch.setattr(moments, "limited", lambda first, second, limit: first)
        averages = MomentAverages({"exp_avg": 1, "exp_avg_sq": 2}, limit_of(optimizer))
        averages.take({"exp_avg": {"w": Average(torch.full((3, 2), 1e-3), None)}}, 5.0, 1)
        zeros = {"exp_avg": torch.zeros(3, 2), "exp_avg_sq": torch.zeros(3, 2)}
        own = {"w": {"step": torch.tensor(5.0), **zeros}}
        own["w"]["exp_avg_sq"][0] = 1e-6
        optimizer.state[parameter] = averages.begin(own, 1, {"w": parameter.data}, {})["w"]
        parameter.grad = torch.zeros(3, 2)
        optimizer.step()
        moved[with_limit] = parameter.data.abs().amax(dim=1) / RATE
    assert torch.equal(moved[True][1:], torch.zeros(2)) and moved[True][0] > 0.1
    assert moved[False][1] > 1000
    assert torch.equal(
        limited(torch.tensor([3.0, -3.0]), torch.ones(2), 2.0).abs(), torch.full((2,), 2.0)
    )


def given(value, rows=None, held=None):
    return Average(torch.full((4, 2), value), None if rows is None else held)


def begin(averages, own, since, rows=None):
    local = {"w": torch.zeros(4 if rows is None else len(rows), 2)}
    return averages.begin(own, since, local, {} if rows is None else {"w": rows})


def own_state(rows=4, first=0.5, second=4.0, step=7.0):
    moments = {"exp_avg": torch.full((rows, 2), first), "exp_avg_sq": torch.full((rows, 2), second)}
    return {"w": {"step": torch.tensor(step), **moments}}


def test_a_source_starts_with_what_is_of_the_later_round():
    averages = MomentAverages({"exp_avg": 1, "exp_avg_sq": 2}, 7.0)
    assert begin(averages, {}, 0) == {}  # nothing was averaged yet
    averages.take({"exp_avg": {"w": given(0.25)}}, 9.0, 1)
    assert begin(averages, {}, 0) == {}  # a first moment alone is no start
    state = begin(averages, own_state(), 1)["w"]  # it took part in round 1
    assert state["exp_avg"].eq(0.25).all() and state["exp_avg_sq"].eq(4).all()
    assert state["step"] == 7
    state = begin(averages, own_state(), 2)["w"]  # it was trained since
    assert state["exp_avg"].eq(0.5).all()
    averages.take({"exp_avg": {"w": given(0.125)}, "exp_avg_sq": {"w": given(1.0)}}, 8.0, 2)
    state = begin(averages, own_state(), 1)["w"]  # it was not drawn in round 2
    assert state["exp_avg"].eq(0.125).all() and state["exp_avg_sq"].eq(1).all()
    state = begin(averages, {}, 0)["w"]  # it was never trained
    assert state["exp_avg"].eq(0.125).all() and state["step"] == 9


def test_rows_have_rounds_of_their_own():
    averages = MomentAverages({"exp_avg": 1, "exp_avg_sq": 1}, 7.0)
    for number, value, held in ((1, 0.25, [1, 1, 0, 0]), (2, 0.5, [0, 1, 0, 1])):
        start = averages.start("exp_avg", {"w": torch.zeros(4, 2)})
        second = averages.start("exp_avg_sq", {"w": torch.zeros(4, 2)})
        held = torch.tensor(held, dtype=torch.bool)
        start["w"][held], second["w"][held] = value, value
        both = {"exp_avg": {"w": Average(start["w"], held)}}
        both["exp_avg_sq"] = {"w": Average(second["w"], held)}
        averages.take(both, 3.0, number)
    rows = torch.tensor([0, 1, 3])
    assert begin(averages, own_state(3), 1, rows)["w"]["exp_avg"][:, 0].tolist() == [0.25, 0.5, 0.5]
    kept = begin(averages, own_state(3, first=1.0), 2, rows)["w"]["exp_avg"][:, 0].tolist()
    assert kept == [1.0, 0.5, 0.5]
    unseen = begin(averages, own_state(1, first=1.0), 1, torch.tensor([2]))["w"]["exp_avg"]
    assert unseen.eq(1.0).all()  # nobody held it in an averaging round
    new = begin(averages, {}, 0, torch.tensor([2, 3]))["w"]
    assert new["exp_avg"][:, 0].tolist() == [0.0, 0.5] and new["exp_avg_sq"][0].eq(0).all()


def two_sources(values):
    """Slots of GLOB whose sources keep moments of these values."""
    model = TinyLM(8, tied=True, positions=False)
    optimizer = adamw(model.parameters())
    ids = VocabularyMap.build(torch.arange(8), vocab_size=8, unknown_id=0)
    averages = MomentAverages({"exp_avg": 1, "exp_avg_sq": 1}, limit_of(optimizer))
    slots = Slots(
        LiveModel(model, optimizer),
        VARIANTS["glob"],
        dict.fromkeys(values, ids),
        inner_state="average",
        seed=1,
        moments=averages,
    )
    generator = torch.Generator().manual_seed(3)
    for source, scale in values.items():
        slots.inner[source] = {
            name: {
                "step": torch.tensor(3.0),
                "exp_avg": scale * torch.randn(value.shape, generator=generator),
                "exp_avg_sq": (scale * torch.randn(value.shape, generator=generator)).square(),
            }
            for name, value in slots.start.items()
        }
    return slots


def average(slots, compression, number):
    reductions = Reductions(Compression.of(compression))
    shares = [{source: Share() for source in slots.inner}]
    averages, step = average_moments(
        slots, reductions, Workers(Place()), shares, number, stage="a test"
    )
    slots.moments.take(averages, step, number)
    seconds = slots.moments.values["exp_avg_sq"]
    assert all(bool((value >= 0).all()) for value in seconds.values())
    assert not reductions.errors and not reductions.returned_error
    return min(float(decoded.value.min()) for decoded in averages["exp_avg_sq"].values())


def apart(slots):
    """The largest distance of an average from the mean of the moments of all sources."""
    distances = [
        (value - sum(inner[name][moment] for inner in slots.inner.values()) / len(slots.inner))
        for moment, values in slots.moments.values.items()
        for name, value in values.items()
    ]
    return max(float(distance.abs().max()) for distance in distances)


@pytest.mark.parametrize(
    "compression",
    [
        {"name": "bf16", "block": 8},
        {"name": "int8", "block": 8},
        {"name": "int4", "block": 8},
        {"name": "topk", "block": 8, "density": 0.25, "bits": 8},
    ],
    ids=lambda options: options["name"],
)
def test_coding_errors_do_not_add_up_and_second_moments_stay_above_zero(compression):
    slots = two_sources({"a": 1.0, "b": 0.1})
    lowest, wrong = [], []
    for number in range(1, 30):
        lowest.append(average(slots, compression, number))
        wrong.append(apart(slots))
    assert 1e-4 < max(wrong[10:]) <= wrong[0] + 1e-6
    for state in (state for inner in slots.inner.values() for state in inner.values()):
        state["exp_avg_sq"] *= 1e-3
    lowest.append(average(slots, compression, 30))
    if compression["name"] in ("int8", "int4"):
        assert min(lowest) < 0  # as it was decoded
    alone = two_sources({"a": 1.0})
    for number in range(1, 30):  # the messages of moments that do not change become small
        average(alone, compression, number)
    assert apart(alone) < 1e-5


def test_an_average_that_is_not_finite_is_refused_and_changes_nothing():
    slots = two_sources({"a": 1.0, "b": 1.0})
    average(slots, {"name": "none"}, 1)
    before = slots.moments.values["exp_avg"]["layer.bias"].clone()
    slots.inner["b"]["layer.bias"]["exp_avg"][0] = math.inf
    with pytest.raises(NumericalFault, match=r"exp_avg of layer.bias is not finite"):
        average(slots, {"name": "none"}, 2)
    assert torch.equal(slots.moments.values["exp_avg"]["layer.bias"], before)


def test_a_source_that_is_left_out_is_in_no_average():
    slots = two_sources({"a": 1.0, "b": 1.0})
    for state in slots.inner["b"].values():
        state["step"] += 5
    reductions, shares = Reductions(None), [{"a": Share(weight=3.0)}]
    averages, step = average_moments(slots, reductions, Workers(Place()), shares, 1, stage="a test")
    assert step == 3
    for name, state in slots.inner["a"].items():
        for moment in averages:
            assert torch.equal(averages[moment][name].value, state[moment])
