"""Copies on the CPU."""

import torch

from dept.method.host_memory import states_to_host, to_host


def test_copies_share_nothing_with_the_model():
    value = torch.ones(3)
    kept = to_host({"a": value, "n": 3})
    value.zero_()
    assert kept["a"].tolist() == [1, 1, 1] and kept["n"] == 3


def test_a_state_on_the_cpu_is_moved():
    state = {"w": {"step": torch.tensor(2.0), "m": torch.ones(2)}, "b": {}}
    kept = states_to_host(state)
    assert list(kept) == ["w", "b"] and kept["w"]["m"] is state["w"]["m"]
