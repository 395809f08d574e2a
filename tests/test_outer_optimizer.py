"""The outer step, against torch's optimizers run on a parameter that lives on."""

import math

import pytest
import torch

from dept.fedadam import FedAdam
from dept.options import ConfigError
from dept.outer_optimizer import TORCH_OPTIMIZERS, OuterOptimizer
from dept.reduction import Average

ROUNDS = 4


def values(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(optimizer, start, averages):
    for average in averages:
        start = optimizer.step({"w": start}, {"w": average})["w"]
    return start


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)),
        ("fedadam", lambda p: FedAdam(p, lr=1e-3, betas=(0.9, 0.99), tau=1e-3)),
        ("adam", torch.optim.Adam),
        ("adagrad", torch.optim.Adagrad),
        ("sgd", torch.optim.SGD),
    ],
)
def test_it_is_torchs_optimizer_on_start_minus_average(name, reference):
    averages = [values(seed, 5, 3) for seed in range(ROUNDS)]
    parameter = torch.nn.Parameter(values(99, 5, 3))
    optimizer = reference([parameter])
    for average in averages:
        parameter.grad = (parameter - average).detach()
        optimizer.step()
    ours = run(OuterOptimizer(name), values(99, 5, 3), [Average(a, None) for a in averages])
    assert torch.equal(ours, parameter.data)


def test_fedavg_is_the_average_exactly_and_sgd_at_one_up_to_rounding():
    start, average = values(1, 1000), values(2, 1000) * 1e-3
    assert torch.equal(run(OuterOptimizer("fedavg"), start, [Average(average, None)]), average)
    sgd = run(OuterOptimizer("sgd", lr=1.0, momentum=0.5), start, [Average(average, None)])
    torch.testing.assert_close(sgd, average, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["nesterov", "fedadam"])
def test_every_optimizer_moves_towards_the_average(name):
    start, average = values(1, 100), values(1, 100) + 0.1
    after = run(OuterOptimizer(name), start, [Average(average, None)])
    assert bool(((after - start) * (average - start) > 0).all())


def test_fedadam_is_algorithm_2_of_reddi_et_al():
    """Number by number, in double precision, from v[-1] = tau ** 2 and m[-1] = 0."""
    lr, b1, b2, tau = 0.3, 0.8, 0.95, 0.05
    averages = [values(seed, 7).double() for seed in range(6)]
    start = values(99, 7).double()
    options = {"lr": lr, "betas": (b1, b2), "tau": tau}
    ours = run(OuterOptimizer("fedadam", **options), start, [Average(a, None) for a in averages])
    for i, x in enumerate(start.tolist()):
        m, v = 0.0, tau**2
        for average in averages:
            delta = average[i].item() - x
            m = b1 * m + (1 - b1) * delta
            v = b2 * v + (1 - b2) * delta**2
            x = x + lr * m / (math.sqrt(v) + tau)
        assert ours[i].item() == pytest.approx(x, rel=1e-12)


def test_fedadam_of_the_preset_is_that_of_the_class():
    step, average = OuterOptimizer("fedadam"), Average(torch.full((1,), 2.0), None)
    after = step.step({"w": torch.zeros(1)}, {"w": average})["w"]
    v = 0.99 * 1e-3**2 + 0.01 * 2.0**2
    assert after.item() == pytest.approx(1e-3 * 0.1 * 2.0 / (math.sqrt(v) + 1e-3), rel=1e-6)


@pytest.mark.parametrize("name", ["nesterov", "fedadam"])
def test_a_row_without_a_holder_keeps_value_and_state(name):
    """Row by row: a matrix updated by rows is each row updated when it is held, and not else."""
    held = [torch.tensor([i != t % 3 for i in range(3)]) for t in range(ROUNDS)]
    optimizer, matrix = OuterOptimizer(name), values(9, 3, 2)
    for t, mask in enumerate(held):
        before, state = matrix, {k: v.clone() for k, v in optimizer.state.get("w", {}).items()}
        value = torch.where(mask[:, None], values(t, 3, 2), before)
        matrix = optimizer.step({"w": before}, {"w": Average(value, mask)})["w"]
        assert torch.equal(matrix[~mask], before[~mask])
        assert bool((matrix[mask] != before[mask]).all())
        for key, entry in state.items():
            if entry.shape == matrix.shape:
                assert torch.equal(optimizer.state["w"][key][~mask], entry[~mask])


def test_rows_held_every_round_are_the_whole_matrix():
    averages = [values(seed, 4, 2) for seed in range(ROUNDS)]
    everyone = torch.ones(4, dtype=torch.bool)
    whole = run(OuterOptimizer("nesterov"), values(9, 4, 2), [Average(a, None) for a in averages])
    rows = run(
        OuterOptimizer("nesterov"), values(9, 4, 2), [Average(a, everyone) for a in averages]
    )
    assert torch.equal(whole, rows)


def test_state_survives_a_checkpoint():
    averages = [Average(values(seed, 6), None) for seed in range(ROUNDS)]
    whole = run(OuterOptimizer("fedadam"), values(9, 6), averages)
    first, second = OuterOptimizer("fedadam"), OuterOptimizer("fedadam")
    half = run(first, values(9, 6), averages[:2])
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(second, half, averages[2:]), whole)


def test_every_optimizer_of_torch_can_be_named():
    assert {"sgd", "adam", "adamw", "adagrad", "rmsprop"} <= set(TORCH_OPTIMIZERS)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"'fedprox': set it to one of fedavg"):
        OuterOptimizer("fedprox")
    with pytest.raises(ValueError, match="momentun"):
        OuterOptimizer("sgd", momentun=0.9)
    with pytest.raises(ValueError, match="outer optimizer is 'sgd'"):
        OuterOptimizer("adam").load_state_dict(OuterOptimizer("sgd").state_dict())
    with pytest.raises(ConfigError, match="eps"):
        OuterOptimizer("fedadam", eps=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1: set it to a number of 0 or more"),
        ({"tau": 0}, "tau is 0: set it to a number above 0"),
        ({"tau": "small"}, "tau is 'small': set it to a number above 0"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\): set it to two numbers"),
        ({"betas": [-0.1, 0.9]}, "betas is .* 0 or more and below 1"),
        ({"betas": 0.9}, "betas is 0.9: set it to two numbers"),
    ],
)
def test_values_that_fedadam_cannot_have_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        OuterOptimizer("fedadam", **options)
