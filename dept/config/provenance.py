"""A resolved yaml with the origin of each of its keys: ``train.py --print``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from dept.config import extends

COMMAND = "the command"


def annotated(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The resolved yaml, each key with the file or the override that sets it.

    Extended files are merged and interpolations are resolved, so that llm-foundry's own command
    reads it too.

    Args:
        path: path of the yaml.
        overrides: ``key=value`` items of the command line, over the yaml.

    Returns:
        The text of a yaml.

    Raises:
        ConfigError: a file is missing, or a value cannot be read or resolved.
    """
    plain = extends.resolve(extends.load(path, overrides))
    layers = [(_shown(file), layer) for file, layer in extends.layers(path)]
    layers.append((COMMAND, OmegaConf.from_cli(list(overrides))))
    return "\n".join(_lines(plain, layers, ())) + "\n"


def _lines(
    section: Mapping[str, Any], layers: Sequence[tuple[str, DictConfig]], above: tuple[str, ...]
) -> Iterator[str]:
    for key, value in section.items():
        indent, name = "  " * len(above), yaml.safe_dump(key).split("\n")[0]
        if isinstance(value, Mapping) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, layers, (*above, key))
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
        text = text.removesuffix("\n").removesuffix("\n...")
        origin = next(o for o, layer in reversed(layers) if _sets(layer, (*above, key)))
        yield f"{indent}{name}: {text}  # {origin}"


def _sets(layer: DictConfig, keys: tuple[str, ...]) -> bool:
    """Whether a layer sets a key, or replaces a whole section that contains it."""
    found: Any = layer
    for key in keys:
        if not isinstance(found, DictConfig):
            return True
        if key not in found:
            return False
        found = found._get_node(key)
        if OmegaConf.is_interpolation(found._get_parent(), key):
            return True
    return True


def _shown(file: Path) -> str:
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)
