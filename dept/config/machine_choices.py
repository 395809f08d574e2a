"""What a yaml leaves to the machine: precision, attention, loss function and micro-batch.

A key that is absent or ``auto`` is chosen. On a CPU the choices are those of the recorded results:
float32, attention that is the same to the bit on every CPU, whole batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dept.config.options import options_of
from dept.transport.devices import Device

AUTO = "auto"
FUSED_LACKS = {"attn_logit_softcapping": None, "sliding_window_size": -1}
"""Options of attention that ``fused`` does not have, with the values that turn them off."""


def choices(config: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """The value of each key that the yaml leaves to the machine.

    * ``precision``: ``amp_bf16`` on a GPU that computes in it, else ``fp32``.
    * ``model.attn_config.attn_impl`` of an MPT: on a GPU ``flash`` if flash-attn is installed, else
      ``fused`` (``dept/method/fused_attention.py``); ``torch`` on a CPU.
    * ``model.loss_fn`` of an MPT: ``fused_crossentropy`` on a GPU with flash-attn, else
      ``torch_crossentropy``.
    * ``model.attn_implementation`` of a model of transformers: on a GPU ``flash_attention_2`` or
      ``sdpa``; on a CPU that of llm-foundry.
    * ``device_train_microbatch_size``: ``auto`` on a GPU, where Composer finds it by trials; on a
      CPU the whole batch of a process.

    Args:
        config: a resolved yaml with a model.
        device: the device of this process.

    Returns:
        Values by dotted key; ``None`` is llm-foundry's default.
    """
    on_gpu, found = device.gpu is not None, {}
    model = config.get("model") or {}
    name = str(model.get("name"))
    if config.get("precision", AUTO) == AUTO:
        found["precision"] = "amp_bf16" if device.bf16 else "fp32"
    if name == "mpt_causal_lm":
        attention = model.get("attn_config") or {}
        if attention.get("attn_impl", AUTO) == AUTO:
            found["model.attn_config.attn_impl"] = _attention(attention, device)
        if model.get("loss_fn", AUTO) == AUTO:
            fused = on_gpu and device.flash
            found["model.loss_fn"] = "fused_crossentropy" if fused else "torch_crossentropy"
    elif name == "hf_causal_lm" and not model.get("use_flash_attention_2"):
        given = model.get("attn_implementation", AUTO)
        if given == AUTO and (on_gpu or "attn_implementation" in model):
            fastest = "flash_attention_2" if device.flash else "sdpa"
            found["model.attn_implementation"] = fastest if on_gpu else None
    if config.get("device_train_microbatch_size", AUTO) == AUTO:
        found["device_train_microbatch_size"] = AUTO if on_gpu else _whole(config)
    return found


def _attention(attention: Mapping[str, Any], device: Device) -> str:
    if device.gpu is None or any(attention.get(k, off) != off for k, off in FUSED_LACKS.items()):
        return "torch"
    return "flash" if device.flash else "fused"


def _whole(config: Mapping[str, Any]) -> int:
    dept, _ = options_of(config)
    return max(1, config["global_train_batch_size"] // (dept.ranks_per_worker if dept else 1))


def put(config: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Put chosen values into a plain config, in place.

    Args:
        config: a resolved yaml.
        chosen: the result of :func:`choices`.
    """
    for key, value in chosen.items():
        *above, last = key.split(".")
        section = config
        for name in above:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
        section[last] = value
    return config


def line(config: Mapping[str, Any], device: Device) -> str:
    """One line about the device and what is computed on it.

    Args:
        config: a resolved yaml, with what was chosen.
        device: the device of this process.
    """
    model = config.get("model") or {}
    attention = (model.get("attn_config") or {}).get("attn_impl")
    attention = attention or model.get("attn_implementation")
    size = config.get("device_train_microbatch_size")
    parts = [
        f"precision {config.get('precision')}",
        f"attention {attention}" if attention else "",
        f"{model['loss_fn']}" if model.get("loss_fn") else "",
        f"micro-batch {size}",
        f"{device.threads} thread{'s' if device.threads > 1 else ''}",
    ]
    return f"on {device.gpu or 'the CPU'}: {', '.join(part for part in parts if part)}"
