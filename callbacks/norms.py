"""Norms of activations and parameters in training; their growth is a first sign of divergence."""

from __future__ import annotations

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Norms(Callback):
    """Logs L2 norms every few batches, as in the paper's section on stability.

    * ``norm/activations``: norm of the output of a block per token; mean over tokens and blocks.
    * ``norm/body``, ``norm/embedding``: norms of all parameters of the body and of the embedding.

    With DEPT they are the norms of the current local model. Composer's ``ActivationMonitor`` logs
    four values for every input and output of every module, hundreds per step, for more detail.

    Args:
        interval: batches between two measurements.
    """

    def __init__(self, interval: int = 10) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"callbacks.norms.interval is {interval!r}: set it to 1 or more")
        self.interval = interval
        self._hooks: list[RemovableHandle] = []
        self._norms: list[Tensor] = []

    def before_forward(self, state: State, logger: Logger) -> None:
        if (state.timestamp.batch.value + 1) % self.interval == 0:
            self._norms = []
            self._hooks = [b.register_forward_hook(self._measure) for b in blocks(state.model)]

    def after_forward(self, state: State, logger: Logger) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self._norms:
            return
        metrics = {"norm/activations": float(torch.stack(self._norms).mean())}
        self._norms = []
        model = getattr(state.model, "module", state.model)  # without the wrapper of DDP
        for name, every in zip(("body", "embedding"), body_and_embedding(model), strict=True):
            norms = [torch.linalg.vector_norm(p.detach().float()) for p in every]
            metrics[f"norm/{name}"] = float(torch.linalg.vector_norm(torch.stack(norms)))
        logger.log_metrics(metrics)

    def _measure(self, block: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._norms.append(torch.linalg.vector_norm(hidden.detach().float(), dim=-1).mean())


def body_and_embedding(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of the body, and of token embeddings with the head; positions are neither."""
    transformer = getattr(model, "model", model)
    by_token = (transformer.get_input_embeddings(), transformer.get_output_embeddings())
    embedding = [p for module in by_token if module is not None for p in module.parameters()]
    looked_up = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    known = {id(p) for p in [*embedding, *(p for m in looked_up for p in m.parameters())]}
    body = [p for p in model.parameters() if id(p) not in known]
    return body, list({id(p): p for p in embedding}.values())


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest list of modules in it.

    Raises:
        ValueError: it holds none.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} holds no list of blocks to measure: remove norms")
    return list(max(lists, key=len))
