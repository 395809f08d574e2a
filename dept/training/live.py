"""The model of Composer's trainer as the one that holds source after source."""

from __future__ import annotations

import torch
from composer.core import State
from composer.distributed.fsdp2 import create_mixed_precision_policy
from torch import nn
from torch.distributed.fsdp import fully_shard

from dept.method.live_model import LiveModel
from dept.method.sharded_model import ShardedModel, shard_apart


def prepare(state: State) -> None:
    """Prepare a model for its sharding by Composer; called before it."""
    if state.fsdp_config is not None:
        shard_apart(state.model)


def seed_dropout(seed: int) -> None:
    """Seed the generators that dropout draws from, on the CPU and on this process's GPUs.

    ``torch.manual_seed`` would also note, with a trace of the stack, to seed GPUs that are not in
    use, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def live_model(state: State) -> LiveModel:
    """The model that the trainer holds, as a whole or sharded over the ranks of the worker."""
    config, optimizer = state.fsdp_config, state.optimizers[0]
    if config is None:
        return LiveModel(state.model, optimizer)
    mesh = next(state.model.parameters()).device_mesh
    policy = create_mixed_precision_policy(state.precision, config.mixed_precision)

    def shard(module: nn.Module) -> None:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=config.reshard_after_forward,
            mp_policy=policy,
        )

    return ShardedModel(state.model, optimizer, shard)
