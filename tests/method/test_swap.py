"""Exchanging parameters of a live model."""

import pytest
import torch
from tiny import TinyLM

from dept.method.live_model import LiveModel, parameter_roles, random_embedding
from dept.method.sharded_model import shard_apart
from dept.method.variants import Role

IDS = torch.tensor([[1, 2, 3, 1], [0, 3, 2, 2]])


def live(tied=True, positions=False, vocab_size=6):
    torch.manual_seed(0)
    model = TinyLM(vocab_size, tied=tied, positions=positions)
    return LiveModel(model, torch.optim.AdamW(model.parameters(), lr=0.1))


def step(live):
    live.optimizer.zero_grad()
    live.model.loss(IDS).backward()
    live.optimizer.step()


def test_roles_of_parameters():
    roles = parameter_roles(TinyLM(6, tied=False, positions=True))
    assert roles == {
        "wte.weight": Role.TOKENS,
        "wpe.weight": Role.POSITIONS,
        "layer.weight": Role.BODY,
        "layer.bias": Role.BODY,
        "head.weight": Role.TOKENS,
    }
    assert "head.weight" not in parameter_roles(TinyLM(6, tied=True, positions=False))


def test_an_embedding_of_neither_tokens_nor_positions_is_refused():
    model = TinyLM(6, tied=True, positions=False)
    model.kind = torch.nn.Embedding(2, 4)
    with pytest.raises(ValueError, match="kind is an embedding of neither"):
        parameter_roles(model)


def test_a_matrix_of_two_modules_cannot_be_sharded_apart():
    with pytest.raises(ValueError, match="two modules with one matrix"):
        shard_apart(TinyLM(6, tied=True, positions=False))
    model = TinyLM(6, tied=False, positions=False)
    shard_apart(model)
    assert model.wte._fsdp_wrap and model.head._fsdp_wrap and not hasattr(model.layer, "_fsdp_wrap")


@pytest.mark.parametrize("tied", [True, False])
def test_another_number_of_rows_after_training_steps(tied):
    model = live(tied=tied)
    step(model)
    names = model.names(Role.TOKENS)
    values = {name: torch.randn(4, 4) for name in names}
    model.load(values, {})
    assert model.model.config.vocab_size == model.model.wte.num_embeddings == 4
    assert model.model(IDS).shape == (2, 4, 4)
    step(model)
    assert len(model.optimizer.param_groups[0]["params"]) == len(list(model.model.parameters()))
    for name in names:
        assert model.parameter(name).shape == (4, 4)
        assert not torch.equal(model.parameter(name), values[name])
    assert (model.model.head.weight is model.model.wte.weight) == tied


def test_going_back_and_forth_is_as_if_nothing_had_happened():
    apart, together = live(), live()
    for _ in range(3):
        step(apart)
        step(together)
        values = {name: value.clone() for name, value in together.values().items()}
        states = together.take_states()
        together.load({"wte.weight": torch.randn(9, 4), "layer.bias": torch.ones(4)}, {})
        step(together)
        together.take_states()
        together.load(values, states)
    for name, value in apart.values().items():
        assert torch.equal(value, together.values()[name]), name


def test_order_in_the_optimizer_is_kept():
    model = live(tied=False)
    before = [id(p) for p in model.optimizer.param_groups[0]["params"]]
    model.load({"wte.weight": torch.randn(9, 4)}, {})
    after = [id(p) for p in model.optimizer.param_groups[0]["params"]]
    assert after[0] == id(model.model.wte.weight) != before[0]
    assert after[1:] == before[1:]


def test_states_are_taken_by_name_and_removed():
    model = live()
    step(model)
    states = model.take_states()
    assert set(states) == set(model.roles)
    assert not model.optimizer.state


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_embedding_is_the_models_own_and_a_function_of_the_seed(tied):
    model = live(tied=tied, positions=True)
    names = [*model.names(Role.TOKENS), *model.names(Role.POSITIONS)]
    generator = torch.random.get_rng_state()
    first = random_embedding(model.model, names, rows=2000, seed=17)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert list(first) == list(names) or set(first) == set(names)
    assert first["wte.weight"].shape == (2000, 4)
    assert first["wpe.weight"].shape == model.model.wpe.weight.shape
    assert float(first["wte.weight"].std()) == pytest.approx(0.5, rel=0.05)
    again = random_embedding(model.model, names, rows=2000, seed=17)
    other = random_embedding(model.model, names, rows=2000, seed=18)
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)


@pytest.mark.parametrize("option", [{"capturable": True}, {"fused": True}, {}])
def test_step_counts_return_to_the_device_where_the_optimizer_needs_them(option):
    with torch.device("meta"):  # in the place of a GPU
        model = TinyLM(6, tied=True, positions=False)
        optimizer = torch.optim.AdamW(model.parameters())
    optimizer.param_groups[0] |= option
    swapped = LiveModel(model, optimizer)
    value = torch.zeros(4)
    state = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}  # as kept on the CPU
    swapped.load({"layer.bias": value}, {"layer.bias": state}, copy_states=True)
    loaded = optimizer.state[swapped.parameter("layer.bias")]
    assert loaded["exp_avg"].device.type == "meta"
    assert loaded["step"].device.type == ("meta" if option else "cpu")
    assert state["step"] == 3.0
