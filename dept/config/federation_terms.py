"""The settings that the server of a federation and all silos must share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dept.checkpoint.run_folder import NOT_SHAPING, SHAPING, at

_OF_A_PARTY = (
    "precision",
    "tokenizer",
    "algorithms.dept.federation.local_privacy",
    "algorithms.dept.ranks_per_worker",
    *(f"train_loader.{name}" for name in ("root", "corpus", "sources", "name")),
)
"""Text, paths of files, processes, the precision of a machine and the noise that a silo adds are of
each party. Tokenizers are compared by their hash."""


def terms(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that the server and all silos must share, as JSON by key.

    Paths, names of runs, evaluation and everything else that changes no number is left out.

    Args:
        config: the resolved yaml, as plain containers.
    """
    found: dict[str, str] = {}
    for section in (*SHAPING, "max_duration"):
        _flatten(section, at(config, section), found)
    return found


def _flatten(key: str, value: Any, found: dict[str, str]) -> None:
    if key in NOT_SHAPING or key in _OF_A_PARTY:
        return
    if isinstance(value, Mapping):
        for name in value:
            _flatten(f"{key}.{name}", value[name], found)
    elif value is not None:
        found[key] = json.dumps(value, sort_keys=True)


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first setting that differs between a silo and the server, as a sentence.

    Args:
        ours: terms of the silo.
        theirs: terms of the server.
    """
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            here, there = ours.get(key, "absent"), theirs.get(key, "absent")
            return (
                f"{key} is {here:.60} in the yaml of the silo and {there:.60} in that of the "
                f"server: use the same yaml"
            )
    return None
