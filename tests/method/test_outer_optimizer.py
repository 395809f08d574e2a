"""The outer step, against torch's optimizers run on a parameter that lives on."""

import copy
import io
import math

import pytest
import torch

from dept.errors import ConfigError
from dept.method.averaging import Average, Share
from dept.method.fedadam import FedAdam
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, TORCH_OPTIMIZERS, OuterOptimizer
from dept.transport.exchange import ExactReduction

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


BY_ROW = {
    "sgd": {"lr": 0.7, "momentum": 0.9, "nesterov": True},
    "adam": {"lr": 0.1},
    "adamw": {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True},
    "nadam": {"lr": 0.1},
    "radam": {"lr": 0.1},
    "adamax": {"lr": 0.1},
    "adadelta": {},
    "adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "rmsprop": {"lr": 0.1, "momentum": 0.9, "centered": True},
    "rprop": {"lr": 0.1},
    "asgd": {"lr": 0.1, "t0": 2},
    "fedadam": {"lr": 0.1},
}
HELD = torch.rand(8, 9, generator=torch.Generator().manual_seed(3)) < 0.4  # of 8 rounds, 9 rows
HELD[:, 0], HELD[:, 1], HELD[:, 2] = True, False, HELD.new_tensor([0, 0, 0, 0, 0, 0, 0, 1])
HELD[3] = False


def run_by_row(optimizer, matrix, rounds):
    for t in rounds:
        mask = HELD[t]
        value = torch.where(mask[:, None], values(t, 9, 5), matrix)
        matrix = optimizer.step({"w": matrix}, {"w": Average(value, mask)})["w"]
    return matrix


@pytest.mark.parametrize("name", BY_ROW)
def test_each_row_is_a_parameter_of_its_own_stepped_when_it_is_held(name):
    ours = run_by_row(OuterOptimizer(name, **BY_ROW[name]), values(99, 9, 5), range(8))
    for row in range(9):
        parameter = torch.nn.Parameter(values(99, 9, 5)[row].clone())
        optimizer = OUTER_OPTIMIZERS[name]([parameter], **BY_ROW[name])
        for t in range(8):
            if HELD[t, row]:
                parameter.grad = (parameter - values(t, 9, 5)[row]).detach()
                optimizer.step()
        torch.testing.assert_close(ours[row], parameter.data, atol=1e-7, rtol=1e-6)
        assert torch.equal(ours[row], values(99, 9, 5)[row]) == (row == 1)


@pytest.mark.parametrize("name", BY_ROW)
def test_a_row_without_a_holder_keeps_value_and_state(name):
    optimizer, matrix = OuterOptimizer(name, **BY_ROW[name]), values(99, 9, 5)
    for t in range(8):
        before, state = matrix, copy.deepcopy(optimizer.state.get("w", {}))
        matrix = run_by_row(optimizer, before, [t])
        absent = ~HELD[t]
        assert torch.equal(matrix[absent], before[absent])
        for key, entry in state.items():
            assert torch.equal(optimizer.state["w"][key][absent], entry[absent])


@pytest.mark.parametrize("name", BY_ROW)
def test_rows_held_every_round_are_the_whole_matrix(name):
    averages = [values(seed, 4, 3) for seed in range(ROUNDS)]
    everyone = torch.ones(4, dtype=torch.bool)
    whole, rows = (
        run(
            OuterOptimizer(name, **BY_ROW[name]),
            values(9, 4, 3),
            [Average(a, held) for a in averages],
        )
        for held in (None, everyone)
    )
    assert torch.equal(whole, rows)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", BY_ROW)
def test_state_survives_a_checkpoint(name):
    averages = [Average(values(seed, 6), None) for seed in range(ROUNDS)]
    first, second = (OuterOptimizer(name, **BY_ROW[name]) for _ in range(2))
    half = run(first, values(9, 6), averages[:2])
    second.load_state_dict(through_a_file(first.state_dict()))
    whole = run(OuterOptimizer(name, **BY_ROW[name]), values(9, 6), averages)
    assert torch.equal(run(second, half, averages[2:]), whole)


