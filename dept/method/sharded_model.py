"""The model in memory, sharded over the ranks of a worker by FSDP2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dept.method.live_model import LiveModel, module_like, vocabulary_modules


def shard_apart(model: nn.Module) -> None:
    """Let each vocabulary module be sharded apart from the rest, so that it can be replaced.

    To be called before Composer shards the model.

    Args:
        model: the model as built, not yet sharded.

    Raises:
        ValueError: input embedding and head are two modules with one matrix.
    """
    modules = vocabulary_modules(model)
    if len({id(module.weight) for module in modules}) < len(modules):
        raise ValueError(
            "fsdp_config is set, and input embedding and output head are two modules with one "
            "matrix, which FSDP2 cannot shard apart from the body: untie them, use an MPT model, "
            "or remove fsdp_config"
        )
    for module in modules:
        module._fsdp_wrap = True  # Composer reads it


class ShardedModel(LiveModel):
    """The one model in memory, each parameter of which is a DTensor over the ranks of a worker.

    FSDP2 keeps the shapes of the parameters that a module was sharded with. A token matrix with
    another number of rows therefore comes with a new module, which is sharded alone.

    Values and optimizer state are given and taken whole, the same on every rank.

    Args:
        model: the model the trainer holds, sharded by FSDP2.
        optimizer: its inner optimizer.
        shard: shards a module as the trainer does.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, shard: Callable[[nn.Module], None]
    ) -> None:
        super().__init__(model, optimizer)
        self._shard = shard
        self._excess = excess(next(model.parameters()).device_mesh)

    def wrapped(self, current: nn.Module, ranks: int) -> nn.Module:
        """The model: FSDP2 averages gradients without a wrapper.

        Parameters that a forward pass without a backward one has gathered are sharded again, since
        the optimizer only knows these.

        Args:
            current: the module that the trainer has called so far.
            ranks: how many ranks train the model together.
        """
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return self.model

    def average_gradients(self) -> None:
        """Make the sums of gradients that some backends give the means that FSDP2 asks for."""
        for parameter in self.model.parameters() if self._excess != 1 else ():
            if parameter.grad is not None:
                parameter.grad.div_(self._excess)

    def values(self) -> dict[str, Tensor]:
        """The tensor of every parameter, gathered from all ranks, which must make this call."""
        return {name: _whole(self.parameter(name).detach()) for name in self.roles}

    def states(self) -> dict[str, dict[str, Any]]:
        """The optimizer's state by parameter name, gathered from all ranks."""
        return _whole_states(super().states())

    def take_states(self) -> dict[str, dict[str, Any]]:
        """Remove and return the optimizer's state by parameter name, gathered from all ranks."""
        return _whole_states(super().take_states())

    def _copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(_sharded_like(parameter, value))

    def _state_like(
        self, parameter: nn.Parameter, entry: Tensor, counts: torch.device | None, *, copy: bool
    ) -> Tensor:
        if entry.shape != parameter.shape:  # a step count
            return super()._state_like(parameter, entry, counts, copy=copy)
        return _sharded_like(parameter, entry)

    def _replace(self, name: str, old: nn.Parameter, value: Tensor) -> nn.Parameter:
        ((module, attribute),) = self._holders[name]
        path = next(path for path, other in self.model.named_modules() if other is module)
        new = module_like(module, len(value))
        held = nn.Parameter(value.detach().to(old.device, old.dtype, copy=True))
        held.requires_grad_(old.requires_grad)
        setattr(new, attribute, held)
        self._shard(new)
        new.train(module.training)
        self.model.set_submodule(path, new)
        self._holders[name] = [(new, attribute)]
        parameter = getattr(new, attribute)
        self._exchange(old, parameter)
        return parameter


def excess(mesh: DeviceMesh) -> float:
    """By how much a mean over the ranks is too large: gloo of torch 2.7 returns the sum instead.

    Args:
        mesh: the ranks, in one dimension.
    """
    ones = torch.ones(mesh.size(), device=mesh.device_type)
    mean = torch.empty(1, device=mesh.device_type)
    dist.reduce_scatter_tensor(mean, ones, op=dist.ReduceOp.AVG, group=mesh.get_group())
    return mean.item()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _whole_states(states: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {k: _whole(v) if isinstance(v, Tensor) else v for k, v in state.items()}
        for name, state in states.items()
    }


def _sharded_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """The value, which every rank has, as a DTensor with the placement of the parameter."""
    data = parameter.data
    assert isinstance(data, DTensor)
    value = value.to(data.device, data.dtype)
    return distribute_tensor(value, data.device_mesh, data.placements, src_data_rank=None)
