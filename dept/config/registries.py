"""Names that a yaml takes from llm-foundry's registries, known without its slow import.

A name is valid if a registry has it: llm-foundry's own names, ours, those that an installed package
adds by an entry point (``llmfoundry_callbacks``, ``llmfoundry_optimizers``, ...), and those that a
file of ``code_paths`` registers. The first three are known here. With ``code_paths``, an unknown
name is checked after those files have run (``dept/training/registered.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from dept.config.schema import MAPPING, TEXT, nearest
from dept.errors import ConfigError, shown
from dept.method.outer_optimizer import OUTER_OPTIMIZERS, TORCH_OPTIMIZERS
from dept.method.presets import PRESETS

# Names of the pinned llm-foundry and of dept/training/registration.py; a test compares them.
_WORDS = {
    "algorithms": "dept gradient_clipping alibi gated_linear_units low_precision_layernorm",
    "callbacks": "active_forgetting best_checkpoint frozen_start norms progress source_metrics "
    "early_stopper env_logging eval_output_logging fdiff_metrics generate_callback "
    "global_lr_scaling hf_checkpointer kill_loss_spike layer_freezing load_checkpoint "
    "loss_perp_v_len lr_monitor mbmoe_tok_per_expert memory_monitor memory_snapshot "
    "mono_checkpoint_saver nan_monitor oom_observer optimizer_monitor run_timeout "
    "runtime_estimator scheduled_gc speed_monitor system_metrics_monitor",
    "callbacks_with_config": "run_files start_from async_eval curriculum_learning dataset_swap",
    "dataloaders": "sources mixture validation text finetuning contrastive_pairs",
    "loggers": "file_logger jsonl inmemory in_memory_logger mlflow mosaicml tensorboard wandb",
    "models": "mpt_causal_lm hf_causal_lm hf_t5 openai_causal_lm fmapi_causal_lm openai_chat "
    "fmapi_chat finetune_embedding_model contrastive_lm source_model",
    "optimizers": "adalr_lion clip_lion decoupled_lionw decoupled_adamw no_op",
    "schedulers": "constant_with_warmup cosine_with_warmup linear_decay_with_warmup "
    "inv_sqrt_with_warmup",
}
BUILT_IN = {registry: tuple(words.split()) for registry, words in _WORDS.items()}
BUILT_IN["optimizers"] += tuple(TORCH_OPTIMIZERS)
INTERNAL = (
    "checkpoints",
    "finishing",
    "first_step",
    "source_checkpoints",
    "stop_on_sigterm",
    "sequential_steps",
)
"""Also registered; dept/config/complete.py and dept/training/transform.py add them to a yaml."""


@dataclass(frozen=True)
class Thing:
    """An object that a yaml names and a registry builds.

    Attributes:
        key: section of the yaml.
        name: its name in a registry.
        registries: the registries that may have it.
        options: the other keys of the section.
        listed: whether its name is a key of the section, and not the value of ``name``.
        others: valid names that no registry has.
    """

    key: str
    name: Any
    registries: tuple[str, ...]
    options: Mapping[str, Any]
    listed: bool = False
    others: tuple[str, ...] = ()


def things(config: Mapping[str, Any]) -> Iterator[Thing]:
    """All objects that a yaml names; types of its sections must have been checked.

    Raises:
        ConfigError: a section that should have a name is not a mapping.
    """
    for key, registry in (
        ("model", "models"),
        ("optimizer", "optimizers"),
        ("scheduler", "schedulers"),
        ("train_loader", "dataloaders"),
    ):
        if key in config:
            yield _named(key, config[key], registry)
    for key, section in eval_loaders(config):
        yield _named(key, section, "dataloaders")
    for key, registries in (
        ("algorithms", ("algorithms",)),
        ("loggers", ("loggers",)),
        ("callbacks", ("callbacks", "callbacks_with_config")),
    ):
        for name, options in (config.get(key) or {}).items():
            where = f"{key}.{name}"
            if options is not None:
                MAPPING.check(where, options)
            yield Thing(where, name, registries, options or {}, listed=True)
            if where == "callbacks.active_forgetting" and "scheduler" in (options or {}):
                yield _named(f"{where}.scheduler", options["scheduler"], "schedulers")
            if where == "algorithms.dept":
                outer = (options or {}).get("outer_optimizer", {"name": "fedavg"})
                others = (*PRESETS, *OUTER_OPTIMIZERS)
                yield _named(f"{where}.outer_optimizer", outer, "optimizers", others=others)


def eval_loaders(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each section below ``eval_loader``, one or a list, with its key."""
    for key in ("eval_loader", "eval_loaders"):
        given = config.get(key) or []
        if isinstance(given, Mapping):
            yield key, given
        else:
            yield from ((f"{key}[{index}]", section) for index, section in enumerate(given))


def _named(key: str, section: Any, registry: str, others: tuple[str, ...] = ()) -> Thing:
    MAPPING.check(key, section)
    options = {name: value for name, value in section.items() if name not in ("name", "label")}
    return Thing(key, section.get("name"), (registry,), options, others=others)


def known(thing: Thing) -> Iterator[str]:
    """Valid names without ``code_paths``; the names listed here first, since they are fast."""
    yield from thing.others
    for registry in thing.registries:
        yield from BUILT_IN[registry]
    for registry in thing.registries:
        yield from (point.name for point in entry_points(group=f"llmfoundry_{registry}"))


def unknown(thing: Thing, more: Iterable[str] = ()) -> ConfigError:
    """The error about a name that no registry has.

    Args:
        thing: the object with that name.
        more: valid names in addition to those known without ``code_paths``.
    """
    names = [*known(thing), *more]
    if thing.listed:
        section = thing.key.partition(".")[0]
        return ConfigError(
            f"{section} has no key {shown(thing.name)}: {nearest(thing.name, names)}"
        )
    hint = nearest(thing.name, names, "set it to")
    return ConfigError(f"{thing.key}.name is {shown(thing.name)}: {hint}")


def check(config: Mapping[str, Any]) -> None:
    """Refuse names that no registry can have.

    Raises:
        ConfigError: one sentence, with the nearest valid name.
    """
    for thing in things(config):
        if not TEXT.fits(thing.name) or not (
            config.get("code_paths") or thing.name in known(thing)
        ):
            raise unknown(thing)
