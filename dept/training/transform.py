"""The config transform, which llm-foundry calls for every train yaml if this package is installed.

llm-foundry finds it by its entry point (pyproject.toml). So ``algorithms: {dept: ...}`` works with
llm-foundry's own train command, in a yaml that extends none of ours. A yaml without DEPT and
without a loader of ours is returned unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from llmfoundry import registry


def transform(config: dict[str, Any]) -> dict[str, Any]:
    """Complete a yaml of ours; with llm-foundry's own command, first do the work of train.py.

    Raises:
        ConfigError: the yaml cannot run.
        DataError: its corpus cannot be read.
    """
    is_prepared = "checkpoints" in registry.callbacks
    if not is_prepared and not is_ours(config):
        return config
    # These imports are here, since a yaml that is not ours must neither wait for nor fail in them.
    from dept.config import complete

    if not is_prepared:
        _prepare(config)
    # It is the first callback, since the others may read the duration that it restores.
    config["callbacks"] = {"finishing": {}, "first_step": {}, **(config.get("callbacks") or {})}
    return complete.complete(config)


def is_ours(config: Mapping[str, Any]) -> bool:
    """Whether a yaml names DEPT or a loader over a prepared corpus."""
    loader = config.get("train_loader") or {}
    return "dept" in (config.get("algorithms") or {}) or loader.get("name") in (
        "sources",
        "mixture",
    )


def _prepare(config: Mapping[str, Any]) -> None:
    """Check the yaml, connect the workers, and register the names without an entry point."""
    from dept.checkpoint import trust
    from dept.config.check import check
    from dept.config.options import options_of
    from dept.log import log
    from dept.training import registration
    from dept.training.on_machine import choose
    from dept.transport import process_group
    from dept.transport.topology import Place

    trust.guard()
    trust.check(config)
    check(config, any_name=True)
    _, line = choose(config)
    if os.environ.get("RANK", "0") == "0":
        log.info(line)
    dept, _ = options_of(config)
    if dept is not None:
        process_group.join(Place.of(os.environ, dept.ranks_per_worker), dept.worker_timeout)
    registration.register()
