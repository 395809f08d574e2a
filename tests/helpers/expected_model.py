"""What a server over fake silos should hold after some rounds, in numpy."""

import numpy as np
import torch
from silos import FakeSilo, local, start_model

SOURCES = ("ant", "bee", "cat", "dog", "eel")


def three():
    return [FakeSilo("x", SOURCES[:2]), FakeSilo("y", SOURCES[2:4]), FakeSilo("z", SOURCES[4:])]


def nesterov(start, mean, momentum, lr=0.5, mu=0.5):
    """One step of Nesterov's method as torch has it, in plain numpy; returns value and momentum."""
    gradient = start - mean
    momentum = gradient if momentum is None else (mu * momentum + gradient).astype(np.float32)
    step = (gradient + np.float32(mu) * momentum).astype(np.float32)
    return (start - np.float32(lr) * step).astype(np.float32), momentum


def expected(rounds, drawn_of, lost=()):
    """The global model after some rounds; ``lost`` has (round, source) that no round averages."""
    model, momenta = start_model(), {}
    for index in range(rounds):
        kept = [s for s in drawn_of(index) if (index, s) not in lost]
        for name, value in model.items():
            locals_ = [local(s, index, value).astype(np.float64) for s in kept]
            mean = (sum(locals_) / len(locals_)).astype(np.float32)
            model[name], momenta[name] = nesterov(value, mean, momenta.get(name))
    return model


def assert_model(server, model):
    assert server.state.theta.keys() == model.keys()
    for name, value in model.items():
        np.testing.assert_allclose(server.state.theta[name].numpy(), value, rtol=1e-6, atol=1e-6)


def same(one, other):
    assert one.state.theta.keys() == other.state.theta.keys()
    return all(torch.equal(v, other.state.theta[n]) for n, v in one.state.theta.items())


def same_state(one, other):
    for name, state in one.outer_optimizer.state.items():
        for key, value in state.items():
            assert torch.equal(value, other.outer_optimizer.state[name][key])
    return one.state.averaged == other.state.averaged