@pytest.mark.parametrize("name", BY_ROW)
def test_state_by_row_survives_a_checkpoint(name):
    first, second = (OuterOptimizer(name, **BY_ROW[name]) for _ in range(2))
    half = run_by_row(first, values(99, 9, 5), range(5))
    second.load_state_dict(through_a_file(first.state_dict()))
    resumed = run_by_row(second, half, range(5, 8))
    assert torch.equal(resumed, run_by_row(first, half, range(5, 8)))
    assert first.state["w"].keys() == second.state["w"].keys()
    assert all(torch.equal(first.state["w"][k], v) for k, v in second.state["w"].items())


def test_state_of_an_earlier_version_is_refused():
    optimizer = OuterOptimizer("nesterov")
    optimizer.load_state_dict({"name": "nesterov", "state": {}})
    old = {"name": "nesterov", "state": {"w": {"momentum_buffer": torch.zeros(2)}}}
    with pytest.raises(ValueError, match=r"an earlier version .* choose another run_name"):
        optimizer.load_state_dict(old)


def test_two_replicas_go_where_maxtext_says_they_go():
    """Losses and parameters of the unit test of MaxText's DiLoCo, a linear model of two replicas.

    The mean of the squared error is descended by SGD at 0.1, and every third step is followed by
    an outer one: Nesterov momentum of 0.9 at 1.0.
    """
    inputs = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[[1.0], [2.0]], [[2.0], [3.0]]])

    def local_steps(start):
        """The local models of a round, averaged, and the mean loss of replicas at each step."""
        reduction, losses = ExactReduction(start), torch.zeros(3)
        for replica in range(2):
            model = torch.nn.Linear(2, 1)
            model.load_state_dict(start)
            sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(3):
                loss = (model(inputs[replica]) - targets[replica]).square().mean()
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                losses[step] += loss.detach() / 2
            reduction.add("one", {n: p.detach() for n, p in model.named_parameters()}, Share())
        return reduction.averages(), losses

    start = {"weight": torch.tensor([[2.0, 1.0]]), "bias": torch.tensor([1.0])}
    averages, first = local_steps(start)
    start = OuterOptimizer("nesterov", lr=1.0, momentum=0.9).step(start, averages)
    _, second = local_steps(start)
    losses = torch.cat([first, second[:1]])
    expected = torch.tensor([1.0, 0.65, 0.4481, 0.574244])
    torch.testing.assert_close(losses, expected, atol=0, rtol=1e-6)
    after = torch.cat([start["weight"][0], start["bias"]])
    torch.testing.assert_close(after, torch.tensor([1.5345, 1.0494, 0.5839]), atol=1e-6, rtol=0)


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


def test_an_optimizer_that_cannot_step_is_refused():
    class Closure(torch.optim.SGD):
        def step(self, closure):
            return closure()

    for name, options in BY_ROW.items():
        optimizer = OuterOptimizer(name, **options)
        optimizer.check_step()
        assert optimizer.state == {}
    with pytest.raises(ConfigError, match=r"outer_optimizer cannot take a step: .*closure"):
        OuterOptimizer("own", classes={"own": Closure}).check_step()
    with pytest.raises(ConfigError, match=r"cannot take a step: .*overflow"):
        OuterOptimizer("sgd", lr=1e39).check_step()
    with pytest.raises(ConfigError, match=r"cannot be built as 'sgd': .*momentum"):
        OuterOptimizer("sgd", momentum=-1)


def test_an_optimizer_whose_state_is_not_by_element_cannot_step_rows():
    with pytest.raises(ConfigError, match=r"'adafactor', whose state row_var .* such as adam"):
        OuterOptimizer("adafactor").check_by_row()
    for name, options in BY_ROW.items():
        OuterOptimizer(name, **options).check_by_row()
