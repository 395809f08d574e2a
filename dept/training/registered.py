"""Checks of a yaml against llm-foundry's registries, after all names have been registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from llmfoundry import registry
from torch.optim import Optimizer

from dept.config.registries import Thing, things, unknown
from dept.config.schema import refuse_unknown
from dept.errors import ConfigError
from dept.method.moments import refuse_without_moments
from dept.method.outer_optimizer import OUTER_OPTIMIZERS

SHARED = (
    "builtins",
    "torch.nn",
    "torch.optim.optimizer",
    "composer.core",
    "composer.loggers.logger",
)
"""Modules of base classes, whose code does not belong to a single key."""

# Arguments that a builder adds to the options, and keys that it removes from them.
GIVEN = ("params", "tokenizer", "device_batch_size", "train_config")
TAKEN = ("param_groups", "disable_grad", "master_weights_dtype")


def maker(thing: Thing) -> Callable[..., Any] | None:
    """The class or function registered under the name of a thing; ``None`` if there is none."""
    for name in thing.registries:
        entries = getattr(registry, name)
        if thing.name in entries:
            return entries.get(thing.name)
    return None


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that no registry has, and options that a named class or function lacks.

    It is a config transform, so that it runs after ``code_paths`` and before anything is built.

    Raises:
        ConfigError: one sentence that names the key.
    """
    dept = (config.get("algorithms") or {}).get("dept") or {}
    for thing in things(config):
        made_by = maker(thing)
        if made_by is None and thing.name not in thing.others:
            raise unknown(
                thing, [n for r in thing.registries for n in getattr(registry, r).get_all()]
            )
        if made_by is not None:
            _check_options(thing, made_by)
            if thing.key == "optimizer" and dept.get("inner_state") == "average":
                options = {k: v for k, v in thing.options.items() if k not in TAKEN}
                refuse_without_moments(thing.name, functools.partial(made_by, **options))
    return config


def _check_options(thing: Thing, made_by: Callable[..., Any]) -> None:
    try:
        parameters = [p for p in inspect.signature(made_by).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):  # a callable that is not written in Python may have none
        return
    rest = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = [p for p in parameters if p not in rest and p.name not in GIVEN]
    for parameter in known:
        if parameter.default is parameter.empty and parameter.name not in thing.options:
            raise ConfigError(f"{thing.key} lacks {parameter.name}: add it")
    if not rest or _is_shared(made_by):
        refuse_unknown(
            thing.key, [k for k in thing.options if k not in TAKEN], [p.name for p in known]
        )


def _is_shared(made_by: Callable[..., Any]) -> bool:
    """Whether it has the constructor of Composer's callbacks, which ignores all arguments."""
    if not isinstance(made_by, type):
        return False
    return next(c for c in made_by.__mro__ if "__init__" in vars(c)).__module__.startswith(SHARED)


def outer_optimizers(name: str) -> dict[str, Callable[..., Optimizer]]:
    """Optimizers that may be the outer one, by name: ours, and the registered one of that name."""
    if name in OUTER_OPTIMIZERS or name not in registry.optimizers:
        return OUTER_OPTIMIZERS
    return {**OUTER_OPTIMIZERS, name: registry.optimizers.get(name)}


def keys_by_code(config: Mapping[str, Any]) -> dict[CodeType, str]:
    """The key of a yaml that each code object builds or runs; loaders are left out.

    A frame of a traceback has a code object, so this finds the key that an error is about.
    """
    keys: dict[CodeType, str] = {}
    for thing in things(config):
        made_by = None if thing.registries == ("dataloaders",) else maker(thing)
        functions = [made_by]
        if isinstance(made_by, type):
            own = [cls for cls in made_by.__mro__ if not cls.__module__.startswith(SHARED)]
            functions = [entry for cls in own for entry in vars(cls).values()]
        for function in filter(inspect.isfunction, functions):
            keys.setdefault(inspect.unwrap(function).__code__, thing.key)
    return keys
