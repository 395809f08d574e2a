"""Whether this machine can run a yaml: its memory, its GPUs, and the libraries that need them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from dept.costs.experiment import Costs, costs_of
from dept.errors import ConfigError

LIBRARIES = 1_200_000_000
"""Bytes of a process before it holds a model: interpreter, torch, llm-foundry, Composer."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a worker needs, and bytes that are available.

    Attributes:
        training: weights, gradients, state of the inner optimizer.
        dept: additional bytes of DEPT on the same device.
        kept: state of all the sources of the worker, local models of the round, and averages of
            inner state, on the CPU.
        activations: rough estimate for one microbatch (:func:`activations`).
        device: ``GPU`` or ``memory``: where ``training``, ``dept`` and ``activations`` are.
        available: bytes of a GPU, or of the machine divided by its workers.
    """

    training: int
    dept: int
    kept: int
    activations: int
    device: str
    available: int

    @property
    def needed(self) -> int:
        """Bytes needed on the device."""
        on_cpu = self.kept + LIBRARIES if self.device == "memory" else 0
        return self.training + self.dept + self.activations + on_cpu

    @property
    def fits(self) -> bool:
        return self.needed <= self.available


def check(config: Mapping[str, Any]) -> None:
    """Refuse a yaml that needs more than this machine has.

    Args:
        config: a resolved yaml that was checked, with what was chosen for the machine.

    Raises:
        ConfigError: one sentence that names the key and the fix.
    """
    if "model" not in config:
        return
    has_gpu = torch.cuda.is_available()
    precision = config["precision"]
    if not has_gpu and precision != "fp32":
        raise ConfigError(
            f"precision is {precision} and there is no GPU: set it to fp32, or to auto"
        )
    if has_gpu and config.get("fsdp_config") and config["device_train_microbatch_size"] == "auto":
        raise ConfigError(
            "device_train_microbatch_size is auto with fsdp_config, for which Composer 0.32.1 "
            "lacks a part with torch 2.7.1 and later: set it to a number"
        )
    model = config["model"]
    if model.get("name") == "mpt_causal_lm" and importlib.util.find_spec("flash_attn") is None:
        for key, value, needs, instead in (
            ("attn_config.attn_impl", model["attn_config"]["attn_impl"], "flash", "fused"),
            ("loss_fn", model["loss_fn"], "fused_crossentropy", "torch_crossentropy"),
        ):
            if value == needs:
                raise ConfigError(
                    f"model.{key} is {value}, and flash_attn is not installed: set it to {instead} "
                    f"or auto"
                )
    try:
        costs = costs_of(config)
    except ValueError:  # no formula for this model, or no corpus, which other checks report
        return
    total = psutil.virtual_memory().total
    if not has_gpu and costs.memory.training > total:
        raise ConfigError(
            f"model has {costs.total:,.0f} parameters, which take "
            f"{costs.memory.training / 1e9:.1f} GB to train, and this machine has "
            f"{total / 1e9:.1f} GB: make the model smaller, or the vocabulary"
        )


def estimate(config: Mapping[str, Any], *, slots: int, sources: int, workers_here: int) -> Estimate:
    """Estimate the memory of a worker on this machine.

    Args:
        config: a resolved yaml that was checked.
        slots: sources that the worker trains in a round.
        sources: sources that it holds.
        workers_here: workers that share this machine.

    Raises:
        ConfigError: there is no formula for the model or the optimizer.
    """
    costs = costs_of(config, slots=slots)
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        available = torch.cuda.get_device_properties(0).total_memory
    else:
        available = psutil.virtual_memory().available // workers_here
    return Estimate(
        training=costs.memory.training,
        dept=costs.memory.dept,
        kept=costs.memory.kept_per_source * sources
        + costs.memory.finished
        + costs.memory.averaged_state,
        activations=activations(config, costs),
        device="GPU" if has_gpu else "memory",
        available=available,
    )


def activations(config: Mapping[str, Any], costs: Costs) -> int:
    """Bytes that the backward pass of a microbatch needs, without recomputation.

    For each token, a block keeps 17 vectors of its width and, without fused attention, 2.5 scores
    per head and token (Korthikanti et al. 2022, in numbers of one word). The loss keeps three
    float32 for each token of the vocabulary. Memory of libraries is not counted.

    Args:
        config: a resolved yaml that was checked.
        costs: its costs.
    """
    model, length = config["model"], config["max_seq_len"]
    size = config.get("device_train_microbatch_size", "auto")
    batch = config["global_train_batch_size"]
    tokens = length * (batch if size == "auto" else min(size, batch))
    word = 4 if config.get("precision") == "fp32" else 2
    width, layers = model.get("d_model", 2048), model.get("n_layers", 24)
    fused = (model.get("attn_config") or {}).get("attn_impl") in ("flash", "fused")
    scores = 0.0 if fused else 2.5 * model.get("n_heads", 16) * length
    blocks = layers * (17 * width + scores) * word
    return round(tokens * (blocks + (3 * 4 + word) * costs.vocabulary.held))
